"""Frozen matrices of few bits, widened where they are used and not before.

  int8  w = s n + o    n in 0..255; a scale s and an offset o for 16 inputs of
                       an output
  int4  w = s NF4[n]   n in 0..15, two in a byte; s for 32 inputs; NF4 are
                       quantiles of a normal distribution
  Q8_0  w = s n        n in -127..127; s for 32 inputs; this and the next are
                       blocks of GGUF files
  Q4_0  w = s (n - 8)
  Q4_1  w = s n + o

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) trains factors beside such a
base. The backward pass of `matmul` widens again: no wide matrix is kept for
it, and none has a gradient. Where factors are to be merged (models/lora.py)
they stay beside the matrix, which cannot hold the sum.

Which matrix has which bits is in `kind_of`. What it costs in nats is printed
by `python -m benchmarks.quantisation`; why it is so: docs/quantisation.md.
Left out: activations of few bits, formats that need data (GPTQ, AWQ), scales
that are quantised again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import products
from rlhf_jax.models import trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree

KINDS = ("none", "int8", "int4")
BLOCKS = {"int8": 16, "int4": 32}  # inputs that share a scale
SMALLEST = 8  # inputs of a block, where these do not divide
TABLE = "embedding/embedding"  # ends the path of what has rows and no inputs
# Of QLoRA, appendix E: from -1 to 1, one of them 0.
NF4 = (
  *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
  *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
  *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
  *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
  *(0.7229568362236023, 1.0),
)


@flax.struct.dataclass
class Quantised:
  """A matrix [..., in, out], or a table [rows, D], of few bits.

  values: bfloat16, int8 or uint8 of its shape; or uint8 [..., in / 2, out],
    the lower halves of the bytes of a block being its first inputs.
  scales: float, [..., in / block, out]; of a table [rows, D / block]; None of
    bfloat16.
  offsets: as scales, or None.
  factors: {"lora_a" [..., in, r], "lora_b" [..., r, out]} of each adapter
    that was merged; `strengths` are their s.
  is_packed: whether two numbers are in a byte.
  is_normal: whether numbers are places in NF4.
  """

  values: Array
  scales: Array | None = None
  offsets: Array | None = None
  factors: tuple[dict[str, Array], ...] = ()
  strengths: tuple[float, ...] = flax.struct.field(
    pytree_node=False, default=()
  )
  is_packed: bool = flax.struct.field(pytree_node=False, default=False)
  is_normal: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the matrix."""
    *leading, inputs, out = self.values.shape
    return (*leading, inputs * (2 if self.is_packed else 1), out)

  def whole(self, path: str) -> Quantised:
    """Returns the matrix, inside jit, gathered over "fsdp" in few bits.

    Args:
      path: of the weight, as in the table of parallel/rules.py.
    """

    def one(tail: tuple, leaf: Array) -> Array:
      name = jax.tree_util.keystr(tail, simple=True, separator="/")
      return rules.gather(f"{path}/{name}", leaf)

    return jax.tree_util.tree_map_with_path(one, self)

  def with_factors(self, a: Array, b: Array, strength: float) -> Quantised:
    """Returns the matrix that also means s A B more."""
    return self.replace(
      factors=(*self.factors, {"lora_a": a, "lora_b": b}),
      strengths=(*self.strengths, strength),
    )


def widen(matrix: Quantised, dtype: Any, after: Array | None = None) -> Array:
  """Returns the numbers of a matrix, without its factors.

  Args:
    matrix: all axes.
    dtype: of the result; multiplied in float32.
    after: an array that must be there first, inside jit. A loop whose body
      makes it cannot widen all of its matrices beforehand.
  """
  values, scales, offsets = matrix.values, matrix.scales, matrix.offsets
  if after is not None:
    values, scales, offsets, after = jax.lax.optimization_barrier(
      (values, scales, offsets, after)
    )
  if scales is None:
    values = values if after is None else values + _zero(after, values.dtype)
    return values.astype(dtype)
  numbers = _unpacked(values, scales.shape[-2]) if matrix.is_packed else values
  # [..., blocks, block, out], or [rows, blocks, block] of a table
  axis = -2 if scales.shape[-1] == numbers.shape[-1] else -1
  cut = numbers.ndim + axis
  count = scales.shape[axis]
  size = numbers.shape[axis] // count
  split = numbers.reshape(
    *numbers.shape[:cut], count, size, *numbers.shape[cut + 1 :]
  )
  levels = _levels(split, matrix)
  scales = scales.astype(jnp.float32)
  scales = scales if after is None else scales + _zero(after, scales.dtype)
  wide = levels * jnp.expand_dims(scales, cut + 1)
  if offsets is not None:
    wide = wide + jnp.expand_dims(offsets.astype(jnp.float32), cut + 1)
  return wide.astype(dtype).reshape(numbers.shape)


def _zero(after: Array, dtype: Any) -> Array:
  """Returns [] 0, which a compiler cannot know before it has an array.

  On one device it keeps an order that a CPU's compiler forgets, which drops
  the barriers before it orders its work. On several it would be sent around,
  so there the barrier has to do.
  """
  if mesh_lib.is_split():
    return jnp.zeros((), dtype)
  bits = {2: jnp.int16, 4: jnp.int32}[after.dtype.itemsize]
  first = jax.lax.bitcast_convert_type(after[(0,) * after.ndim], bits)
  return jnp.minimum(first & 1, 0).astype(dtype)


def _levels(numbers: Array, matrix: Quantised) -> Array:
  """Returns float32: what numbers are before scale and offset."""
  if matrix.is_normal:
    found: list[Any] = list(NF4)
    for bit in range(4):  # a tree of choices: accelerators look up slowly
      is_set = (numbers >> bit) & 1 > 0
      pairs = zip(found[::2], found[1::2], strict=True)
      found = [
        jnp.where(is_set, jnp.float32(one), jnp.float32(zero))
        if isinstance(one, float)
        else jnp.where(is_set, one, zero)
        for zero, one in pairs
      ]
    return found[0]
  is_centred = matrix.is_packed and matrix.offsets is None
  return numbers.astype(jnp.float32) - (8.0 if is_centred else 0.0)


def _unpacked(values: Array, blocks: int) -> Array:
  """Returns a number each of values with two in a byte."""
  *leading, half, out = values.shape
  pairs = values.reshape(*leading, blocks, half // blocks, out)
  both = jnp.concatenate([pairs & 15, pairs >> 4], axis=-2)
  return both.reshape(*leading, 2 * half, out)


@jax.custom_vjp
def matmul(x: Array, matrix: Quantised) -> Array:
  """Returns x W in the dtype of x, W without its factors.

  Args:
    x: [M, in].
    matrix: [in, out]; it has no gradient.
  """
  return jnp.matmul(x, widen(matrix, x.dtype, after=x))


def _matmul_forward(x: Array, matrix: Quantised) -> tuple[Array, Quantised]:
  return matmul(x, matrix), matrix


def _matmul_backward(matrix: Quantised, gradient: Array) -> tuple[Array, None]:
  wide = widen(matrix, gradient.dtype, after=gradient)
  return jnp.matmul(gradient, wide.T), None


matmul.defvjp(_matmul_forward, _matmul_backward)


def product(x: Array, matrix: Quantised) -> Array:
  """Returns x (W + s A B), as a layer with factors beside W computes it.

  Args:
    x: [M, in].
    matrix: [in, out].
  """
  y = matmul(x, matrix.replace(factors=(), strengths=()))
  for factor, s in zip(matrix.factors, matrix.strengths, strict=True):
    a, b = (factor[name].astype(x.dtype) for name in ("lora_a", "lora_b"))
    y = y + products.product(s * products.product(x, a), b)
  return y


def rows(table: Quantised, index: Array) -> Array:
  """Returns [..., D] float32, the rows `index` [...] of a table."""
  taken = jax.tree.map(lambda x: jnp.take(x, index, axis=0), table)
  return widen(taken, jnp.float32)


def merged(matrix: Quantised) -> Array:
  """Returns W + s A B of all factors, float32: for export, never for a run."""
  wide = widen(matrix, jnp.float32)
  for factor, s in zip(matrix.factors, matrix.strengths, strict=True):
    a, b = factor["lora_a"], factor["lora_b"]
    wide = wide + s * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  return wide


def kind_of(path: str, kind: str) -> str:
  """Returns how a weight is kept.

  Errors of the values' projection, of which few heads have many readers, and
  of what makes logits count most: they have more bits.

  Args:
    path: names joined by "/".
    kind: of the model, one of KINDS.

  Returns:
    "int8", "int4", "bfloat16", or "none" for as it is.
  """
  if path.endswith((f"/{TABLE}", "lm_head/kernel")) or path == TABLE:
    return "int8" if kind == "int4" else kind
  if not path.endswith("_proj/kernel"):
    return "none"
  if path.endswith("v_proj/kernel"):
    return {"int8": "bfloat16", "int4": "int8"}.get(kind, kind)
  return kind


def quantise(weight: Any, path: str, kind: str) -> Quantised:
  """Returns a matrix [..., in, out] or a table [rows, D] in few bits.

  Args:
    weight: float, in numpy, or in jax where it may be traced.
    path: of the weight.
    kind: "bfloat16", "int8" or "int4".

  Raises:
    UserError: no block of a useful size divides its inputs.
  """
  if kind == "bfloat16":
    return Quantised(weight.astype(jnp.bfloat16))
  axis = -1 if path.endswith(TABLE) else -2
  block = block_size(weight.shape[axis], path, kind)
  cut = weight.ndim + axis
  shape = (*weight.shape[:cut], -1, block, *weight.shape[cut + 1 :])
  wide = weight.astype(np.float32).reshape(shape)
  library = np if isinstance(weight, np.ndarray) else jnp
  make = _in_8_bits if kind == "int8" else _in_4_bits
  return make(library, wide, cut + 1, weight.shape)


def block_size(inputs: int, path: str, kind: str) -> int:
  """Returns how many inputs share a scale."""
  size = math.gcd(inputs, BLOCKS[kind])
  if size < SMALLEST:
    raise UserError(
      f"{path}: {kind} keeps {BLOCKS[kind]} inputs in a block, and {inputs} "
      f"inputs divide into blocks of {size} at most. Set model.quantize="
      "'none'."
    )
  return size


def _in_8_bits(lib: Any, wide: Any, axis: int, shape: tuple) -> Quantised:
  """Returns 256 even steps from the least to the largest of each block."""
  least = lib.min(wide, axis=axis, keepdims=True)
  span = lib.max(wide, axis=axis, keepdims=True) - least
  offsets = least.astype(np.float16)
  step = (span / np.float32(255)).astype(np.float16)
  scales = lib.where(step > 0, step, np.float16(1.0))
  ratio = (wide - offsets.astype(np.float32)) / scales.astype(np.float32)
  values = lib.clip(lib.round(ratio), 0, 255).astype(np.uint8).reshape(shape)
  return Quantised(
    values, lib.squeeze(scales, axis), lib.squeeze(offsets, axis)
  )


def _in_4_bits(lib: Any, wide: Any, axis: int, shape: tuple) -> Quantised:
  """Returns the nearest of NF4, scaled to the largest size of each block."""
  largest = lib.max(lib.abs(wide), axis=axis, keepdims=True).astype(np.float16)
  scales = lib.where(largest > 0, largest, np.float16(1.0))
  levels = np.asarray(NF4, np.float32)
  between = (levels[1:] + levels[:-1]) / 2
  ratio = wide / scales.astype(np.float32)
  numbers = lib.searchsorted(between, ratio.reshape(-1)).astype(np.uint8)
  first, second = lib.split(numbers.reshape(wide.shape), 2, axis=axis)
  *leading, inputs, out = shape
  values = (first | (second << 4)).reshape(*leading, inputs // 2, out)
  return Quantised(
    values, lib.squeeze(scales, axis), is_packed=True, is_normal=True
  )


def quantise_tree(params: PyTree, kind: str) -> PyTree:
  """Returns a parameter tree whose large matrices have few bits.

  Args:
    params: base parameters, arrays; inside jit, or of shapes through
      jax.eval_shape.
    kind: one of KINDS.
  """
  return over(params, kind, quantise)


def over(
  params: PyTree, kind: str, make: Callable[[Any, str, str], Any]
) -> PyTree:
  """Returns the tree with make(weight, path, kind) in place of matrices."""
  flat = trees.flatten(params)
  for path, weight in flat.items():
    own = kind_of(path, kind)
    if own != "none" and not isinstance(weight, Quantised):
      flat[path] = make(weight, path, own)
  return trees.unflatten(flat)


def check_none_trains(trainable: PyTree, mode: str) -> None:
  """Raises UserError for a matrix of few bits among what trains.

  Args:
    trainable: leaves that train.
    mode: of the role, for the message.
  """
  for path, weight in trees.flatten(trainable).items():
    if isinstance(weight, Quantised):
      raise UserError(
        f"{path} would train (trainable={mode!r}) and has few bits: its steps "
        "are larger than an update. Set model.quantize='none', or train 'lora' "
        "or a 'head'."
      )
