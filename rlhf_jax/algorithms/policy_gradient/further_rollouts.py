"""Answers that a method wants beside its samples: to the same prompts, drawn
otherwise.

A method that wants some defines, in its module,

  further(config) -> {name: {field of the sampling settings: value, ...}, ...}

such as remax.py's greedy answers. Each is the step's own sampling with these
fields changed, by the same policy, judged by the same judges. `attach` shapes
their scores by the rules of the samples, without KL; `advantages` finds them in
rollout.further[name] and hands the rollout on without them, so nothing of them
reaches the update. They enter no running moments.

The rows of a prompt's further answers are contiguous, prompts in the order of
the samples: with num_samples=M they are [P M], while the samples are [P G].
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.types import Array, Rollout


def attach(
  rollout: Rollout,
  further: Mapping[str, Rollout],
  moments: shaping.Moments,
  config: shaping.Config,
) -> Rollout:
  """Returns the rollout with further ones, whose score is the shaped one.

  Args:
    rollout: [N, L], after shape_rewards.
    further: name -> judged and not packed; {} for a method that wants none.
    moments: as returned by `shape_rewards` for the samples.
    config: settings of the reward.

  Raises:
    ValueError: a further rollout is packed.
  """
  for name, other in further.items():
    if other.segment_ids is not None:
      raise ValueError(
        f"further[{name!r}].segment_ids is set: a packed rollout has several "
        "answers per row and one score per answer. Judge it without packing."
      )
  return rollout.replace(
    further={
      name: other.replace(score=shaping.shaped_scores(other, moments, config))
      for name, other in further.items()
    }
  )


def named(rollout: Rollout, name: str, method: str) -> Rollout:
  """Returns rollout.further[name].

  Args:
    rollout: from `attach`.
    name: of the further rollout.
    method: that wants it, for the message.

  Raises:
    ValueError: it is not there.
  """
  if name not in rollout.further:
    raise ValueError(
      f"rollout.further has {sorted(rollout.further)}: {method} needs "
      f"{name!r}. Sample and judge what `further` of its module says, then "
      "further_rollouts.attach."
    )
  return rollout.further[name]


def per_sample(x: Array, rows: int, name: str) -> Array:
  """Returns [N] float32 of x [P]: each prompt's number on all its samples.

  Args:
    x: [P], one number per prompt.
    rows: N, the samples; those of a prompt are contiguous rows.
    name: what x is, for the message.

  Raises:
    ValueError: the rows do not split into P groups.
  """
  prompts = x.shape[0]
  if rows % prompts:
    raise ValueError(
      f"{name} has {prompts} prompts: {rows} rows do not split into their "
      "groups. Give one per prompt, in prompt order."
    )
  return jnp.repeat(x.astype(jnp.float32), rows // prompts)
