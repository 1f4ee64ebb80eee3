"""Weights of files -> few bits, a matrix at a time.

`pending` puts a Quantised of unread pieces (models/stored.py) in the place of
each large matrix; `mesh.place` then reads, rounds and sends what each device
owns. A host holds one matrix in float32 at most, a device none. Blocks of a
GGUF file that mean the same numbers as ours are taken as they are, and never
are float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax.models import gguf, quantised
from rlhf_jax.models.quantised import Quantised
from rlhf_jax.models.stored import Unread
from rlhf_jax.schema import UserError
from rlhf_jax.types import PyTree

BLOCK = 32  # numbers of a block of these files
# kind -> type -> what stands in float16 before the numbers of a block
_BLOCKS = {
  "int8": {"Q8_0": ("scales",)},
  "int4": {"Q4_0": ("scales",), "Q4_1": ("scales", "offsets")},
}


def pending(params: PyTree, kind: str) -> PyTree:
  """Returns a tree of unread weights whose large matrices have few bits.

  Args:
    params: of huggingface.load or gguf.load, layers apart.
    kind: one of quantised.KINDS.
  """

  def one(weight: Unread, path: str, own: str) -> Quantised:
    for bits in (kind, own):  # of the model; of this weight, which may be more
      if is_ready(weight, path, bits):
        return _Ready(weight, path, bits).matrix()
    return _Rounded(weight, path, own).matrix()

  return quantised.over(params, kind, one)


def is_ready(weight: Any, path: str, kind: str) -> bool:
  """Says whether a file holds a weight as we would keep it.

  Args:
    weight: unread.
    path: of ours.
    kind: one of quantised.KINDS.
  """
  if not isinstance(weight, gguf.QuantisedWeight) or weight.shift:
    return False
  is_known = weight.tensor.tensor_type.name in _BLOCKS.get(kind, ())
  is_table = path.endswith(quantised.TABLE)
  return is_known and not (is_table and kind == "int4")


class _Source:
  """One matrix of a file; what was read of it is kept until it is dropped.

  Pieces are of whole outputs (rows of a table), so that blocks are whole.
  """

  def __init__(self, weight: Unread, path: str, kind: str) -> None:
    self.weight, self.path, self.kind = weight, path, kind
    self.is_table = path.endswith(quantised.TABLE)
    self._read: dict[tuple[int, int], Quantised] = {}

  def matrix(self) -> Quantised:
    """Returns the matrix, its arrays unread."""

    def one(path: tuple, leaf: Any) -> _Piece:
      name = jax.tree_util.keystr(path, simple=True)
      return _Piece(self, name, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, self._abstract())

  def piece(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Returns a piece of "values", "scales" or "offsets"."""
    inputs, outputs = index[::-1] if self.is_table else index
    count = self.weight.shape[0 if self.is_table else 1]
    start, stop, _ = outputs.indices(count)
    if (start, stop) not in self._read:
      self._read[start, stop] = self._of(slice(start, stop))
    found = getattr(self._read[start, stop], name)
    found = found[:, inputs] if self.is_table else found[inputs]
    return np.ascontiguousarray(found)

  def _abstract(self) -> Quantised:
    """Returns shapes and types of the arrays."""
    raise NotImplementedError

  def _of(self, outputs: slice) -> Quantised:
    """Returns some outputs, all their inputs."""
    raise NotImplementedError


class _Piece(Unread):
  """One array of a matrix of few bits."""

  def __init__(
    self, source: _Source, name: str, shape: tuple[int, ...], dtype: Any
  ) -> None:
    self._source, self._name = source, name
    self.shape, self.dtype = tuple(shape), np.dtype(dtype)

  def __getitem__(self, index: Any) -> np.ndarray:
    if index is Ellipsis:
      index = (slice(None),) * self.ndim
    return self._source.piece(self._name, tuple(index))


class _Rounded(_Source):
  """A matrix of float32 that is rounded to few bits."""

  def _abstract(self) -> Quantised:
    wide = jax.ShapeDtypeStruct(self.weight.shape, np.float32)
    make = functools.partial(quantised.quantise, path=self.path, kind=self.kind)
    return jax.eval_shape(make, wide)

  def _of(self, outputs: slice) -> Quantised:
    index = (outputs, slice(None)) if self.is_table else (slice(None), outputs)
    found = quantised.quantise(self.weight[index], self.path, self.kind)
    _check_scales(found, self.path)
    return found


class _Ready(_Source):
  """A matrix whose blocks stand in a GGUF file as ours do."""

  @property
  def _parts(self) -> tuple[str, ...]:
    return _BLOCKS[self.kind][self.weight.tensor.tensor_type.name]

  def _abstract(self) -> Quantised:
    inputs, outputs = self.weight.shape[:: -1 if self.is_table else 1]
    is_packed = self.kind == "int4"

    def shape(size: int, dtype: Any) -> jax.ShapeDtypeStruct:
      axes = (outputs, size) if self.is_table else (size, outputs)
      return jax.ShapeDtypeStruct(axes, dtype)

    values = shape(inputs, np.int8)
    if is_packed:
      values = shape(inputs // 2, np.uint8)
    found = {name: shape(inputs // BLOCK, np.float16) for name in self._parts}
    return Quantised(values, **found, is_packed=is_packed)

  def _of(self, outputs: slice) -> Quantised:
    rows = self.weight.rows
    stored = self.weight.tensor.data
    data = stored[outputs if rows is None else rows[outputs]]
    count = self.weight.shape[1 if self.is_table else 0] // BLOCK
    blocks = np.ascontiguousarray(data).reshape(len(data), count, -1)
    found = {
      name: np.ascontiguousarray(blocks[..., 2 * i : 2 * i + 2]).view(
        np.float16
      )[..., 0]
      for i, name in enumerate(self._parts)
    }
    numbers = blocks[..., 2 * len(self._parts) :].reshape(len(data), -1)
    found["values"] = numbers.view(np.int8) if self.kind == "int8" else numbers
    if not self.is_table:
      found = {name: array.T for name, array in found.items()}
    matrix = Quantised(**found, is_packed=self.kind == "int4")
    _check_scales(matrix, self.path)
    return matrix


def _check_scales(matrix: Quantised, path: str) -> None:
  """Raises UserError for scales that are no numbers."""
  for name in ("scales", "offsets"):
    found = getattr(matrix, name)
    if found is not None and not np.isfinite(found).all():
      raise UserError(
        f"{path}: its weights are NaN, or beyond what {name} of float16 hold. "
        "Copy or download the model again, or set model.quantize='none'."
      )
