"""Hugging Face folders (config.json, safetensors) <-> config and parameters.

One name table a family (models/families.py) serves both directions: `load`
reads a folder, `save` writes one. Weights
stay in their files until a device asks for its piece (models/stored.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.models import families, transformer, trees
from rlhf_jax.models.stored import StoredWeight
from rlhf_jax.schema import UserError, absence, check_choice

DTYPES = ("float32", "bfloat16")  # of tensors that are written
STORED = ("F64", "F32", "F16", "BF16")  # of tensors that are read
INDEX = "model.safetensors.index.json"
DAMAGED = "So a file of the model is damaged."
POINTER = b"version https://git-lfs"  # how one begins
_ROWS = 4096  # of an embedding that are compared at once


def _read_json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    remedy = "A Hugging Face model folder holds config.json and *.safetensors."
    if (path.parent / "adapter_config.json").exists():
      remedy = "This is an adapter (LoRA): merge it into its base model first."
    raise FileNotFoundError(f"{path}: {absence(path)}. {remedy}")
  return strict_json.read_object(path, f"{DAMAGED} {families.COPY}")


def read_config(folder: str | Path) -> tuple[str, transformer.Config]:
  """Returns (family name, config) of a Hugging Face folder.

  Raises:
    FileNotFoundError: without config.json.
    ValueError: for a family that is not implemented.
  """
  path = Path(folder) / "config.json"
  hf = _read_json(path)
  family = hf.get("model_type")
  if not isinstance(family, str) or family not in families.FAMILIES:
    remedy = "Add it to rlhf_jax/models/families.py."
    raise UserError(
      f"{path}: model_type={family!r:.60} is not one of "
      f"{sorted(families.FAMILIES)}. "
      f"{families.COPY if family is None else remedy}"
    )
  try:
    return family, families.FAMILIES[family][1](hf)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def _open(path: Path) -> Any:
  """Returns an open safetensors file.

  Raises:
    UserError: it is damaged, or another kind of file.
    FileNotFoundError: no file is there.
  """
  from safetensors import SafetensorError, safe_open

  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: {absence(path)}. Copy or download the model again."
    )
  with path.open("rb") as file:
    if file.read(len(POINTER)) == POINTER:
      raise UserError(
        f"{path}: a pointer of Git LFS stands in place of the file. Fetch it "
        "with `git lfs pull`."
      )
  try:
    return safe_open(path, framework="np")
  except (SafetensorError, ValueError, OSError) as error:
    raise UserError(
      f"{path}: a file of the model is damaged ({error}). Copy or download the "
      "model again."
    ) from error


def _files_of_tensors(folder: Path) -> dict[str, Path]:
  """Returns {tensor name: file} for one file or an indexed set of files."""
  index, path = folder / INDEX, folder / "model.safetensors"
  if index.exists():
    files = _indexed(index)
    if path.exists() and set(files.values()) != {path}:
      raise UserError(
        f"{folder}: holds both {path.name} and {INDEX}, which names other "
        "files: two models, or one of them is old. Move one of the two away."
      )
    return files
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: {absence(path)}, and no {INDEX} beside it. Save the model in "
      "the safetensors format."
    )
  return dict.fromkeys(_open(path).keys(), path)


def _indexed(index: Path) -> dict[str, Path]:
  """Returns {tensor name: file} of an index; all files in its folder."""
  weight_map = _read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(
      f"{index}: 'weight_map' is {str(weight_map)[:60]}, not an object of "
      f"tensors and files. {families.COPY}"
    )
  for name, file in weight_map.items():
    if not isinstance(file, str) or Path(file).name != file or file == "..":
      raise UserError(
        f"{index}: {name!r} is in {str(file)[:60]!r}; must be the name of a "
        f"file in the same folder. {families.COPY}"
      )
  return {name: index.parent / file for name, file in weight_map.items()}


def _check_tensors(files: dict[str, Path], opened: dict[Path, Any]) -> None:
  """Raises UserError for a tensor that is not there, or not of numbers."""
  known = {path: set(file.keys()) for path, file in opened.items()}
  for name, path in files.items():
    if name not in known[path]:
      raise UserError(
        f"{path}: no tensor {name!r}, which {INDEX} looks for there. Copy or "
        "download the model again."
      )
    kind = opened[path].get_slice(name).get_dtype()
    if kind not in STORED:
      raise UserError(
        f"{path}: tensor {name!r} is {kind}; {', '.join(STORED)} are read. "
        "Convert the model to one of them: quantised weights are not "
        "implemented."
      )


def _check_tied(files: dict[str, Path], opened: dict[Path, Any]) -> None:
  """Raises UserError for an output head that is not the embedding it ties."""
  head, embedding = "lm_head.weight", "model.embed_tokens.weight"
  if head not in files:
    return
  parts = [opened[files[name]].get_slice(name) for name in (head, embedding)]
  shapes = [part.get_shape() for part in parts]
  rows = shapes[0][0] if shapes[0] else 0
  is_same = shapes[0] == shapes[1] and all(
    np.array_equal(*(part[start : min(start + _ROWS, rows)] for part in parts))
    for start in range(0, rows, _ROWS)
  )
  if not is_same:
    raise UserError(
      f"{files[head]}: {head!r} differs from {embedding!r}, and config.json "
      "says that they are one (tie_word_embeddings). Set it to false there, or "
      "take the head out of the file."
    )


def load(folder: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, tree of stored.StoredWeight) of a model folder.

  Raises:
    FileNotFoundError: for a missing file.
    ValueError: for an unknown family, or missing, misshapen or unknown
      tensors (a weight left out would silently be another model).
  """
  import ml_dtypes  # noqa: F401  (lets numpy read bfloat16 tensors)

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
    remedy = "Extend rlhf_jax/models/families.py."
    layers = [re.match(r"model\.layers\.(\d+)\.", name) for name in unread]
    if all(found and int(found[1]) >= config.n_layers for found in layers):
      remedy = (
        f"config.json says num_hidden_layers={config.n_layers}: the weights do "
        "not belong to it."
      )
    raise UserError(
      f"{folder}: {len(unread)} tensors have no place in the {family} family, "
      f"the first is {unread[0]!r}. {remedy}"
    )
  opened = {file: _open(file) for file in set(files.values())}
  _check_tensors(
    {theirs: files[theirs] for theirs, _ in table.values()}, opened
  )
  if config.tie_embeddings:
    _check_tied(files, opened)
  flat = {
    ours: StoredWeight(
      opened[files[theirs]],
      theirs,
      is_transposed=transposed,
      path=str(files[theirs]),
    )
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
