"""Hugging Face folders (config.json, safetensors) <-> config and parameters.

One name table a family (models/family_names.py) serves both directions: `load`
reads a folder, `save` (folder_writer.py) writes one. Weights stay in their
files until a device asks for its piece (models/stored.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.models import families, transformer, trees
from rlhf_jax.models.config_fields import COPY
from rlhf_jax.models.family_names import Stored
from rlhf_jax.models.folder_writer import save
from rlhf_jax.models.stored import StoredWeight
from rlhf_jax.schema import UserError, absence

__all__ = ["load", "read_config", "read_entries", "save"]
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


def read_entries(folder: str | Path) -> dict[str, Any]:
  """Returns the entries of a folder's config.json."""
  return _read_json(Path(folder) / "config.json")
