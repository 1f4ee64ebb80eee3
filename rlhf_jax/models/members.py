"""The members of an ensemble of reward models on one trunk.

Each has a head; those are stacked on their first axis. Where each has LoRA
factors too, these are stacked alike and the layers that they are in run once a
member; the frozen layers below run once for all (outputs.py).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.models import heads
from rlhf_jax.types import Array

STACKED = ("head", "lora")


def each(count: int, key: Array, make: Callable[[Array], dict]) -> dict:
  """Returns make(key) of each member, stacked; i is folded into its key.

  Args:
    count: of members.
    key: random key.
    make: key -> parameters of one.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
  return jax.vmap(make)(keys)


def head_scores(
  config: heads.Config, members: int, head: dict, features: Array
) -> Array:
  """Returns [..., K] scores of features; of M members [..., M K].

  The K outputs of a member are beside each other.

  Args:
    config: of the head.
    members: M.
    head: parameters, stacked where M > 1.
    features: [..., F].
  """
  net = heads.ScalarHead(config)
  if members == 1:
    return net.apply({"params": head}, features)

  def one(its: dict) -> Array:
    return net.apply({"params": its}, features)

  found = jax.vmap(one, out_axes=-2)(head)
  return found.reshape(*found.shape[:-2], -1)


def by_member(variables: dict, score: Callable[[dict], Array]) -> Array:
  """Returns [..., M K] of members with factors of their own.

  One after the other in one compiled loop.

  Args:
    variables: {"params", "lora", "head"} of the ensemble.
    score: the variables of a member -> [..., K].
  """
  own, shared = parted(variables, own_factors=True)
  found = jnp.moveaxis(jax.lax.map(lambda its: score(shared | its), own), 0, -2)
  return found.reshape(*found.shape[:-2], -1)


def parted(variables: dict, *, own_factors: bool) -> tuple[dict, dict]:
  """Returns what each member has of its own, stacked, and what all share.

  Args:
    variables: {"params", "lora"?, "head"} of the ensemble.
    own_factors: whether each has factors of its own.
  """
  stacked = STACKED if own_factors else ("head",)
  own = {name: tree for name, tree in variables.items() if name in stacked}
  return own, {k: tree for k, tree in variables.items() if k not in own}
