"""Truncated importance weights between the sampler and the trainer.

  w_t = min(p_trainer(token) / p_sampler(token), c)

The sampler decodes token by token, often with other kernels, a narrower dtype
or weights of an earlier version; the trainer computes log-probabilities of
whole rows. A method divides by the trainer's (the importance ratio is then 1
before the first step), and w makes up for the samples not being its own
(Espeholt et al. 2018, arXiv:1802.01561; Yao et al. 2025, "Your efficient RL
framework secretly brings you off-policy RL training"). The truncation at c
bounds the variance and biases where it acts: log its share.

Every per-token term of a policy loss is multiplied by w, a constant; the value
loss, a regression, is not.

With level="sequence" each token has its answer's weight, min(prod_t ratio, c).
Token by token the weights are right for answers of one token, and biased for
longer ones, since what came before was sampled by another policy too; the bias
is small where the two policies nearly agree (kernels, dtypes), and not where
rollouts of an old policy are learned from again (programs/replay.py).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array, Metrics, Rollout

LEVELS = ("token", "sequence")


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the weights."""

  cap: float | None = None  # c of w = min(ratio, c), for a sampler that differs
  # from the trainer: below float32; None: w = 1; 2 in Yao 2025, 0.5 .. 5 in
  # OpenRLHF
  level: str = "token"  # whether each "token" has a weight, or all tokens of an
  # answer that of the "sequence"

  def __post_init__(self) -> None:
    if self.cap is not None and self.cap <= 0.0:
      raise ValueError(f"cap={self.cap}: must be > 0, or None for no weights.")
    if self.level not in LEVELS:
      raise ValueError(
        f"level={self.level!r}: must be one of {', '.join(LEVELS)}."
      )


def weigh(
  rollout: Rollout, sampler_logprobs: Array, config: Config
) -> tuple[Rollout, Metrics]:
  """Writes importance_weights into a rollout; cap=None leaves it as it is.

  Metrics:
    rollout/sampler_ratio_mean: of p_trainer / p_sampler, untruncated; 1 in
      expectation. Far from 1 is bad.
    rollout/sampler_kl: k3 estimate of KL(p_sampler || p_trainer), nats per
      token. Above 1e-2 is bad: find out why they differ.
    rollout/sampler_capped: share of tokens truncated. Above 1 % is bad.
    rollout/sampler_weight_mean: of w. Far below 1 is bad: the cap biases.
    rollout/sampler_effective: effective samples as a share of all, (sum w)^2 /
      (n sum w^2), of answers or, with level "token", of tokens. Down is bad:
      few answers carry the step, as the two policies differ.

  Args:
    rollout: behaviour_logprobs are the trainer's, computed again.
    sampler_logprobs: [N, L], what the sampler said of its own tokens.
    config: settings.

  Raises:
    ValueError: shapes differ.
  """
  mask = rollout.response_mask
  ops.check_same_shape(
    sampler_logprobs=sampler_logprobs,
    behaviour_logprobs=rollout.behaviour_logprobs,
    response_mask=mask,
  )
  difference = ops.log_ratio(rollout.behaviour_logprobs, sampler_logprobs, mask)
  ratio, each = jnp.exp(difference), mask
  metrics = {
    "rollout/sampler_ratio_mean": ops.masked_mean(ratio, mask),
    "rollout/sampler_kl": ops.masked_mean(
      jnp.expm1(difference) - difference, mask
    ),
  }
  if config.level == "sequence":
    limit = ops.LOG_RATIO_LIMIT
    total = jnp.sum(difference, axis=-1, keepdims=True)
    ratio = jnp.exp(jnp.clip(total, -limit, limit)) * jnp.ones_like(mask)
    each = mask * (jnp.cumsum(mask, axis=-1) == 1.0)  # an answer once
  if config.cap is None:
    return rollout, metrics
  metrics["rollout/sampler_capped"] = ops.masked_mean(
    (ratio > config.cap) * 1.0, each
  )
  weights = jnp.where(mask > 0, jnp.minimum(ratio, config.cap), 0.0)
  mean = ops.masked_mean(weights, each)
  square = ops.masked_mean(jnp.square(weights), each)
  metrics["rollout/sampler_weight_mean"] = mean
  metrics["rollout/sampler_effective"] = jnp.square(mean) / jnp.maximum(
    square, 1e-30
  )
  return rollout.replace(importance_weights=weights), metrics


def weighted(losses: Array, rollout: Rollout) -> Array:
  """Returns losses [N, L] times the rollout's weights, which are there."""
  ops.check_same_shape(
    losses=losses, importance_weights=rollout.importance_weights
  )
  weights = ops.neutral(rollout.importance_weights, rollout.response_mask)
  return losses * jax.lax.stop_gradient(weights)
