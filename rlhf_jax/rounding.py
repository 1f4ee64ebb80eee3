"""Weights that rest in bfloat16, trained: each update is rounded by chance.

A bfloat16 has 8 significant bits, so an update below 1/512 of its weight is
lost when the sum is rounded to the nearest; at the learning rates of RLHF
that is nearly all of them. Rounded up with the probability of what is cut off,

  E[round(p + u)] = p + u,

and many small updates move the weight as far as they would move a float32
(Gupta et al. 2015, arXiv:1502.02551; for training of language models Zamirai
et al. 2020, arXiv:2010.06192). No float32 master is kept; the moments and the
arithmetic of the optimizer are float32.

The random bits follow from the number of updates and a leaf's place in the
tree, so a run that goes on draws the same, on any mesh. They do not depend on
the run's seed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.types import Array, PyTree

SEED = 0x5EED


class State(NamedTuple):
  """What an optimizer of narrow weights keeps.

  count: [] int32, updates taken.
  inner: of the optimizer, in float32.
  """

  count: Array
  inner: optax.OptState


def is_narrow(tree: PyTree) -> bool:
  """Says whether a tree has bfloat16 leaves."""
  return any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(tree))


def stochastic_bfloat16(x: Array, key: Array) -> Array:
  """Returns x in bfloat16, rounded up or down by chance, right on average.

  Args:
    x: float32; NaN and infinity stay what they are.
    key: random key.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  cut = (bits + noise) & jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(cut, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _wide(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def init(inner: optax.GradientTransformation, params: PyTree) -> State:
  """Returns the state of an optimizer for narrow weights; see `update`."""
  return State(jnp.zeros([], jnp.int32), inner.init(_wide(params)))


def update(
  inner: optax.GradientTransformation,
  grads: PyTree,
  state: State,
  params: PyTree,
) -> tuple[PyTree, State]:
  """Returns updates of narrow weights and the next state.

  The updates, float32, lead from one bfloat16 to another, so that what adds
  them and rounds gets that number exactly.

  Args:
    inner: sees float32 gradients and weights only.
    grads: as the weights.
    state: of `init`.
    params: weights with bfloat16 leaves.
  """
  weights = _wide(params)
  updates, found = inner.update(_wide(grads), state.inner, weights)
  key = jax.random.fold_in(jax.random.key(SEED), state.count)
  leaves, structure = jax.tree.flatten(params)
  parts = zip(
    leaves, jax.tree.leaves(weights), jax.tree.leaves(updates), strict=True
  )
  rounded = [
    _to_bfloat16(weight, step, jax.random.fold_in(key, i))
    if leaf.dtype == jnp.bfloat16
    else step
    for i, (leaf, weight, step) in enumerate(parts)
  ]
  return jax.tree.unflatten(structure, rounded), State(state.count + 1, found)


def _to_bfloat16(weight: Array, update: Array, key: Array) -> Array:
  """Returns the step from a weight to where update rounds to by chance."""
  return stochastic_bfloat16(weight + update, key).astype(jnp.float32) - weight
