"""Hugging Face folders (config.json, safetensors) <-> config and parameters.

One name table a family (models/family_names.py) serves both directions: `load`
reads a folder, `save` (folder_writer.py) writes one. Weights stay in their
files until a device asks for its piece (models/stored.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.models import families, float8, tensor_files, transformer, trees
from rlhf_jax.models.config_fields import COPY
from rlhf_jax.models.family_names import Stored
from rlhf_jax.models.folder_writer import save
from rlhf_jax.models.stored import StoredWeight
from rlhf_jax.models.tensor_files import KINDS, Tensor, read_json
from rlhf_jax.schema import UserError

__all__ = ["load", "read_config", "read_entries", "save"]
_ROWS = 4096  # of an embedding that are compared at once
_HEAD = "lm_head.weight"
# How the names of a text model begin inside another model.
_INSIDE = re.compile(r"^(model\.|)language_model\.")


def read_config(folder: str | Path) -> tuple[str, transformer.Config]:
  """Returns (family name, config) of a Hugging Face folder.

  Raises:
    FileNotFoundError: without config.json.
    ValueError: for a family that is not implemented.
  """
  path = Path(folder) / "config.json"
  hf = read_json(path)
  family = hf.get("model_type")
  if not isinstance(family, str) or family not in families.FAMILIES:
    remedy = "Add it to rlhf_jax/models/families.py."
    raise UserError(
      f"{path}: model_type={family!r:.60} is not one of "
      f"{sorted(families.FAMILIES)}. "
      f"{COPY if family is None else remedy}"
    )
  try:
    if float8.read(hf) is not None:
      del hf["quantization_config"]
    return family, families.FAMILIES[family].config(family, hf)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def _check_kinds(tensors: Iterable[Tensor]) -> None:
  """Raises UserError for a tensor that is not of numbers that are read."""
  for tensor in tensors:
    if tensor.kind not in KINDS:
      raise UserError(
        f"{tensor.place} is {tensor.kind}; {', '.join(KINDS)} are read. "
        "Convert the model to one of them: other quantised weights are not "
        "implemented."
      )


def _check_tied(head: Tensor, embedding: Tensor) -> None:
  """Raises UserError for an output head that is not the embedding it ties."""
  rows = head.shape[0] if head.shape else 0
  is_same = head.shape == embedding.shape and all(
    np.array_equal(*(x.rows(start, end) for x in (head, embedding)))
    for start in range(0, rows, _ROWS)
    for end in [min(start + _ROWS, rows)]
  )
  if not is_same:
    raise UserError(
      f"{head.file.path}: {head.name!r} differs from {embedding.name!r}, and "
      "config.json says that they are one (tie_word_embeddings). Set it to "
      "false there, or take the head out of the file."
    )


def _text_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Returns the tensors by the names that a text model has when it is alone.

  Raises:
    UserError: the text model is a part of another one, of images say.
  """
  inside = [name for name in tensors if _INSIDE.match(name)]
  if not inside:
    return dict(tensors)
  named = {_INSIDE.sub(r"\1", name): x for name, x in tensors.items()}
  others = [x for name, x in named.items() if name == x.name != _HEAD]
  if others or len(named) < len(tensors):
    place = others[0].place if others else next(iter(tensors.values())).place
    raise UserError(
      f"{place} stands beside {inside[0]!r}: the language model is a part of "
      "another one, of images say, which is not implemented. Take a folder of "
      "the text model alone."
    )
  return named


def load(folder: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, tree of stored.StoredWeight) of a model folder.

  Raises:
    FileNotFoundError: for a missing file.
    ValueError: for an unknown family, or missing, misshapen or unknown
      tensors (a weight left out would silently be another model).
  """
  folder = Path(folder)
  name, config = read_config(folder)
  how = float8.read(read_json(folder / "config.json"))
  tensors = _text_model(tensor_files.of_folder(folder))
  family = families.FAMILIES[name]
  table = _table(family, config, tensors)
  missing = [
    found.name for found in table.values() if found.name not in tensors
  ]
  if missing:
    raise UserError(
      f"{_source(folder)}: {len(missing)} tensors are missing, the first is "
      f"{missing[0]!r}. The weights do not belong to this config.json."
    )
  _check_unread(name, table, tensors, config, how)
  _check_kinds(tensors[found.name] for found in table.values())
  head = family.names["lm_head/kernel"].name
  if config.tie_embeddings and head in tensors:
    _check_tied(tensors[head], tensors[table["embedding/embedding"].name])
  flat = {
    ours: StoredWeight(
      tensors[found.name],
      is_transposed=found.is_transposed,
      part=found.part,
      scale=float8.scale_of(tensors, found.name, how),
    )
    for ours, found in table.items()
  }
  families.check_shapes(flat, config, str(folder))
  return config, trees.unflatten(flat)


def _source(folder: Path) -> Path:
  """Returns the file that says which tensors a folder has."""
  index = folder / tensor_files.INDEX
  return index if index.exists() else folder / tensor_files.WEIGHTS


def _table(
  family: families.Family,
  config: transformer.Config,
  names: Collection[str],
) -> dict[str, Stored]:
  """Returns path -> where it is, by names with or without the prefix."""
  table = families.names_of_layers(family.names, config)
  if any(name.startswith(family.prefix) for name in names):
    return table
  return {
    path: dataclasses.replace(
      found, name=found.name.removeprefix(family.prefix)
    )
    for path, found in table.items()
  }


def _check_unread(
  name: str,
  table: Mapping[str, Stored],
  tensors: Mapping[str, Tensor],
  config: transformer.Config,
  how: float8.Float8 | None,
) -> None:
  """Raises UserError for tensors that no weight of ours is."""
  family = families.FAMILIES[name]
  read = {found.name for found in table.values()}
  read |= {scale for name in read for scale in float8.scale_names(name)}
  if config.tie_embeddings:
    read.add(family.names["lm_head/kernel"].name)
  rounds = () if how is None else float8.UNUSED
  unread = sorted(
    tensor
    for tensor in set(tensors) - read
    if not tensor.endswith((*family.ignored, *rounds))
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
    f"{tensors[unread[0]].file.path}: {len(unread)} tensors have no place in "
    f"the {name} family, the first is {unread[0]!r}. {remedy}"
  )


def read_entries(folder: str | Path) -> dict[str, Any]:
  """Returns the entries of a folder's config.json, of weights as read here."""
  found = read_json(Path(folder) / "config.json")
  found.pop("quantization_config", None)  # `load` has multiplied its scales
  return found
