"""What the losses on pairs of answers share: sums, labels, metrics.

Candidate 0 is the preferred one with probability `label`; every pairwise loss
is linear in it,

  L = p l(0 beats 1) + (1 - p) l(1 beats 0),

so soft labels and ties (1/2) need no rule of their own. A log-probability of
an answer is the sum over its tokens, end token included, or that sum divided
by their number where a method says "average" (METHODS N12, trap 26).

Metrics of a loss are {name: (x [B], rows [B])}: the metric is the mean of x
over the rows where `rows` is 1, so that it can be summed over microbatches.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array, PreferenceBatch

Counted = dict[str, tuple[Array, Array]]


def check_pair(batch: PreferenceBatch, method: str) -> None:
  """Raises ValueError unless each prompt has two candidates."""
  candidates = batch.tokens.shape[1]
  if candidates != 2:
    raise ValueError(
      f"tokens have K={candidates} candidates: {method} compares 2. Give "
      "[B, 2, L], the preferred one first."
    )


def check_positive(**fields: float) -> None:
  """Raises ValueError for a field of a Config that is not above 0."""
  for name, value in fields.items():
    if not value > 0.0:
      raise ValueError(f"{name}={value}: must be > 0.")


def check_not_negative(**fields: float) -> None:
  """Raises ValueError for a field of a Config that is below 0."""
  for name, value in fields.items():
    if not value >= 0.0:
      raise ValueError(f"{name}={value}: must be >= 0.")


def lengths(batch: PreferenceBatch) -> Array:
  """Returns [B, K], the response tokens of each candidate, float32."""
  return jnp.sum(batch.loss_mask, axis=-1)


def sums(logprobs: Array, batch: PreferenceBatch) -> Array:
  """Returns [B, K], log p(answer | prompt) in nats; prompts do not count.

  Args:
    logprobs: [B, K, L] float32, anything where loss_mask is 0.
    batch: these rows.
  """
  mask = batch.loss_mask
  ops.check_same_shape(logprobs=logprobs, loss_mask=mask)
  return jnp.sum(ops.neutral(logprobs, mask) * mask, axis=-1)


def averages(logprobs: Array, batch: PreferenceBatch) -> Array:
  """Returns [B, K], log p(answer | prompt) per token of the answer."""
  return sums(logprobs, batch) / jnp.maximum(lengths(batch), 1.0)


def log_ratios(
  logprobs: Array, batch: PreferenceBatch, *, is_average: bool = False
) -> Array:
  """Returns [B, K], log p(answer) - log p_ref(answer) in nats.

  Args:
    logprobs: [B, K, L] float32, of the policy.
    batch: with reference_logprobs [B, K, L], which get no gradient because
      they are data.
    is_average: divided by the tokens of the answer.

  Raises:
    ValueError: the batch has no reference_logprobs.
  """
  if batch.reference_logprobs is None:
    raise ValueError(
      "reference_logprobs=None: this loss compares with a reference policy. "
      "Compute them once with the policy before training and store them in "
      "the batch."
    )
  mask = batch.loss_mask
  reference = ops.neutral(batch.reference_logprobs, mask)
  difference = ops.neutral(logprobs, mask) - reference
  return (averages if is_average else sums)(difference, batch)


def mixed(label: Array, first: Array, second: Array) -> Array:
  """Returns [B], `first` with weight label and `second` with the rest."""
  return label * first + (1.0 - label) * second


def metrics(scores: Array, logprobs: Array, batch: PreferenceBatch) -> Counted:
  """Returns what every pairwise loss reports; ties do not count.

  Metrics:
    preference/accuracy: share of pairs that the scores order as labelled. Down
      is bad.
    preference/margin: score of the better minus score of the worse. Below 0
      is bad.
    preference/reward_chosen, preference/reward_rejected: the two scores. Both
      falling is likelihood displacement: the preferred answers become unlikely
      too.
    preference/logprob_chosen, preference/logprob_rejected: nats an answer, of
      the policy. As above.
    preference/tokens_chosen, preference/tokens_rejected: a constant gap is
      a length bias of the data.

  Args:
    scores: [B, 2], what the method compares (an implicit reward).
    logprobs: [B, 2, L] of the policy.
    batch: these rows.
  """
  is_first = batch.label >= 0.5
  decided = (batch.label != 0.5).astype(jnp.float32)

  def better_and_worse(x: Array) -> tuple[Array, Array]:
    return (
      jnp.where(is_first, x[:, 0], x[:, 1]),
      jnp.where(is_first, x[:, 1], x[:, 0]),
    )

  rows = {}
  for name, x in (
    ("reward", scores),
    ("logprob", sums(logprobs, batch)),
    ("tokens", lengths(batch)),
  ):
    rows[f"preference/{name}_chosen"], rows[f"preference/{name}_rejected"] = (
      better_and_worse(x)
    )
  rows["preference/margin"] = (
    rows["preference/reward_chosen"] - rows["preference/reward_rejected"]
  )
  rows["preference/accuracy"] = (rows["preference/margin"] > 0).astype(
    jnp.float32
  )
  return {name: (x, decided) for name, x in rows.items()}
