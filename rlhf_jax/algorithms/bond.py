"""Best-of-n distillation (BOND and J-BOND): learn what best of n would say.

  pi_n(y) = pi_ref(y) p_<=(y)^(n-1) sum_{i=1..n} (p_<(y) / p_<=(y))^(i-1)
  L = (1 - b) KL(pi_n || pi) + b KL(pi || pi_n)        Jeffreys divergence

Forward part: cross-entropy of best-of-n samples. Backward part: policy
gradient on samples of pi with reward log(pi_n / pi_ref) - log(pi / pi_ref),
which is n - 1 times BOND's log p_<= with KL weight 1 / (n - 1). J-BOND takes
n = 2 and an anchor that follows the policy: the reward is -log 16 where the
sample is below both of two anchor samples, else 0. Sessa et al. 2024,
arXiv:2407.14622. Both are `loss`; they differ in who makes log_target_ratio.

Departures: the baseline is the mean of the OTHER rows (theirs includes the row
itself, a bias of 1 / B). Quantiles count the sample itself, so that no log is
-inf. Left out: several steps on one batch (the gradient is on-policy), and the
target's estimate of p_< apart from p_<= for text, where ties are rare.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array, Metrics, PyTree

WORSE_THAN_BOTH = -math.log(16.0)  # J-BOND's reward, section 5


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the Jeffreys loss and of the moving anchor."""

  backward_weight: float = 0.5  # b; 0 forward KL only (SFT), 1 backward only
  reference_kl: float = 0.0  # extra weight of KL(pi || reference or anchor)
  anchor_rate: float = 0.02  # eta of the anchor's moving average
  # Subtracts the mean of the other rows' returns; False only for one row.
  has_baseline: bool = True

  def __post_init__(self) -> None:
    if not 0.0 <= self.backward_weight <= 1.0:
      raise ValueError(
        f"backward_weight={self.backward_weight}: the rest is the forward "
        "part's. Set 0 <= backward_weight <= 1."
      )
    if not 0.0 <= self.reference_kl < math.inf:
      raise ValueError(
        f"reference_kl={self.reference_kl}: a penalty. Set it >= 0 and finite."
      )
    if not 0.0 <= self.anchor_rate <= 1.0:
      raise ValueError(
        f"anchor_rate={self.anchor_rate}: the policy's share in a mean. Set 0 "
        "<= anchor_rate <= 1."
      )


def log_quantile(scores: Array, reference_scores: Array) -> Array:
  """Returns [B] log of (1 + #{r_m <= r}) / (1 + M): log p_<= of a sample.

  Args:
    scores: [B] of the policy's samples.
    reference_scores: [B, M] of M reference samples for the same prompts.

  Raises:
    ValueError: shapes do not fit.
  """
  if reference_scores.ndim != 2 or scores.shape != reference_scores.shape[:1]:
    raise ValueError(
      f"scores {scores.shape}, reference_scores {reference_scores.shape}: one "
      "row of reference samples per sample is wanted. Pass [B] and [B, M]."
    )
  count = jnp.sum(reference_scores <= scores[:, None], axis=1)
  return jnp.log1p(count.astype(jnp.float32)) - jnp.log1p(
    jnp.float32(reference_scores.shape[1])
  )


def log_best_of_n_ratio(
  log_at_most: Array, n: int, log_below: Array | None = None
) -> Array:
  """Returns log(pi_n / pi_ref) of samples.

  Args:
    log_at_most: [B] log p_<=, <= 0.
    n: of best-of-n, >= 1.
    log_below: [B] log p_<, -inf allowed; None takes it equal to p_<=, which is
      right where no two samples tie and no answer has noticeable probability.

  Raises:
    ValueError: n < 1.
  """
  if n < 1:
    raise ValueError(f"n={n}: the best of no sample. Set n >= 1.")
  power = (n - 1) * log_at_most
  if log_below is None:
    return power + math.log(n)
  log_ratio = jnp.minimum(log_below - log_at_most, 0.0)
  is_one = log_ratio > -1e-6
  safe = jnp.where(is_one, -1.0, log_ratio)  # keeps 0 / 0 out of both branches
  series = jnp.expm1(n * safe) / jnp.expm1(safe)
  return power + jnp.where(is_one, math.log(n), jnp.log(series))


def j_bond_ratio(scores: Array, anchor_scores: Array) -> Array:
  """Returns [B]: -log 16 where a sample is below both anchor samples, else 0.

  Args:
    scores: [B] of the policy's samples.
    anchor_scores: [B, 2] of two samples of the anchor for the same prompts.

  Raises:
    ValueError: there are not two anchor samples for each.
  """
  if anchor_scores.shape != (*scores.shape, 2):
    raise ValueError(
      f"scores {scores.shape}, anchor_scores {anchor_scores.shape}: J-BOND "
      "compares with two anchor samples. Pass [B] and [B, 2]."
    )
  is_worse = scores < jnp.min(anchor_scores, axis=1)
  return jnp.where(is_worse, jnp.float32(WORSE_THAN_BOTH), 0.0)


def loss(
  best_logprobs: Array,
  best_mask: Array,
  sample_logprobs: Array,
  sample_mask: Array,
  reference_logprobs: Array,
  log_target_ratio: Array,
  config: Config,
) -> tuple[Array, Metrics]:
  """Returns a loss whose gradient estimates that of the Jeffreys divergence.

  Its value means nothing: it differs from the divergence by what does not
  depend on the policy. Sequence log-probabilities are sums over the response.

  Metrics:
    bond/forward: nats of the best-of-n samples. Up is bad.
    bond/reward: mean log_target_ratio. Down is bad.
    bond/kl: mean k1 of the policy to the reference or anchor, nats.

  Args:
    best_logprobs: [B, L] of the policy, on best-of-n samples of the reference
      (J-BOND: the better of the two anchor samples).
    best_mask: [B, L], 1 on response tokens.
    sample_logprobs: [B, L] of the policy, on its own samples.
    sample_mask: [B, L].
    reference_logprobs: [B, L], reference (J-BOND: anchor), own samples.
    log_target_ratio: [B], log_best_of_n_ratio or j_bond_ratio, own samples.
    config: weights.

  Raises:
    ValueError: shapes differ, or one row and a baseline.
  """
  ops.check_same_shape(best_logprobs=best_logprobs, best_mask=best_mask)
  ops.check_same_shape(
    sample_logprobs=sample_logprobs,
    sample_mask=sample_mask,
    reference_logprobs=reference_logprobs,
  )
  ops.check_same_shape(
    log_target_ratio=log_target_ratio, sample_rows=sample_logprobs[:, 0]
  )
  rows = sample_logprobs.shape[0]
  if config.has_baseline and rows < 2:
    raise ValueError(
      f"{rows} row: the baseline is the mean of the other rows. Pass at least "
      "2, or set has_baseline=False."
    )
  best = jnp.sum(ops.neutral(best_logprobs, best_mask), axis=1)
  own = jnp.sum(ops.neutral(sample_logprobs, sample_mask), axis=1)
  reference = jnp.sum(ops.neutral(reference_logprobs, sample_mask), axis=1)
  kl = jax.lax.stop_gradient(own) - reference
  backward = config.backward_weight
  returns = backward * (log_target_ratio - kl) - config.reference_kl * kl
  if config.has_baseline:
    returns = (returns - jnp.mean(returns)) * rows / (rows - 1)
  forward = -jnp.mean(best)
  value = (1.0 - backward) * forward - jnp.mean(
    jax.lax.stop_gradient(returns) * own
  )
  metrics = {
    "bond/forward": forward,
    "bond/reward": jnp.mean(log_target_ratio),
    "bond/kl": jnp.mean(kl),
  }
  return value, metrics


def move_anchor(anchor: PyTree, params: PyTree, rate: float) -> PyTree:
  """Returns (1 - rate) anchor + rate params, leaf by leaf.

  Args:
    anchor, params: trees of one structure.
    rate: Config.anchor_rate.
  """
  return jax.tree.map(lambda a, p: a + rate * (p - a), anchor, params)
