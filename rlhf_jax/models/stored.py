"""Weights that stay in their file until a device asks for its piece.

A leaf here is read like a numpy array, `leaf[index]` or `np.asarray(leaf)`,
always as float32. With `parallel.mesh.place` each host reads the pieces of its
own devices, so no host ever holds a whole model. A piece is read some rows at
a time, by several threads: beside the float32 piece itself only these rows are
in memory.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.models.tensor_files import Tensor
from rlhf_jax.schema import UserError

_CHUNK_BYTES = 2**23  # of float32, that a thread reads at once
_TURNED = 16  # rows that are transposed at once: a line of the cache is 16 wide
_ALIGNMENT = 64  # bytes; JAX on a CPU takes such an array without a copy
_THREADS = min(8, os.cpu_count() or 1)


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
  """One tensor of a safetensors file, transposed if asked for.

  With a family_names.Part it is some of the outputs, which are our last axis;
  with a float8.Scale its numbers are multiplied by those of the scale.
  """

  def __init__(
    self,
    tensor: Tensor,
    *,
    is_transposed: bool,
    part: Any = None,
    scale: Any = None,
  ) -> None:
    self._tensor, self._is_transposed = tensor, is_transposed
    self._part, self._scale = part, scale
    stored = tensor.shape
    self.shape = stored[::-1] if is_transposed else stored
    if part is not None:
      self._check_part()
      self.shape = (*self.shape[:-1], part.size)

  @property
  def place(self) -> str:
    """Where it is, for messages: file and tensor."""
    return self._tensor.place

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; index: one slice an axis, steps of one."""
    if index is Ellipsis or self.ndim == 0:
      index = (slice(None),) * self.ndim
    bounds = [
      part.indices(size)[:2]
      for part, size in zip(index, self.shape, strict=True)
    ]
    piece = _empty([max(end - first, 0) for first, end in bounds])
    if piece.size == 0:
      return piece
    if self._part is None:
      self._read(bounds, piece)
      return piece
    for ours, theirs in self._part.pieces(*bounds[-1]):
      stored = (theirs.start, theirs.stop)
      self._read([*bounds[:-1], stored], piece[..., ours])
    return piece

  def _read(self, bounds: list[tuple[int, int]], piece: np.ndarray) -> None:
    """Fills a piece; bounds: first and end of each of our axes."""
    if self.ndim == 0:
      piece[...] = self._tensor.whole()
      check_finite(piece, self._tensor.name, str(self._tensor.file.path))
      return
    if self._is_transposed:
      bounds, piece = bounds[::-1], piece.T
    first, end = bounds[0]
    wide = 4 * math.prod(self._tensor.shape[1:])
    count = max(_TURNED, _CHUNK_BYTES // max(wide, 1))
    starts = range(first, end, count)
    fill = functools.partial(self._fill, bounds, piece)
    ends = [min(start + count, end) for start in starts]
    if len(starts) == 1:
      fill(first, end)
      return
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
      list(threads.map(fill, starts, ends))

  def _fill(self, bounds, piece: np.ndarray, first: int, end: int) -> None:
    """Reads some stored rows into a piece, which is laid out as stored."""
    (begin, _), *rest = bounds
    columns = tuple(slice(*bound) for bound in rest)
    rows = self._tensor.rows(first, end)[:, *columns]
    rows = rows.astype(np.float32)
    if self._scale is not None:
      rows *= self._scale.of((first, end), *rest)
    check_finite(rows, self._tensor.name, str(self._tensor.file.path))
    into = piece[first - begin : end - begin]
    step = _TURNED if self._is_transposed else len(rows)
    for row in range(0, len(rows), step):
      into[row : row + step] = rows[row : row + step]

  def _check_part(self) -> None:
    part, outputs = self._part, self.shape[-1]
    last = part.start + (part.blocks - 1) * part.stride + part.block
    if last > outputs:
      raise UserError(
        f"{self.place} has {outputs} outputs where the config gives at least "
        f"{last}. The weights do not belong to this config."
      )


def _empty(shape: Sequence[int]) -> np.ndarray:
  """Returns an aligned float32 array of any numbers."""
  size = 4 * math.prod(shape)
  block = np.empty(size + _ALIGNMENT, np.uint8)
  start = -block.ctypes.data % _ALIGNMENT
  return block[start : start + size].view(np.float32).reshape(shape)


class StackedWeight(Unread):
  """The same weight of all layers, stacked along a new first axis.

  layers: one leaf each.
  """

  def __init__(self, layers: Sequence[Any]) -> None:
    self.layers = layers
    self.shape = (len(layers), *layers[0].shape)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; index: one slice an axis, steps of one."""
    if index is Ellipsis:
      index = (slice(None),) * self.ndim
    layers = self.layers[index[0]]
    return np.stack([layer[tuple(index[1:])] for layer in layers])
