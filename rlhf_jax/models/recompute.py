"""Layers that the backward pass computes again instead of keeping them.

Chen et al. 2016 (arXiv:1604.06174). jax.checkpoint sets a barrier in front of a
layer's second forward pass and leaves the order of the work to the compiler.
XLA for the CPU drops barriers before it orders: all layers may then be computed
again before the backward pass begins, or the gradients of all weights be put
off to its end, and either holds what was not to be held. There a layer's
backward pass is a branch here, taken for the slopes that reach it: a program of
its own that cannot begin before them, and ends before the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import Array, PyTree


def recomputed(run: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """Returns `run`, of which the backward pass holds the arguments alone.

  Args:
    run: of trees of arrays, to one.
  """

  @jax.custom_vjp
  def call(*arguments: PyTree) -> PyTree:
    return run(*arguments)

  def forward(*given: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
    moving = _chosen(given, lambda leaf: leaf.perturbed)
    still = _chosen(given, lambda leaf: not leaf.perturbed)
    return run(*_joined(moving, still)), (moving, still)

  def backward(kept: tuple[PyTree, PyTree], slopes: PyTree) -> PyTree:
    slopes = jax.tree.map(_whole, slopes, is_leaf=_is_zero)
    if mesh_lib.is_split():  # devices would have to agree on the branch
      found = _after_a_barrier(*kept, slopes, run=run)
    else:
      found = jax.lax.platform_dependent(
        *kept,
        slopes,
        cpu=functools.partial(_in_a_branch, run=run),
        default=functools.partial(_after_a_barrier, run=run),
      )
    # One structure whatever moves: jax 0.7.2 refuses another one.
    return _joined(found, jax.tree.map(_zero_slope, kept[1]))

  call.defvjp(forward, backward, symbolic_zeros=True)
  return call


def _gradients(
  moving: PyTree, still: PyTree, slopes: PyTree, run: Callable[..., PyTree]
) -> PyTree:
  _, back = jax.vjp(lambda moving: run(*_joined(moving, still)), moving)
  return back(slopes)[0]


def _after_a_barrier(
  moving: PyTree, still: PyTree, slopes: PyTree, run: Callable[..., PyTree]
) -> PyTree:
  barred = jax.lax.optimization_barrier((moving, still, slopes))
  return _gradients(*barred, run)


def _in_a_branch(
  moving: PyTree, still: PyTree, slopes: PyTree, run: Callable[..., PyTree]
) -> PyTree:
  """Returns the gradients; NaN where the first slope is not a number."""

  def lost(moving: PyTree, *_: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), moving)

  compute = functools.partial(_gradients, run=run)
  first = jax.tree.leaves(slopes)[0]
  first = first[(0,) * first.ndim]
  return jax.lax.cond(first == first, compute, lost, moving, still, slopes)


def _chosen(given: PyTree, is_chosen: Callable[[Any], bool]) -> PyTree:
  """Returns what is chosen of the arguments, None for the rest."""
  return jax.tree.map(
    lambda leaf: leaf.value if is_chosen(leaf) else None,
    given,
    is_leaf=lambda x: isinstance(x, CustomVJPPrimal),
  )


def _joined(moving: PyTree, still: PyTree) -> PyTree:
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    moving,
    still,
    is_leaf=lambda x: x is None,
  )


def _is_zero(x: Any) -> bool:
  return isinstance(x, SymbolicZero)


def _whole(slope: Any) -> Any:
  """Returns zeros where nothing depends on an output."""
  if not _is_zero(slope):
    return slope
  has_none = slope.dtype == jax.dtypes.float0
  return (np if has_none else jnp).zeros(slope.shape, slope.dtype)


def _zero_slope(x: Array) -> Any:
  if jnp.issubdtype(x.dtype, jnp.inexact):
    return jnp.zeros_like(x)
  return np.zeros(x.shape, jax.dtypes.float0)
