"""Hugging Face folders (config.json, safetensors) <-> config and parameters.

One name table a family (models/family_names.py) serves both directions: `load`
reads a folder, `save` writes one. Weights
stay in their files until a device asks for its piece (models/stored.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.models import families, transformer, trees
from rlhf_jax.models.config_fields import COPY
from rlhf_jax.models.family_names import Stored
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
  return strict_json.read_object(path, f"{DAMAGED} {COPY}")


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
      f"{COPY if family is None else remedy}"
    )
  try:
    return family, families.FAMILIES[family].config(family, hf)
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
      f"tensors and files. {COPY}"
    )
  for name, file in weight_map.items():
    if not isinstance(file, str) or Path(file).name != file or file == "..":
      raise UserError(
        f"{index}: {name!r} is in {str(file)[:60]!r}; must be the name of a "
        f"file in the same folder. {COPY}"
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


def _check_tied(
  files: dict[str, Path], opened: dict[Path, Any], names: tuple[str, str]
) -> None:
  """Raises UserError for an output head that is not the embedding it ties.

  Args:
    files: tensor -> its file.
    opened: file -> itself, open.
    names: of the head and of the embedding.
  """
  head, embedding = names
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
  name, config = read_config(folder)
  files = _files_of_tensors(folder)
  family = families.FAMILIES[name]
  table = _table(family, config, files)
  missing = [found.name for found in table.values() if found.name not in files]
  if missing:
    raise UserError(
      f"{folder}: {len(missing)} tensors are missing, the first is "
      f"{missing[0]!r}. The weights do not belong to this config.json."
    )
  _check_unread(folder, name, table, files, config)
  opened = {file: _open(file) for file in set(files.values())}
  _check_tensors(
    {found.name: files[found.name] for found in table.values()}, opened
  )
  if config.tie_embeddings:
    embedding = table["embedding/embedding"].name
    _check_tied(files, opened, (family.names["lm_head/kernel"].name, embedding))
  flat = {
    ours: StoredWeight(
      opened[files[found.name]],
      found.name,
      is_transposed=found.is_transposed,
      path=str(files[found.name]),
      part=found.part,
    )
    for ours, found in table.items()
  }
  families.check_shapes(flat, config, str(folder))
  return config, trees.unflatten(flat)


def _table(
  family: families.Family,
  config: transformer.Config,
  files: Collection[str],
) -> dict[str, Stored]:
  """Returns path -> where it is, by names with or without the prefix."""
  table = families.names_of_layers(family.names, config)
  if any(name.startswith(family.prefix) for name in files):
    return table
  return {
    path: dataclasses.replace(
      found, name=found.name.removeprefix(family.prefix)
    )
    for path, found in table.items()
  }


def _check_unread(
  folder: Path,
  name: str,
  table: dict[str, Stored],
  files: Collection[str],
  config: transformer.Config,
) -> None:
  """Raises UserError for tensors that no weight of ours is."""
  family = families.FAMILIES[name]
  head = family.names["lm_head/kernel"].name if config.tie_embeddings else None
  unread = sorted(
    tensor
    for tensor in set(files) - {found.name for found in table.values()}
    if tensor != head and not tensor.endswith(family.ignored)
  )
  if not unread:
    return
  remedy = "Extend rlhf_jax/models/family_names.py."
  layers = [re.search(r"(?:layers|h)\.(\d+)\.", tensor) for tensor in unread]
  if all(found and int(found[1]) >= config.n_layers for found in layers):
    remedy = (
      f"config.json says num_hidden_layers={config.n_layers}: the weights do "
      "not belong to it."
    )
  raise UserError(
    f"{folder}: {len(unread)} tensors have no place in the {name} family, "
    f"the first is {unread[0]!r}. {remedy}"
  )


def _leaf(flat: dict, path: str, config: transformer.Config) -> np.ndarray:
  """Returns one weight as float32 numpy, out of its stack when scanned."""
  if config.scan_layers and path.startswith("layer_"):
    layer, rest = path.split("/", 1)
    index = int(layer.removeprefix("layer_"))
    return np.asarray(flat[f"layers/{rest}"][index], np.float32)
  return np.asarray(flat[path], np.float32)


def _hf_config(config: transformer.Config) -> dict:
  """Returns config.json of a model of the llama family that has none."""
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
  }


_OF_A_RUN = {  # fields of a Config that no file says, and their defaults
  field.name: field.default
  for field in dataclasses.fields(transformer.Config)
  if field.name
  in (
    "empty_rows",
    "dtype",
    "quantize",
    "attention",
    "scan_layers",
    "remat",
    "lora_rank",
    "lora_scale",
    "lora_first_layer",
  )
}


def entries(
  config: transformer.Config, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the entries of config.json that mean an architecture.

  Args:
    config: of the weights.
    original: of the folder that they come from, kept as it is; None for a
      model that comes from none, which only the llama family can write.

  Raises:
    UserError: they would mean another architecture.
  """
  found = dict(original) if original is not None else _hf_config(config)
  plain = dataclasses.replace(config, **_OF_A_RUN)
  name = found.get("model_type")
  again = families.FAMILIES[name].config(name, found)
  differing = [
    field.name
    for field in dataclasses.fields(plain)
    if getattr(plain, field.name) != getattr(again, field.name)
  ]
  if differing:
    field = differing[0]
    raise UserError(
      f"{field}={getattr(plain, field)!r}: only the llama family can be "
      "exported without a config.json of before, and it has "
      f"{getattr(again, field)!r}. Start from a Hugging Face folder of the "
      f"{config.family} family, or train a model of the llama family."
    )
  return found


def read_entries(folder: str | Path) -> dict[str, Any]:
  """Returns the entries of a folder's config.json."""
  return _read_json(Path(folder) / "config.json")


def save(
  folder: str | Path,
  config: transformer.Config,
  params: dict,
  *,
  dtype: str = "float32",
  original: Mapping[str, Any] | None = None,
  further: dict[str, Any] | None = None,
) -> None:
  """Writes config.json and model.safetensors that transformers can read.

  Args:
    folder: created when absent.
    config: architecture.
    params: the tree under "params", LoRA factors already merged; layers
      stacked when config.scan_layers.
    dtype: of the tensors, one of DTYPES.
    original: see `entries`.
    further: entries of config.json beside the architecture's.

  Raises:
    UserError: an architecture that config.json would not mean.
  """
  import ml_dtypes
  from safetensors.numpy import save_file

  said = entries(config, original)
  check_choice("dtype", dtype, DTYPES)
  stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(params)
  names = families.FAMILIES[config.family].names
  table = families.names_of_layers(names, config)
  tensors: dict[str, np.ndarray] = {}
  for name in dict.fromkeys(found.name for found in table.values()):
    parts = {ours: x for ours, x in table.items() if x.name == name}
    weights = {ours: _leaf(flat, ours, config).astype(stored) for ours in parts}
    whole = _joined(parts, weights)
    turned = next(iter(parts.values())).is_transposed
    tensors[name] = np.ascontiguousarray(whole.T if turned else whole)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  said.pop("dtype", None)
  said |= {"torch_dtype": dtype} | ({} if further is None else further)
  text = json.dumps(said, indent=2)
  (folder / "config.json").write_text(text + "\n")


def _joined(
  parts: Mapping[str, Stored], weights: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns a stored tensor, [in, out], of the weights that it holds."""
  first = next(iter(weights.values()))
  if next(iter(parts.values())).part is None:
    return first
  outputs = sum(weight.shape[-1] for weight in weights.values())
  whole = np.empty((*first.shape[:-1], outputs), first.dtype)
  for ours, weight in weights.items():
    part = parts[ours].part
    for mine, theirs in part.pieces(0, part.size):
      whole[..., theirs] = weight[..., mine]
  return whole
