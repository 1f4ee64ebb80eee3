"""The weighted sum of standardised scores: one reward of several judges.

  score = sum_k w_k z_k

over the judges that judge the answer; z_k as components.py says. With the KL
in the reward the optimum is p_ref exp(sum_k w_k z_k / beta) / Z, the tilt
by the sum. METHODS 2.7. Only one point of the front between the objectives is
reached with one set of weights; a sweep over weights draws it (docs/
objectives.md), where it is convex.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax.algorithms.combination import components
from rlhf_jax.types import Array, Components, Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a weighted sum; the weights are those of the judges."""

  by: str = ""  # field of a prompt that says of what kind it is, where judges
  # have `kinds`; "": all judge all


def check(judges: components.Judges, config: Config) -> None:
  """Raises ValueError unless these judges can be summed."""
  del config
  if not any(judge.weight for judge in judges):
    raise ValueError(
      "judges: all weights are 0, so every answer would score 0. Set one."
    )


def init(judges: components.Judges, config: Config) -> PyTree:
  """Returns what a run carries from rollout to rollout."""
  del config
  return {"moments": components.init_moments(len(judges))}


def observe(
  state: PyTree,
  found: Components,
  counts: Array,
  judges: components.Judges,
  config: Config,
) -> PyTree:
  """Returns the state with the scores of a batch seen.

  Args:
    state: so far.
    found: conditioned.
    counts: [N], 1 on answers that count.
    judges: K.
    config: settings.
  """
  del judges, config
  mask = found.mask * counts[:, None]
  return {"moments": components.observe(state["moments"], found.values, mask)}


def combine(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Array:
  """Returns [N] float32 scores.

  Args:
    found: conditioned.
    state: from `init` and `observe`.
    judges: K.
    config: settings.
  """
  del config
  z = components.scaled(found, state["moments"], judges)
  return jnp.sum(components.weights(judges)[None] * z, axis=1)


def details(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Metrics:
  """Returns {name: [N]} to log beside the scores: nothing."""
  del found, state, judges, config
  return {}
