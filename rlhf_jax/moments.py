"""Adam whose two moments rest in 8 bits a number.

  m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
  step = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)

The arithmetic is Adam's, in float32. Between steps m and sqrt(v) are codes of
the dynamic map, 256 numbers over seven decades, times the largest magnitude
of their block: 2.13 bytes a parameter for both, where float32 takes 8.

Dettmers et al. 2022, arXiv:2110.02861, sections 2.1 and 3. Differs in three
things. sqrt(v) is stored and not v, so that the codes span twice the decades
of v. What is above 0 never becomes 0, or a moment that was lost would divide
by epsilon alone. A block is BLOCK numbers along one axis of the array and not
2048 of the flattened one, so codes lie on a mesh as their parameter does.
As there, arrays below LEAST numbers stay in float32, and so do those that no
axis of cuts into blocks.

Left out: paging of the state, percentile clipping.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.types import Array, PyTree

BLOCK = 64  # numbers that share a scale
LEAST = 4096  # numbers of an array that is worth it
_DECADES = 7


class State(NamedTuple):
  """Moments at rest; each tree has the paths of the parameters.

  count: [] int32, steps taken.
  mu_codes, nu_codes: uint8, as the parameter; float32 moments where it is not
    quantised (nu_codes then holds v itself).
  mu_scales, nu_scales: float32, as the parameter but for one axis, BLOCK times
    shorter; [] where it is not quantised.
  """

  count: Array
  mu_codes: PyTree
  mu_scales: PyTree
  nu_codes: PyTree
  nu_scales: PyTree


@functools.lru_cache(maxsize=2)
def dynamic_map(*, is_signed: bool) -> np.ndarray:
  """Returns the 256 numbers of the codes, ascending, the largest 1.

  Each decade has twice as many as the one below it: 64 (128 without a sign)
  between 0.1 and 1.
  """
  found = [0.0, 1.0]
  for i in range(_DECADES):
    count = 2 ** (i if is_signed else i + 1)
    borders = np.linspace(0.1, 1.0, count + 1)
    means = (borders[:-1] + borders[1:]) / 2 * 10.0 ** (i + 1 - _DECADES)
    found += [*means, *(-means if is_signed else ())]
  return np.sort(np.asarray(found, np.float32))


def block_axis(shape: tuple[int, ...]) -> int | None:
  """Returns the axis that blocks lie along, None where nothing is quantised.

  The largest of the last two that BLOCK divides, the last of equals; on a mesh
  it is, in most kernels, the one that "fsdp" does not split.
  """
  last = range(max(0, len(shape) - 2), len(shape))
  able = [axis for axis in last if shape[axis] % BLOCK == 0]
  if not able or np.prod(shape) < LEAST:
    return None
  return max(able, key=lambda axis: (shape[axis], axis))


def _in_blocks(x: Array, axis: int) -> Array:
  """Returns x with its axis cut in two: blocks, and numbers of a block."""
  shape = (*x.shape[:axis], -1, BLOCK, *x.shape[axis + 1 :])
  return x.reshape(shape)


def quantise(x: Array, axis: int, *, is_signed: bool) -> tuple[Array, Array]:
  """Returns (codes uint8 as x, scales float32).

  Args:
    x: float32; without a sign at least 0.
    axis: of blocks.
    is_signed: which map.
  """
  table = dynamic_map(is_signed=is_signed)
  parts = _in_blocks(x, axis)
  scales = jnp.max(jnp.abs(parts), axis=axis + 1, keepdims=True)
  unit = parts / jnp.where(scales > 0, scales, 1.0)
  middles = jnp.asarray((table[1:] + table[:-1]) / 2)
  codes = jnp.searchsorted(middles, unit)
  if not is_signed:
    codes = jnp.where(unit > 0, jnp.maximum(codes, 1), 0)
  codes = codes.astype(jnp.uint8).reshape(x.shape)
  return codes, jnp.squeeze(scales, axis + 1)


def dequantise(
  codes: Array, scales: Array, axis: int, *, is_signed: bool
) -> Array:
  """Returns the float32 numbers of codes; see `quantise`."""
  table = jnp.asarray(dynamic_map(is_signed=is_signed))
  parts = _in_blocks(table[codes], axis)
  return (parts * jnp.expand_dims(scales, axis + 1)).reshape(codes.shape)


def _at_rest(x: Array, *, is_signed: bool) -> tuple[Array, Array]:
  """Returns codes and scales of a moment, or itself and 0."""
  axis = block_axis(x.shape)
  if axis is None:
    return x, jnp.float32(0.0)
  return quantise(x if is_signed else jnp.sqrt(x), axis, is_signed=is_signed)


def _moment(codes: Array, scales: Array, *, is_signed: bool) -> Array:
  """Returns a moment in float32; the inverse of `_at_rest`."""
  axis = block_axis(codes.shape)
  if axis is None:
    return codes
  found = dequantise(codes, scales, axis, is_signed=is_signed)
  return found if is_signed else jnp.square(found)


def scale_by_adam_8bit(
  beta1: float, beta2: float, epsilon: float
) -> optax.GradientTransformation:
  """Returns Adam as optax.scale_by_adam, its moments in 8 bits.

  Args:
    beta1, beta2: decay of the moments.
    epsilon: added to the divisor.
  """

  def rest(tree: PyTree, *, is_signed: bool) -> tuple[PyTree, PyTree]:
    pairs = jax.tree.map(lambda x: _at_rest(x, is_signed=is_signed), tree)
    return jax.tree.transpose(
      jax.tree.structure(tree), jax.tree.structure((0, 0)), pairs
    )

  def init(params: PyTree) -> State:
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return State(
      jnp.zeros([], jnp.int32),
      *rest(zeros, is_signed=True),
      *rest(zeros, is_signed=False),
    )

  def update(grads, state, params=None):
    del params
    count = state.count + 1
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    mu = jax.tree.map(
      lambda c, s, g: beta1 * _moment(c, s, is_signed=True) + (1 - beta1) * g,
      state.mu_codes,
      state.mu_scales,
      wide,
    )
    nu = jax.tree.map(
      lambda c, s, g: (
        beta2 * _moment(c, s, is_signed=False) + (1 - beta2) * jnp.square(g)
      ),
      state.nu_codes,
      state.nu_scales,
      wide,
    )
    first, second = 1 - beta1**count, 1 - beta2**count
    updates = jax.tree.map(
      lambda m, v, g: ((m / first) / (jnp.sqrt(v / second) + epsilon)).astype(
        g.dtype
      ),
      mu,
      nu,
      grads,
    )
    return updates, State(
      count, *rest(mu, is_signed=True), *rest(nu, is_signed=False)
    )

  return optax.GradientTransformation(init, update)
