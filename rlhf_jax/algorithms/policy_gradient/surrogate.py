"""The policy loss of every method without a critic.

  L = E w [ S(rho, A) + beta_l rho K ] - c_e E H,    rho = p / p_old

  S   an objective (objectives.py): "ppo", "gspo", "cispo", "reinforce", or any
      function that is handed to `loss`
  K   k2         (log p - log p_ref)^2 / 2
      k3         e^u - 1 - u,  u = log p_ref - log p
      k3+        the value of k3 with the gradient of k2 (straight through)

The methods differ in A (`advantages` of their modules) and in defaults.

K as a loss (METHODS 3.6; Tang and Munos 2025, arXiv:2506.09477): for one token
the expected gradient of k2 is that of KL(p || p_ref), so the optimum is p_ref
exp(r / beta) / Z; that of k3 is that of KL(p_ref || p), whose optimum is beta
p_ref / (lambda - r); that of k1 is 0, which is refused. Over several tokens a
KL per token in the loss ignores what a token does to later KL: the KL in the
reward (shaping.py) has no such bias and is the default where a paper does not
say otherwise. rho in front of K keeps these gradients after the first step;
has_kl_loss_ratio=False drops it, as the first GRPO did. w are the weights of
importance.py.

Left out: clamping of K, which biases it (but for |log p_ref - log p| at most 20
in k3).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import aggregate
from rlhf_jax.algorithms.policy_gradient import importance, objectives, ppo
from rlhf_jax.algorithms.policy_gradient.objectives import OBJECTIVES
from rlhf_jax.types import Array, Metrics, Rollout

KL_LOSSES = ("none", "k2", "k3", "k3+")
_WITHOUT_CLIP = ("cispo", "reinforce")  # of the loss; they ignore dual_clip


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings that all methods without a critic share."""

  objective: str = "ppo"  # S, the form of the loss (objectives.OBJECTIVES)
  clip_ratio: float = 0.2  # e_low, and e_high where that is None: bounds of the
  # ratio; 1 does not clip from below
  clip_ratio_high: float | None = None  # e_high; None: as e_low
  dual_clip: float | None = None  # c > 1: loss <= c |A| where A < 0; 3 in verl
  kl_loss: str = "none"  # K, estimate of the KL to the reference in the loss
  kl_loss_coefficient: float = 0.0  # beta_l; > 0 with, and only with, a kl_loss
  has_kl_loss_ratio: bool = (
    True  # the importance ratio in front of K; False: the
  )
  # first GRPO
  entropy_coefficient: float = 0.0  # c_e, weight of the entropy bonus
  aggregation: str = "token-mean"  # how token losses are averaged, aggregate.py
  aggregation_tokens: int | None = None  # T_max of "seq-sum-const"
  ptx_coefficient: float = 0.0  # gamma_ptx, weight of the text in section ptx
  update_kl_limit: float | None = None  # nats per token: an epoch whose mean
  # KL(p_old || p) is above it is the last of its rollout

  def __post_init__(self) -> None:
    aggregate.check_mode(
      "aggregation", self.aggregation, self.aggregation_tokens
    )
    if self.objective not in OBJECTIVES:
      raise ValueError(
        f"objective={self.objective!r}: must be one of {', '.join(OBJECTIVES)}."
        " For another, hand its function to the loss."
      )
    objectives.checked(OBJECTIVES[self.objective])
    if not 0.0 < self.clip_ratio <= 1.0:
      raise ValueError(f"clip_ratio={self.clip_ratio}: must be in (0, 1].")
    if self.dual_clip is not None and self.dual_clip <= 1.0:
      raise ValueError(
        f"dual_clip={self.dual_clip}: must be > 1, or None for none."
      )
    if self.dual_clip is not None and self.objective in _WITHOUT_CLIP:
      raise ValueError(
        f"dual_clip={self.dual_clip}: objective={self.objective!r} does not "
        "read it. Set None."
      )
    for name in ("clip_ratio_high", "update_kl_limit"):
      value = getattr(self, name)
      if value is not None and value <= 0.0:
        raise ValueError(f"{name}={value}: must be > 0, or None for none.")
    for name in ("entropy_coefficient", "ptx_coefficient"):
      if getattr(self, name) < 0.0:
        raise ValueError(f"{name}={getattr(self, name)}: must be >= 0.")
    self._check_kl_loss()

  def _check_kl_loss(self) -> None:
    if self.kl_loss == "k1":
      raise ValueError(
        "kl_loss='k1': log p - log p_ref as a loss has an expected gradient of "
        "0, so nothing holds the policy. Set 'k2' (the gradient of KL(p || "
        "p_ref)), or put k1 into the reward (shaping.kl_coefficient)."
      )
    if self.kl_loss not in KL_LOSSES:
      raise ValueError(
        f"kl_loss={self.kl_loss!r}: must be one of {', '.join(KL_LOSSES)}."
      )
    if self.kl_loss_coefficient < 0.0:
      raise ValueError(
        f"kl_loss_coefficient={self.kl_loss_coefficient}: must be >= 0; its "
        "sign is already in the formula."
      )
    if (self.kl_loss == "none") != (self.kl_loss_coefficient == 0.0):
      raise ValueError(
        f"kl_loss_coefficient={self.kl_loss_coefficient}: does not agree with "
        f"kl_loss={self.kl_loss!r}. Set both for a KL in the loss; 'none' and "
        "0.0 for none."
      )


def denominators(rollout: Rollout, config: Config) -> Metrics:
  """Returns the counts of a whole minibatch that `loss` divides by."""
  return ppo.denominators(rollout, config)


def kl_penalty(
  logprobs: Array, reference_logprobs: Array, mask: Array, kind: str
) -> Array:
  """Returns K per token [N, L] (module docstring), 0 where mask is 0.

  Rounding counts as no difference (ops.unless_rounding).

  Args:
    logprobs: [N, L] of the policy in training.
    reference_logprobs: [N, L].
    mask: [N, L].
    kind: "k2", "k3" or "k3+".
  """
  new = ops.neutral(logprobs, mask)
  reference = jax.lax.stop_gradient(ops.neutral(reference_logprobs, mask))
  new = ops.unless_rounding(new, reference)
  if kind == "k2":
    return ops.kl_k2(new, reference)
  if kind == "k3":
    return ops.kl_k3(new, reference)
  k2, k3 = ops.kl_k2(new, reference), ops.kl_k3(new, reference)
  return k2 + jax.lax.stop_gradient(k3 - k2)


def loss(
  logprobs: Array,
  entropies: Array,
  values: Array | None,
  rollout: Rollout,
  config: Config,
  denominators: Metrics,
  objective: objectives.Objective | None = None,
) -> tuple[Array, Metrics]:
  """Returns the loss of some rows, as a contribution to a minibatch's.

  Metrics: those of objectives.evaluate, and
    ppo/policy_loss: no bad direction by itself; not comparable across steps.
    ppo/kl_loss: mean of rho K, before its coefficient; present with a
      kl_loss. Up is drift.
    ppo/entropy: nats per token. Towards 0 is bad.

  Args:
    logprobs: [N, L] float32, of the policy in training.
    entropies: [N, L] float32.
    values: None: there is no critic to train.
    rollout: the same rows, with advantages; rows may be packed.
    config: settings.
    denominators: of the whole minibatch.
    objective: S in place of config.objective (objectives.py), or None.

  Raises:
    ValueError: values are given, shapes differ, or the objective cannot be
      used.
  """
  if values is not None:
    raise ValueError(
      "values were given: this method trains no critic, so they would be "
      "computed for nothing. Return None from apply, or use ppo."
    )
  mask = rollout.response_mask
  ops.check_same_shape(
    logprobs=logprobs,
    entropies=entropies,
    behaviour_logprobs=rollout.behaviour_logprobs,
    reference_logprobs=rollout.reference_logprobs,
    advantages=rollout.advantages,
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

  function = OBJECTIVES[config.objective]
  if objective is not None:
    function = objectives.checked(objective)
  losses, log_ratio, metrics = objectives.evaluate(
    function, logprobs, entropies, rollout, config, tokens
  )
  has_weights = rollout.importance_weights is not None
  if has_weights:
    losses = importance.weighted(losses, rollout)
  total = average(losses)
  metrics |= {
    "ppo/policy_loss": total,
    "ppo/entropy": ops.masked_mean(entropies, mask, tokens),
  }
  if config.kl_loss != "none":
    penalty = kl_penalty(
      logprobs, rollout.reference_logprobs, mask, config.kl_loss
    )
    if config.has_kl_loss_ratio:
      penalty = penalty * jax.lax.stop_gradient(jnp.exp(log_ratio))
    if has_weights:
      penalty = importance.weighted(penalty, rollout)
    penalty = average(penalty)
    metrics["ppo/kl_loss"] = penalty
    total = total + config.kl_loss_coefficient * penalty
  if config.entropy_coefficient > 0.0:
    total = total - config.entropy_coefficient * average(entropies)
  return total, metrics
