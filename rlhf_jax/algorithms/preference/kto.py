"""Kahneman-Tversky optimisation (KTO): answers that are liked or not.

  L = lambda_D (1 - s(beta (u - z)))   for a desirable answer
      lambda_U (1 - s(beta (z - u)))   for an undesirable one
  u = log pi(y|x) - log pi_ref(y|x),   z = max(0, mean of u over (x_i, y_j))

z estimates KL(pi || pi_ref) from mismatched pairs, a prompt with the answer to
another, over the whole batch and without gradient. Ethayarajh et al. 2024,
arXiv:2402.01306, eq. 8. Needs no pairs: candidate 0 is the judged answer and
its label 1 (desirable) or 0; candidate 1, which `update` reads for z before
the gradient pass, is the mismatched one.

1 - s is bounded, so an answer far from z no longer counts, and only the sign
of lambda_D P(liked) - lambda_U P(disliked) matters for an answer that is seen
often: KTO leaves those that are disliked more often than not, and does not
weigh the others by how much better they are (tests/proofs).

Left out: the variant without z.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch

UNPAIRED = True


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of KTO."""

  beta: float = 0.1  # risk aversion: how fast the value saturates
  desirable_weight: float = 1.0  # lambda_D, of the answers that are liked
  undesirable_weight: float = 1.0  # lambda_U, of those that are not

  def __post_init__(self) -> None:
    pairs.check_positive(
      beta=self.beta,
      desirable_weight=self.desirable_weight,
      undesirable_weight=self.undesirable_weight,
    )


def check_labels(labels: np.ndarray) -> None:
  """Raises ValueError unless labels [P] are 0 or 1 and both occur."""
  soft = labels[(labels != 0.0) & (labels != 1.0)]
  if soft.size:
    raise ValueError(
      f"name='kto': {soft.size} of {labels.size} labels are neither 0 nor 1 "
      f"(for example {soft[0]:g}): an answer is desirable or not. Leave ties "
      "and soft labels out, or use 'dpo'."
    )
  if np.all(labels == labels[0]):
    raise ValueError(
      f"name='kto': all {labels.size} labels are {labels[0]:g}, so there is "
      "nothing to tell apart. Give desirable and undesirable answers, or use "
      "the sft pipeline."
    )


def balance(labels: np.ndarray, config: Config) -> float:
  """Returns lambda_D n_D / (lambda_U n_U), which the paper keeps in [1, 3/2].

  Args:
    labels: [P], 1 or 0, of a whole data set.
    config: settings.
  """
  liked = float(np.sum(labels))
  return (config.desirable_weight * liked) / (
    config.undesirable_weight * (labels.size - liked)
  )


def baseline(logprobs: Array, batch: PreferenceBatch) -> Array:
  """Returns [B], u of mismatched answers, whose mean over a batch is z.

  Args:
    logprobs: [B, 1, L] float32, of the policy.
    batch: the mismatched candidates alone, with reference_logprobs.
  """
  return pairs.log_ratios(logprobs, batch)[:, 0]


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in [0, lambda], and metrics.

  Metrics:
    preference/accuracy: share of answers on the right side of z. Down is bad.
    preference/margin: beta (u - z) for desirable, beta (z - u) for undesirable
      ones. Below 0 is bad.
    preference/kl: z in nats. Growth without end is bad.
    preference/reward_chosen, preference/logprob_chosen,
      preference/tokens_chosen: of desirable answers: beta u, nats an answer,
      tokens.
    preference/reward_rejected, preference/logprob_rejected,
      preference/tokens_rejected: of undesirable ones. Both rewards falling is
      bad.

  Args:
    logprobs: [B, 1, L] float32, of the policy on the judged answers.
    batch: the judged candidates alone, with reference_logprobs, and with
      baseline [B], the mean of `baseline` over the whole batch in every row.
    config: settings.

  Raises:
    ValueError: K is not 1, no baseline, or no reference_logprobs.
  """
  if batch.tokens.shape[1] != 1 or batch.baseline is None:
    raise ValueError(
      f"tokens have K={batch.tokens.shape[1]} candidates and baseline is "
      f"{'None' if batch.baseline is None else 'given'}: kto judges one answer "
      "against the mean over mismatched ones. Use preference.update, which "
      "sets it."
    )
  u = pairs.log_ratios(logprobs, batch)[:, 0]
  z = jax.lax.stop_gradient(jnp.maximum(batch.baseline, 0.0))
  gain = config.beta * (u - z)
  liked = batch.label
  losses = config.desirable_weight * liked * jax.nn.sigmoid(-gain)
  losses += config.undesirable_weight * (1.0 - liked) * jax.nn.sigmoid(gain)
  everything = jnp.ones_like(u)
  margin = jnp.where(liked > 0.5, gain, -gain)
  found = {
    "preference/accuracy": ((margin > 0).astype(jnp.float32), everything),
    "preference/margin": (margin, everything),
    "preference/kl": (z, everything),
  }
  for side, rows in (("chosen", liked), ("rejected", 1.0 - liked)):
    found[f"preference/reward_{side}"] = (config.beta * u, rows)
    found[f"preference/logprob_{side}"] = (
      pairs.sums(logprobs, batch)[:, 0],
      rows,
    )
    found[f"preference/tokens_{side}"] = (pairs.lengths(batch)[:, 0], rows)
  return losses, found
