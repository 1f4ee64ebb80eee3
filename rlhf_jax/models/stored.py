"""Weights that stay in their file until a device asks for its piece.

A leaf here is read like a numpy array, `leaf[index]` or `np.asarray(leaf)`,
always as float32. With `parallel.mesh.place` each host reads the pieces of its
own devices, so no host ever holds a whole model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.schema import UserError


def check_finite(weight: np.ndarray, name: str, path: str) -> None:
  """Raises UserError for NaN or infinity in a weight, or a piece of one.

  Args:
    weight: float32.
    name: of the tensor.
    path: of its file.
  """
  # The sum is finite unless a weight is not, or they overflow together.
  with np.errstate(all="ignore"):
    if np.isfinite(weight.sum()) or np.isfinite(weight).all():
      return
  raise UserError(
    f"{path}: tensor {name!r} holds NaN or numbers beyond float32. Copy or "
    "download the model again."
  )


class Unread:
  """A float32 array that is read when it is indexed; shape: of the whole."""

  dtype = np.dtype(np.float32)
  shape: tuple[int, ...]

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; index: one slice an axis, steps of one, or Ellipsis."""
    raise NotImplementedError

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    whole = self[...]
    return whole if dtype is None else whole.astype(dtype)


class StoredWeight(Unread):
  """One tensor of an open safetensors file, transposed if asked for.

  With a family_names.Part it is some of the outputs, which are our last axis.
  """

  def __init__(
    self,
    file: Any,
    name: str,
    *,
    is_transposed: bool,
    path: str = "weights",
    part: Any = None,
  ) -> None:
    self._file, self._name, self._path = file, name, path
    self._is_transposed, self._part = is_transposed, part
    stored = tuple(file.get_slice(name).get_shape())
    self.shape = stored[::-1] if is_transposed else stored
    if part is not None:
      self._check_part()
      self.shape = (*self.shape[:-1], part.size)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; index: one slice an axis, steps of one."""
    if index is Ellipsis or self.ndim == 0:
      index = (slice(None),) * self.ndim
    if self._part is None:
      return self._read(tuple(index))
    first, end, _ = index[-1].indices(self.shape[-1])
    parts = [
      self._read((*index[:-1], stored))
      for _, stored in self._part.pieces(first, end)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

  def _read(self, index: tuple[slice, ...]) -> np.ndarray:
    stored = index[::-1] if self._is_transposed else index
    piece = np.asarray(self._file.get_slice(self._name)[stored])
    piece = piece.astype(np.float32)
    check_finite(piece, self._name, self._path)
    return np.ascontiguousarray(piece.T) if self._is_transposed else piece

  def _check_part(self) -> None:
    part, outputs = self._part, self.shape[-1]
    last = part.start + (part.blocks - 1) * part.stride + part.block
    if last > outputs:
      raise UserError(
        f"{self._path}: tensor {self._name!r} has {outputs} outputs where the "
        f"config gives at least {last}. The weights do not belong to this "
        "config."
      )


class StackedWeight(Unread):
  """The same weight of all layers, stacked along a new first axis."""

  def __init__(self, layers: Sequence[Any]) -> None:
    self._layers = layers
    self.shape = (len(layers), *layers[0].shape)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; index: one slice an axis, steps of one."""
    if index is Ellipsis:
      index = (slice(None),) * self.ndim
    layers = self._layers[index[0]]
    return np.stack([layer[tuple(index[1:])] for layer in layers])
