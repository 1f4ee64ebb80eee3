"""GGUF files (llama.cpp) -> config and parameters, dequantised to float32.

What the metadata means is in gguf_configs.py, what tensors are called in
gguf_names.py. Three things differ from a Hugging Face folder, and are undone:
files of some architectures have the two numbers of a head that turn together
side by side, Gemma's gains of norms are stored with their 1, and a tied head
may stand in the file a second time.

Rows are dequantised when they are read, so that the model is never there
twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlhf_jax.data import gguf_files
from rlhf_jax.models import (
  families,
  gguf_names,
  transformer,
  trees,
)
from rlhf_jax.models.gguf_configs import ARCHITECTURES, Architecture
from rlhf_jax.models.gguf_metadata import Metadata, tied
from rlhf_jax.models.stored import Unread, check_finite
from rlhf_jax.schema import UserError


def _architecture(reader: Any, path: Any) -> tuple[str, Architecture]:
  """Returns the name of a file's architecture and how it is read.

  Raises:
    UserError: none that we read, or no whole language model.
  """

  def get(key: str) -> Any:
    return gguf_files.contents(reader, key, path)

  name = get("general.architecture")
  if name is None:
    raise UserError(
      f"{path}: no metadata 'general.architecture' in this GGUF file: it is "
      "not a complete model. Use a file exported with its hyperparameters."
    )
  kind, parts = get("general.type"), get("split.count")
  if kind not in (None, "model"):
    raise UserError(
      f"{path}: a GGUF file of type {kind!r:.40}, no model. Give the file of "
      "the language model itself."
    )
  if parts not in (None, 0, 1):
    raise UserError(
      f"{path}: one of {parts} parts of a model; only whole files are read. "
      "Join them with llama-gguf-split --merge."
    )
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise UserError(
      f"{path}: GGUF architecture {name!r:.60} is not one of "
      f"{sorted(ARCHITECTURES)}. Use a file of these or extend "
      "rlhf_jax/models/gguf_configs.py."
    )
  return name, ARCHITECTURES[name]


def _dequantised(data: Any, tensor: Any, path: Any) -> np.ndarray:
  """Returns bytes of a tensor, or of some of its rows, as float32.

  Raises:
    UserError: of a type that the gguf package cannot read, or not finite.
  """
  try:
    found = gguf.quants.dequantize(data, tensor.tensor_type)
  except (ValueError, NotImplementedError) as error:
    raise UserError(
      f"{path}: tensor {tensor.name!r} of type {tensor.tensor_type.name} "
      f"cannot be read ({error}). Fetch the file again, or one of another type."
    ) from error
  found = np.asarray(found, np.float32)
  check_finite(found, tensor.name, str(path))
  return found


def _metadata(reader: Any, path: Any) -> tuple[Architecture, Metadata]:
  """Returns what a file says of its architecture."""
  name, architecture = _architecture(reader, path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  values = {
    key: gguf_files.contents(reader, key, path)
    for key in reader.fields
    if key.startswith(f"{name}.")
  }
  return architecture, Metadata(
    name,
    values,
    {
      tensor.name: tuple(int(size) for size in reversed(tensor.shape))
      for tensor in tensors.values()
    },
    lambda key: _dequantised(tensors[key].data, tensors[key], path),
    tied(tensors, architecture.may_copy_head and _is_copied(tensors)),
  )


def _is_copied(tensors: dict[str, Any]) -> bool:
  """Says whether a file's output head holds the bytes of its embedding."""
  pair = [tensors.get(name) for name in (gguf_names.HEAD, gguf_names.EMBEDDING)]
  if None in pair or pair[0].tensor_type != pair[1].tensor_type:
    return False
  head, embedding = (tensor.data for tensor in pair)
  return head.shape == embedding.shape and np.array_equal(head, embedding)


def _entries(
  architecture: Architecture, metadata: Metadata, path: Any
) -> dict[str, Any]:
  try:
    return architecture.entries(metadata)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def _config(entries: dict[str, Any], path: Any) -> transformer.Config:
  family = entries["model_type"]
  try:
    return families.FAMILIES[family].config(family, entries)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def read_entries(path: str | Path) -> dict[str, Any]:
  """Returns the entries of config.json that mean the model of a GGUF file.

  Raises:
    UserError: for another architecture, or a key that is not read.
  """
  return _entries(*_metadata(gguf_files.open_file(path), path), path)


def read_config(path: str | Path) -> transformer.Config:
  """Returns the architecture of a GGUF file; its weights are not read.

  Raises:
    ValueError: for another architecture.
  """
  return _config(read_entries(path), path)


class QuantisedWeight(Unread):
  """One tensor of an open GGUF file, or some outputs of it, as in stored.py.

  Args:
    tensor: of gguf.GGUFReader.
    path: of the file, for messages.
    is_transposed: ours has the outputs last.
    rows: [outputs] where each of ours is among those of the tensor; None for
      all in order.
    shift: what the file's numbers are above ours.
  """

  def __init__(
    self,
    tensor: Any,
    path: Any,
    *,
    is_transposed: bool,
    rows: np.ndarray | None = None,
    shift: float = 0.0,
  ) -> None:
    self.tensor, self.is_transposed = tensor, is_transposed
    self.rows, self.shift = rows, shift
    self._path = path
    stored = tuple(int(size) for size in reversed(tensor.shape))
    if rows is not None:
      _check_rows(rows, stored, tensor.name, path)
      stored = (len(rows), *stored[1:])
    self.shape = stored[::-1] if is_transposed else stored

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; only its outputs are dequantised."""
    if index is Ellipsis:
      index = (slice(None),) * self.ndim
    outputs, *rest = tuple(index)[::-1] if self.is_transposed else tuple(index)
    if self.rows is not None:
      outputs = self.rows[outputs]
    data = self.tensor.data
    if data.ndim == 1:  # a vector may be one block
      piece = _dequantised(data, self.tensor, self._path)[outputs]
    else:
      piece = _dequantised(data[outputs], self.tensor, self._path)
      piece = piece[(slice(None), *rest)]
    piece = piece - np.float32(self.shift) if self.shift else piece
    return np.ascontiguousarray(piece.T if self.is_transposed else piece)


def _check_rows(rows: np.ndarray, stored: tuple, name: str, path: Any) -> None:
  if stored[0] <= int(rows.max()):
    raise UserError(
      f"{path}: tensor {name!r} has {stored[0]} outputs where the metadata "
      f"gives at least {int(rows.max()) + 1}. The file is damaged: fetch it "
      "again."
    )


def load(path: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, parameter tree of QuantisedWeight) of a GGUF file.

  Raises:
    ValueError: for another architecture, a key that changes the numbers and
      is not read, or a tensor that is missing, misshapen or unknown.
    FileNotFoundError: when there is no such file.
  """
  reader = gguf_files.open_file(path)
  architecture, metadata = _metadata(reader, path)
  config = _config(_entries(architecture, metadata, path), path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  names = gguf_names.of_file(architecture.names, tensors)
  table = families.names_of_layers(names, config)
  _check_tensors(table, tensors, metadata, path)
  flat = {
    ours: QuantisedWeight(
      tensors[stored.name],
      path,
      is_transposed=stored.is_transposed,
      rows=gguf_names.rows(ours, stored, config, architecture.is_paired),
      shift=architecture.norm_shift if ours.endswith("/scale") else 0.0,
    )
    for ours, stored in table.items()
  }
  families.check_shapes(flat, config, str(path))
  return config, trees.unflatten(flat)


def _check_tensors(
  table: dict[str, Any], tensors: dict[str, Any], metadata: Metadata, path: Any
) -> None:
  """Raises UserError for a tensor that is missing, or that nobody reads."""
  needed = {stored.name for stored in table.values()}
  missing = sorted(needed - set(tensors))
  if missing:
    raise UserError(
      f"{path}: no tensor {missing[0]!r}; the file is damaged or of another "
      "architecture. Fetch it again."
    )
  known = needed | metadata.tensors_read
  known |= {gguf_names.HEAD} if metadata.is_tied else set()
  unread = sorted(set(tensors) - known)
  if unread:
    raise UserError(
      f"{path}: {len(unread)} tensors have no place in the "
      f"{metadata.architecture} architecture, the first is {unread[0]!r}. "
      "Extend rlhf_jax/models/gguf_names.py."
    )
