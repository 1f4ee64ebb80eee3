"""Proximal policy optimisation for language models.

  A_t = sum_l (gamma lambda)^l delta_{t+l},
  delta_t = r_t + gamma V_{t+1} - V_t,   V after the last token = 0
  L = E max(-A rho, -A clip(rho, 1 - e_low, 1 + e_high))
      + c_v E 1/2 max((V - R)^2, (V_old + clip(V - V_old, -e_v, e_v) - R)^2)
      - c_e E H,      rho = p / p_old,  R = A + V_old

Schulman et al. 2016 (GAE, arXiv:1506.02438), 2017 (arXiv:1707.06347); for
language Ziegler et al. 2019, Ouyang et al. 2022 (arXiv:2203.02155), Huang et
al. 2024 (arXiv:2403.17031). The KL to the reference is in the reward
(shaping.py), not here. Advantages, returns, old values and behaviour
log-probabilities are constants of a rollout, the same for all its epochs.

The policy and entropy terms are averaged as `aggregation` says; the value
term, a regression, always over tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import aggregate
from rlhf_jax.algorithms.policy_gradient import importance, objectives
from rlhf_jax.types import Array, Metrics, Rollout

HAS_CRITIC = True
TOKEN_REWARDS = True


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of PPO."""

  clip_ratio: float = 0.2  # epsilon: no gradient beyond a ratio of 1 - epsilon
  # and 1 + epsilon; Schulman 2017 section 3
  clip_ratio_high: float | None = None  # upper epsilon (DAPO: 0.28); None: same
  dual_clip: float | None = None  # c > 1: loss <= c |A| where A < 0; 3 in verl
  value_clip: float | None = 0.2  # e_v, how far a value may move in the loss,
  # in units of the return; None or inf: no clip
  value_coefficient: float = 0.1  # c_v, weight of the critic's loss; Ziegler
  # 2019's released code
  entropy_coefficient: float = 0.0  # c_e, weight of the entropy bonus
  discount: float = 1.0  # gamma of later rewards; no discount in Ouyang 2022
  gae_lambda: float = 0.95  # lambda of GAE: 0 trusts the critic, 1 the returns;
  # Ziegler 2019
  whitens_advantages: bool = True  # over the whole rollout, before minibatches
  ptx_coefficient: float = 0.0  # gamma_ptx, weight of the text in section ptx;
  # 27.8 in Ouyang 2022
  aggregation: str = "token-mean"  # how token losses are averaged, aggregate.py
  aggregation_tokens: int | None = None  # T_max of "seq-sum-const"
  update_kl_limit: float | None = None  # nats per token: an epoch whose mean
  # KL(p_old || p) is above it is the last of its rollout; 0.015 .. 0.075

  def __post_init__(self) -> None:
    aggregate.check_mode(
      "aggregation", self.aggregation, self.aggregation_tokens
    )
    if not 0.0 < self.clip_ratio < 1.0:
      raise ValueError(f"clip_ratio={self.clip_ratio}: must be in (0, 1).")
    if self.dual_clip is not None and self.dual_clip <= 1.0:
      raise ValueError(
        f"dual_clip={self.dual_clip}: must be > 1, or None for none."
      )
    for name in ("clip_ratio_high", "value_clip", "update_kl_limit"):
      value = getattr(self, name)
      if value is not None and value <= 0.0:
        raise ValueError(f"{name}={value}: must be > 0, or None for none.")
    for name in (
      "value_coefficient",
      "entropy_coefficient",
      "ptx_coefficient",
    ):
      if getattr(self, name) < 0.0:
        raise ValueError(f"{name}={getattr(self, name)}: must be >= 0.")
    for name in ("discount", "gae_lambda"):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1].")


def gae(
  rewards: Array,
  values: Array,
  mask: Array,
  *,
  discount: float,
  gae_lambda: float,
) -> Array:
  """Returns [N, L] generalised advantage estimates, 0 where mask is 0.

  Masked tokens are skipped: the token before a gap sees the value of the token
  after it, and what stands on padding has no effect. Schulman et al. 2016,
  eq. 16.

  Args:
    rewards: [N, L].
    values: [N, L], of the state before each token.
    mask: [N, L], 1 on response tokens; one answer per row.
    discount: gamma.
    gae_lambda: lambda.
  """

  def backward(carry: tuple[Array, Array], column: tuple[Array, Array, Array]):
    advantage, next_value = carry
    reward, value, counted = column
    delta = reward + discount * next_value - value
    here = delta + discount * gae_lambda * advantage
    advantage = jnp.where(counted > 0, here, advantage)
    next_value = jnp.where(counted > 0, value, next_value)
    return (advantage, next_value), advantage

  zeros = jnp.zeros(mask.shape[:1], jnp.float32)
  columns = (ops.neutral(rewards, mask).T, ops.neutral(values, mask).T, mask.T)
  _, advantages = jax.lax.scan(backward, (zeros, zeros), columns, reverse=True)
  return jnp.where(mask > 0, advantages.T, 0.0)


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages and returns into a rollout, once, before any epoch.

  Returns are made of advantages before whitening; whitening is over all
  response tokens of the rollout (population variance, see ops.whiten).

  Args:
    rollout: unpacked, with rewards and values.
    config: settings.

  Raises:
    ValueError: rewards or values are missing, or the rollout is packed.
  """
  for name in ("rewards", "values"):
    if getattr(rollout, name) is None:
      raise ValueError(
        f"rollout.{name} is None: PPO needs it. Run shape_rewards and a critic "
        "before advantages."
      )
  if rollout.segment_ids is not None:
    raise ValueError(
      "segment_ids is set: advantages would run from one answer of a packed "
      "row into the next. Compute advantages first, pack afterwards."
    )
  mask = rollout.response_mask
  estimate = gae(
    rollout.rewards,
    rollout.values,
    mask,
    discount=config.discount,
    gae_lambda=config.gae_lambda,
  )
  returns = estimate + ops.neutral(rollout.values, mask)
  if config.whitens_advantages:
    estimate = ops.whiten(estimate, mask)
  return rollout.replace(advantages=estimate, returns=returns)


def denominators(rollout: Rollout, config: Config) -> Metrics:
  """Returns the counts of a whole minibatch that `loss` divides by."""
  return {
    "policy": aggregate.denominator(
      rollout.response_mask,
      config.aggregation,
      constant_tokens=config.aggregation_tokens,
      segment_ids=rollout.sequence_ids,
    ),
    "tokens": jnp.sum(rollout.response_mask),
  }


def value_loss(
  values: Array,
  old_values: Array,
  returns: Array,
  mask: Array,
  tokens: Array,
  value_clip: float | None,
) -> tuple[Array, Metrics]:
  """Returns the clipped value loss, a contribution to the mean over tokens.

  Metrics:
    ppo/value_loss: up is bad.
    ppo/value_clip_fraction: tokens where the clip is active. Above 0.5 for
      long is bad: value_clip is too small for the scale of the returns.

  Args:
    values: [N, L] of the critic in training.
    old_values: [N, L] of the critic at the rollout.
    returns: [N, L].
    mask: [N, L].
    tokens: [] the sum of the mask over the whole minibatch.
    value_clip: e_v, or None.
  """
  values = ops.neutral(values, mask)
  old_values = jax.lax.stop_gradient(ops.neutral(old_values, mask))
  returns = jax.lax.stop_gradient(ops.neutral(returns, mask))
  losses = jnp.square(values - returns)
  clip_share = jnp.zeros((), jnp.float32)
  if value_clip is not None:
    change = jnp.clip(values - old_values, -value_clip, value_clip)
    clipped_losses = jnp.square(old_values + change - returns)
    is_active = clipped_losses > losses
    clip_share = ops.masked_mean(is_active * 1.0, mask, tokens)
    losses = jnp.maximum(losses, clipped_losses)
  value = 0.5 * ops.masked_mean(losses, mask, tokens)
  return value, {"ppo/value_loss": value, "ppo/value_clip_fraction": clip_share}


def loss(
  logprobs: Array,
  entropies: Array,
  values: Array | None,
  rollout: Rollout,
  config: Config,
  denominators: Metrics,
  objective: objectives.Objective | None = None,
) -> tuple[Array, Metrics]:
  """Returns the PPO loss of some rows, as a contribution to a minibatch's.

  Rows may be packed: every term is a sum over tokens, and the "seq-" averages
  count segments.

  Metrics: those of objectives.evaluate and `value_loss`, and
    ppo/policy_loss: no bad direction by itself; not comparable across steps.
    ppo/entropy: nats per token. Towards 0 is bad.

  Args:
    logprobs: [N, L] float32, of the policy in training.
    entropies: [N, L] float32.
    values: [N, L] float32.
    rollout: the same rows, with advantages and returns.
    config: settings.
    denominators: of the whole minibatch.
    objective: in place of the clipped surrogate (objectives.py), or None.

  Raises:
    ValueError: values are missing, shapes differ, or the objective cannot be
      used.
  """
  if values is None or rollout.values is None:
    raise ValueError(
      "values is None: PPO trains a critic. Return values from apply, or use a "
      "critic-free algorithm."
    )
  mask = rollout.response_mask
  ops.check_same_shape(
    logprobs=logprobs,
    entropies=entropies,
    values=values,
    behaviour_logprobs=rollout.behaviour_logprobs,
    advantages=rollout.advantages,
    returns=rollout.returns,
    response_mask=mask,
  )
  tokens = denominators["tokens"]

  def average(x: Array) -> Array:
    return aggregate.aggregate(
      x,
      mask,
      config.aggregation,
      denominators["policy"],
      segment_ids=rollout.sequence_ids,
    )

  function = objectives.ppo
  if objective is not None:
    function = objectives.checked(objective)
  losses, _, metrics = objectives.evaluate(
    function, logprobs, entropies, rollout, config, tokens
  )
  value, value_metrics = value_loss(
    values, rollout.values, rollout.returns, mask, tokens, config.value_clip
  )
  if rollout.importance_weights is not None:
    losses = importance.weighted(losses, rollout)
  policy = average(losses)
  metrics |= value_metrics | {
    "ppo/policy_loss": policy,
    "ppo/entropy": ops.masked_mean(entropies, mask, tokens),
  }
  total = policy + config.value_coefficient * value
  if config.entropy_coefficient > 0.0:
    total = total - config.entropy_coefficient * average(entropies)
  return total, metrics


def explained_variance(rollout: Rollout) -> Array:
  """Returns [] 1 - Var(R - V) / Var(R) over response tokens.

  1 is a perfect critic, 0 one that is no better than a constant.

  Args:
    rollout: with values and returns.
  """
  mask = rollout.response_mask
  error = ops.neutral(rollout.returns, mask) - ops.neutral(rollout.values, mask)
  variance = ops.masked_variance(rollout.returns, mask)
  return 1.0 - ops.masked_variance(error, mask) / jnp.maximum(variance, 1e-8)


def critic_metrics(rollout: Rollout) -> Metrics:
  """Returns what the critic of the rollout was worth, before any step.

  Metrics:
    ppo/explained_variance: down is bad; below 0 after 50 steps is an alarm.
    ppo/advantage_mean_raw, ppo/advantage_std_raw: of advantages before
      whitening. A mean far from 0 is a biased critic; a std towards 0 leaves
      noise to whiten.

  Args:
    rollout: with values and returns; {} comes back without values.
  """
  if rollout.values is None or rollout.returns is None:
    return {}
  mask = rollout.response_mask
  raw = ops.neutral(rollout.returns, mask) - ops.neutral(rollout.values, mask)
  return {
    "ppo/explained_variance": explained_variance(rollout),
    "ppo/advantage_mean_raw": ops.masked_mean(raw, mask),
    "ppo/advantage_std_raw": jnp.sqrt(ops.masked_variance(raw, mask)),
  }
