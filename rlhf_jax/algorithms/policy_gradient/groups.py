"""Statistics over the G samples of one prompt, which are contiguous rows.

  centred        x_i - mean_G x
  leave one out  x_i - mean_{j != i} x_j = G / (G - 1) (x_i - mean_G x)

Only answers that count enter (`weights`, from returns.exists); n of a group is
the number of those. A group where n < 2 teaches nothing: its rows become 0.
Dynamic sampling (DAPO) keeps the groups that `informative` marks.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import returns
from rlhf_jax.types import Array, Metrics, Rollout


def check_size(group_size: int, method: str) -> None:
  """Raises ValueError for groups of one (trap 19)."""
  if group_size < 2:
    raise ValueError(
      f"group_size={group_size}: {method} compares the answers of one prompt, "
      "so with one of them every advantage is 0. Set group_size and "
      "generate.num_samples >= 2."
    )


def split(x: Array, group_size: int) -> Array:
  """Returns [P, G] of x [N].

  Raises:
    ValueError: N is not a multiple of G.
  """
  if x.shape[0] % group_size:
    raise ValueError(
      f"group_size={group_size}: {x.shape[0]} rows do not split into groups of "
      "it. Set it to generate.num_samples; the samples of a prompt are "
      "contiguous rows."
    )
  return x.reshape(-1, group_size)


def _parts(
  x: Array, weights: Array, group_size: int
) -> tuple[Array, Array, Array]:
  """Returns x minus its group mean [P, G], weights [P, G], counts [P, 1]."""
  weights = split(weights, group_size)
  x = ops.neutral(split(x, group_size), weights)
  count = jnp.sum(weights, axis=1, keepdims=True)
  mean = jnp.sum(x * weights, axis=1, keepdims=True) / jnp.maximum(count, 1.0)
  is_flat = _spans(x, weights) == 0.0  # rounding of the mean must not count
  return jnp.where(is_flat[:, None], 0.0, (x - mean) * weights), weights, count


def _spans(x: Array, weights: Array) -> Array:
  """Returns [P] max - min over the answers that count, 0 for none."""
  top = jnp.max(jnp.where(weights > 0, x, -jnp.inf), axis=1)
  bottom = jnp.min(jnp.where(weights > 0, x, jnp.inf), axis=1)
  return jnp.where(jnp.any(weights > 0, axis=1), top - bottom, 0.0)


def centred(x: Array, weights: Array, group_size: int) -> Array:
  """Returns [N] x minus the mean of its group, exactly 0 in equal groups.

  Args:
    x: [N].
    weights: [N], 1 on answers that count, 0 on others.
    group_size: G.
  """
  return _parts(x, weights, group_size)[0].reshape(-1)


def leave_one_out(x: Array, weights: Array, group_size: int) -> Array:
  """Returns [N] x minus the mean of the others in its group.

  Args: as in `centred`. An answer without others gets 0.
  """
  difference, _, count = _parts(x, weights, group_size)
  scale = jnp.where(count > 1, count / jnp.maximum(count - 1.0, 1.0), 0.0)
  return (difference * scale).reshape(-1)


def deviations(x: Array, weights: Array, group_size: int) -> Array:
  """Returns [N] the sample deviation (n - 1) of each row's group, 0 if n < 2.

  Args: as in `centred`.
  """
  difference, _, count = _parts(x, weights, group_size)
  square = jnp.sum(jnp.square(difference), axis=1, keepdims=True)
  deviation = jnp.sqrt(square / jnp.maximum(count - 1.0, 1.0))
  return jnp.broadcast_to(deviation, difference.shape).reshape(-1)


def informative(score: Array, weights: Array, group_size: int) -> Array:
  """Returns [P] bool: which groups have answers of different scores.

  For scores of 0 and 1 these are the groups with 0 < correct < G, which are
  all that dynamic sampling keeps (Yu et al. 2025, section 3.2).

  Args:
    score: [N].
    weights: [N], 1 on answers that count.
    group_size: G.
  """
  score, weights = split(score, group_size), split(weights, group_size)
  return _spans(score, weights) > 0.0


def metrics(
  rollout: Rollout,
  group_size: int,
  correct_above: float | None = None,
  answered: Array | None = None,
) -> Metrics:
  """Returns what to watch in the groups of a judged rollout.

  Metrics:
    group/std: mean deviation (n - 1) of the score within a group. Towards 0
      is bad: nothing to learn from.
    group/zero_variance_share: groups of equal scores. Towards 1 is bad.
    group/advantage_std: of advantages over answers' tokens. Towards 0 is bad.
    group/pass1, group/passG: share of answers, and of groups with an answer,
      whose score is above `correct_above`; absent when that is None. Answers
      count that missing_eos="mask" takes out of the loss. Falling is bad;
      passG that falls while pass1 rises is a loss of diversity.

  Args:
    rollout: unpacked, with score; with advantages for group/advantage_std.
    group_size: G.
    correct_above: a score above it is a correct answer.
    answered: [N], 1 on all answers that there are; None for those that count.
  """
  weights = returns.exists(rollout)
  score = rollout.score.astype(jnp.float32)
  counts = jnp.any(split(weights, group_size) > 0, axis=1) * 1.0
  flat = 1.0 - informative(score, weights, group_size) * 1.0
  deviation = deviations(score, weights, group_size)
  found = {
    "group/std": ops.masked_mean(split(deviation, group_size)[:, 0], counts),
    "group/zero_variance_share": ops.masked_mean(flat, counts),
  }
  if rollout.advantages is not None:
    variance = ops.masked_variance(rollout.advantages, rollout.response_mask)
    found["group/advantage_std"] = jnp.sqrt(variance)
  if correct_above is not None:
    answered = weights if answered is None else answered
    is_correct = (score > correct_above) * answered
    any_correct = jnp.max(split(is_correct, group_size), axis=1)
    any_answered = jnp.max(split(answered, group_size), axis=1)
    found["group/pass1"] = ops.masked_mean(is_correct, answered)
    found["group/passG"] = ops.masked_mean(any_correct, any_answered)
  return found
