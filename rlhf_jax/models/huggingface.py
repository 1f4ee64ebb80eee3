"""Hugging Face folders (config.json, safetensors) <-> config and parameters.

One name table a family (models/families.py) serves both directions: `load`
reads a folder, `save` writes one. Weights
stay in their files until a device asks for its piece (models/stored.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.models import families, transformer, trees
from rlhf_jax.models.stored import StoredWeight
from rlhf_jax.schema import UserError, check_choice

DTYPES = ("float32", "bfloat16")  # of tensors that are written


def _read_json(path: Path) -> dict:
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file. A Hugging Face model folder holds config.json "
      "and *.safetensors."
    )
  return json.loads(path.read_text())


def read_config(folder: str | Path) -> tuple[str, transformer.Config]:
  """Returns (family name, config) of a Hugging Face folder.

  Raises:
    FileNotFoundError: without config.json.
    ValueError: for a family that is not implemented.
  """
  hf = _read_json(Path(folder) / "config.json")
  family = hf.get("model_type")
  if family not in families.FAMILIES:
    raise UserError(
      f"{folder}/config.json: model_type={family!r} is not one of "
      f"{sorted(families.FAMILIES)}. Add it to rlhf_jax/models/families.py."
    )
  return family, families.FAMILIES[family][1](hf)


def _files_of_tensors(folder: Path) -> dict[str, Path]:
  """Returns {tensor name: file} for one file or an indexed set of files."""
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    weight_map = _read_json(index)["weight_map"]
    return {name: folder / file for name, file in weight_map.items()}
  from safetensors import safe_open

  path = folder / "model.safetensors"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file, and no model.safetensors.index.json beside it. "
      "Save the model in the safetensors format."
    )
  with safe_open(path, framework="np") as file:
    return dict.fromkeys(file.keys(), path)


def load(folder: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, tree of stored.StoredWeight) of a model folder.

  Raises:
    FileNotFoundError: for a missing file.
    ValueError: for an unknown family, or missing, misshapen or unknown
      tensors (a weight left out would silently be another model).
  """
  import ml_dtypes  # noqa: F401  (lets numpy read bfloat16 tensors)
  from safetensors import safe_open

  folder = Path(folder)
  family, config = read_config(folder)
  files = _files_of_tensors(folder)
  table = families.names_of_layers(families.FAMILIES[family][0], config)
  missing = [theirs for theirs, _ in table.values() if theirs not in files]
  if missing:
    raise UserError(
      f"{folder}: {len(missing)} tensors are missing, the first is "
      f"{missing[0]!r}. The weights do not belong to this config.json."
    )
  unread = set(files) - {theirs for theirs, _ in table.values()}
  unread = sorted(name for name in unread if not _is_derived(name, config))
  if unread:
    raise UserError(
      f"{folder}: {len(unread)} tensors have no place in the {family} family, "
      f"the first is {unread[0]!r}. Extend rlhf_jax/models/families.py."
    )
  opened = {
    file: safe_open(file, framework="np") for file in set(files.values())
  }
  flat = {
    ours: StoredWeight(opened[files[theirs]], theirs, is_transposed=transposed)
    for ours, (theirs, transposed) in table.items()
  }
  families.check_shapes(flat, config, str(folder))
  return config, trees.unflatten(flat)


def _is_derived(name: str, config: transformer.Config) -> bool:
  """Returns whether a tensor repeats what the config or another one says."""
  is_tied_head = name == "lm_head.weight" and config.tie_embeddings
  return is_tied_head or name.endswith("rotary_emb.inv_freq")


def _leaf(flat: dict, path: str, config: transformer.Config) -> np.ndarray:
  """Returns one weight as float32 numpy, out of its stack when scanned."""
  if config.scan_layers and path.startswith("layer_"):
    layer, rest = path.split("/", 1)
    index = int(layer.removeprefix("layer_"))
    return np.asarray(flat[f"layers/{rest}"][index], np.float32)
  return np.asarray(flat[path], np.float32)


def _hf_config(config: transformer.Config, dtype: str) -> dict:
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.n_layers,
    "num_attention_heads": config.n_heads,
    "num_key_value_heads": config.n_kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "rms_norm_eps": config.norm_epsilon,
    "rope_theta": config.rope_theta,
    "max_position_embeddings": config.max_length,
    "tie_word_embeddings": config.tie_embeddings,
    "hidden_act": "silu",
    "torch_dtype": dtype,
  }


def check_expressible(config: transformer.Config) -> None:
  """Raises UserError for an architecture that `save` cannot write."""
  shape = (config.norm, config.positions, config.gated_mlp, config.activation)
  if shape != ("rms", "rope", True, "silu") or config.attention_bias:
    raise UserError(
      f"norm, positions, gated_mlp, activation = {shape}, attention_bias = "
      f"{config.attention_bias}: only the llama family (rms, rope, gated "
      "silu, no bias) can be exported. Train a model of that family."
    )


def save(
  folder: str | Path,
  config: transformer.Config,
  params: dict,
  *,
  dtype: str = "float32",
  further: dict[str, Any] | None = None,
) -> None:
  """Writes config.json and model.safetensors that transformers can read.

  Args:
    folder: created when absent.
    config: a llama-shaped config (rms norm, rotary positions, gated silu).
    params: the tree under "params", LoRA factors already merged; layers
      stacked when config.scan_layers.
    dtype: of the tensors, one of DTYPES.
    further: entries of config.json beside the architecture's.

  Raises:
    ValueError: for an architecture that the llama family cannot express.
  """
  import ml_dtypes
  from safetensors.numpy import save_file

  check_expressible(config)
  check_choice("dtype", dtype, DTYPES)
  stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(params)
  tensors = {}
  table = families.names_of_layers(families.LLAMA_NAMES, config)
  for ours, (theirs, transposed) in table.items():
    weight = _leaf(flat, ours, config).astype(stored)
    tensors[theirs] = np.ascontiguousarray(weight.T if transposed else weight)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  entries = _hf_config(config, dtype) | ({} if further is None else further)
  text = json.dumps(entries, indent=2)
  (folder / "config.json").write_text(text + "\n")
