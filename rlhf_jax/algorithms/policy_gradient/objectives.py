"""S, what a policy loss is per token: four objectives, and any other function.

  ppo        max(-A rho, -A clip(rho, 1 - e_low, 1 + e_high)),  rho = p / p_old
  gspo       the same with s = exp(mean_t log rho) of the answer for rho, in the
             form stop(s / rho) rho, where A may differ by token
  cispo      -A log p stop(clip(rho, 1 - e_low, 1 + e_high))
  reinforce  -A log p: exact for one step per rollout only

An objective is a function

  S(log_ratio [N, L], advantages [N, L], config) -> losses [N, L]

or -> (losses, metrics), where metrics are contributions to the minibatch's
(accumulate.py). It gets log_ratio = log p - log p_old, with the gradient of
log p, and advantages without gradient, both 0 where no token counts; its losses
are averaged by config.aggregation there. One with a parameter `rows` gets
types.PolicyRows too. Before the first step (log_ratio 0) its gradient should be
-A grad log p: all four have it.

A new one is a function in a file of its own and a line in OBJECTIVES; or handed
to `loss` or `update` as `objective`, which leaves this package as it is. With
dual_clip=c the first two are at most c |A| where A < 0 (Ye et al. 2020, eq. 5,
arXiv:1912.09729).

Yu et al. 2025 (clip-higher, arXiv:2503.14476), Zheng et al. 2025 (GSPO-token,
arXiv:2507.18071), MiniMax 2025 (CISPO, arXiv:2506.13585).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import aggregate, signatures
from rlhf_jax.types import Array, Metrics, PolicyRows, Rollout

Objective = Callable[..., Array | tuple[Array, Metrics]]


def clipped(
  log_ratio: Array,
  advantages: Array,
  *,
  clip_ratio: float,
  clip_ratio_high: float | None = None,
  dual_clip: float | None = None,
) -> Array:
  """Returns the clipped surrogate per token [N, L].

  Args:
    log_ratio: [N, L], 0 where no token counts (ops.log_ratio).
    advantages: [N, L], without gradient, 0 where no token counts.
    clip_ratio: e_low, and e_high where that is None.
    clip_ratio_high: e_high.
    dual_clip: c, or None.
  """
  high = clip_ratio if clip_ratio_high is None else clip_ratio_high
  ratio = jnp.exp(log_ratio)
  near = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + high)
  losses = jnp.maximum(-advantages * ratio, -advantages * near)
  if dual_clip is not None:
    bound = jnp.minimum(losses, -dual_clip * advantages)
    losses = jnp.where(advantages < 0, bound, losses)
  return losses


def ratio_metrics(
  log_ratio: Array,
  advantages: Array,
  mask: Array,
  tokens: Array,
  *,
  clip_ratio: float,
  clip_ratio_high: float | None = None,
) -> Metrics:
  """Returns what to watch in the importance ratio, over tokens.

  Metrics:
    ppo/clip_fraction_high: A > 0 and rho > 1 + e_high: no gradient under
      "ppo". Above 0.2 is bad.
    ppo/clip_fraction_low: A < 0 and rho < 1 - e_low: no gradient under
      "ppo". Above 0.2 is bad.
    ppo/approximate_kl: k3 estimate of KL(p_old || p), nats. Up is bad.
    ppo/ratio_mean: 1 in expectation. Far from 1 is bad.
    ppo/ratio_max: up is bad.
    ppo/ratio_error_max: max |rho - 1|. Not ~0 before the first step is a bug.

  Args:
    log_ratio: [N, L], 0 where mask is 0 (ops.log_ratio).
    advantages: [N, L], 0 where mask is 0.
    mask: [N, L].
    tokens: [] the sum of the mask over the whole minibatch.
    clip_ratio: e_low, and e_high where that is None.
    clip_ratio_high: e_high.
  """
  high = clip_ratio if clip_ratio_high is None else clip_ratio_high
  ratio = jnp.exp(log_ratio)
  is_over = (advantages > 0) & (ratio > 1.0 + high)
  is_under = (advantages < 0) & (ratio < 1.0 - clip_ratio)

  def mean(x: Array) -> Array:
    return ops.masked_mean(x, mask, tokens)

  return {
    "ppo/clip_fraction_high": mean(is_over * 1.0),
    "ppo/clip_fraction_low": mean(is_under * 1.0),
    "ppo/approximate_kl": mean(jnp.expm1(log_ratio) - log_ratio),
    "ppo/ratio_mean": mean(ratio),
    "ppo/ratio_max": jnp.max(ratio),
    "ppo/ratio_error_max": jnp.max(jnp.abs(jnp.expm1(log_ratio))),
  }


def _clip_of(config: Any) -> dict[str, float | None]:
  return {
    "clip_ratio": config.clip_ratio,
    "clip_ratio_high": config.clip_ratio_high,
  }


def ppo(log_ratio: Array, advantages: Array, config: Any) -> Array:
  """Returns the clipped surrogate (module docstring)."""
  return clipped(
    log_ratio, advantages, **_clip_of(config), dual_clip=config.dual_clip
  )


def gspo(
  log_ratio: Array, advantages: Array, config: Any, rows: PolicyRows
) -> tuple[Array, Metrics]:
  """Returns the clipped surrogate of the ratio of each answer.

  Metrics: ppo/clip_fraction_high, ppo/clip_fraction_low, ppo/ratio_mean and
  ppo/ratio_max are of the ratio of answers, in place of that of tokens.
  """
  mean = aggregate.sequence_means(log_ratio, rows.mask, rows.segment_ids)
  shift = jnp.where(rows.mask > 0, mean, 0.0) - log_ratio
  log_ratio = log_ratio + jax.lax.stop_gradient(shift)
  found = ratio_metrics(
    log_ratio, advantages, rows.mask, rows.tokens, **_clip_of(config)
  )
  del found["ppo/approximate_kl"], found["ppo/ratio_error_max"]
  return ppo(log_ratio, advantages, config), found


def cispo(
  log_ratio: Array, advantages: Array, config: Any, rows: PolicyRows
) -> Array:
  """Returns -A log p with the clipped ratio as a constant weight.

  The clip fractions count what "ppo" would clip; here no token loses its
  gradient.
  """
  high = config.clip_ratio_high
  high = config.clip_ratio if high is None else high
  ratio = jnp.clip(jnp.exp(log_ratio), 1.0 - config.clip_ratio, 1.0 + high)
  return -advantages * rows.logprobs * jax.lax.stop_gradient(ratio)


def reinforce(
  log_ratio: Array, advantages: Array, config: Any, rows: PolicyRows
) -> Array:
  """Returns -A log p; the clip fractions count what "ppo" would clip."""
  del log_ratio, config
  return -advantages * rows.logprobs


OBJECTIVES: dict[str, Objective] = {
  "ppo": ppo,
  "gspo": gspo,
  "cispo": cispo,
  "reinforce": reinforce,
}


def checked(function: Objective) -> Objective:
  """Returns an objective that has the signature of one.

  Raises:
    ValueError: it cannot be called as (log_ratio, advantages, config).
  """
  arguments = ("log_ratio", "advantages", "config")
  signatures.check_call(function, "objective", arguments, ["rows"])
  return function


def wants_rows(function: Objective) -> bool:
  """Says whether an objective, checked before, has a parameter `rows`."""
  return "rows" in inspect.signature(function).parameters


def evaluate(
  function: Objective,
  logprobs: Array,
  entropies: Array,
  rollout: Rollout,
  config: Any,
  tokens: Array,
) -> tuple[Array, Array, Metrics]:
  """Returns S per token [N, L], log_ratio [N, L], and metrics.

  Metrics: those of `ratio_metrics`, of the ratio per token, whatever the
  objective; then the objective's own, which may take their place.

  Args:
    function: the objective, `checked`.
    logprobs: [N, L] of the policy in training.
    entropies: [N, L] of the policy in training.
    rollout: the same rows, with advantages.
    config: settings, with clip_ratio and clip_ratio_high.
    tokens: [] the sum of the mask over the whole minibatch.

  Raises:
    ValueError: the objective does not return one loss a token.
  """
  mask = rollout.response_mask
  log_ratio = ops.log_ratio(logprobs, rollout.behaviour_logprobs, mask)
  advantages = jax.lax.stop_gradient(ops.neutral(rollout.advantages, mask))
  metrics = ratio_metrics(
    log_ratio, advantages, mask, tokens, **_clip_of(config)
  )
  extra = {}
  if wants_rows(function):
    reference = ops.neutral(rollout.reference_logprobs, mask)
    extra["rows"] = PolicyRows(
      logprobs=ops.neutral(logprobs, mask),
      entropies=ops.neutral(entropies, mask),
      reference_logprobs=jax.lax.stop_gradient(reference),
      mask=mask,
      tokens=tokens,
      segment_ids=rollout.sequence_ids,
    )
  losses = function(log_ratio, advantages, config, **extra)
  if isinstance(losses, tuple):
    losses, found = losses
    metrics |= found
  if jnp.shape(losses) != mask.shape:
    raise ValueError(
      f"objective={signatures.name_of(function)}: returned losses of shape "
      f"{jnp.shape(losses)}; one loss a token, {mask.shape}, is averaged as "
      "config.aggregation says. Return them before any mean."
    )
  return losses, log_ratio, metrics
