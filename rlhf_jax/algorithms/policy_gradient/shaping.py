"""From a score per answer and a KL per token to a reward per token.

  r_t = -beta (log p_t - log p_ref,t) + 1[t is the last response token] s'
  s'  = clip(normalise(length_penalty(missing_end_token(score))), -c, c)

in this order (METHODS 3.4), so beta has its meaning in normalised units. The
KL is the k1 estimate under the sampling distribution and sits in the reward,
where its expected gradient is that of KL(p || p_ref); the optimum is p_ref
exp(s' / beta) / Z (Ziegler et al. 2019, section 2, arXiv:1909.08593; Korbak
et al. 2022, arXiv:2205.11275). beta may follow a target KL
(kl_control.py).

The length penalty is linear in the tokens over a start, or the soft overlong
penalty of DAPO (Yu et al. 2025, arXiv:2503.14476): 0 up to L_max - L_cache
tokens, then falling linearly to -1 at L_max and beyond; or both.

A judge that reads beginnings of answers may reward their tokens too
(token_rewards.py); that changes the optimum only where it is no potential.

The rewards of all tokens of a rollout, score and KL alike, may be whitened at
the end. Ziegler et al. 2019's code ("whiten_rewards"; Huang et al. 2024,
arXiv:2403.17031) has (r - mean) / deviation + mean, "keep_mean" here: what the
mean gains is the same on each token, so answers of other lengths gain other
amounts, and only where all have one length the optimum stays where it was.
"scale" is r / deviation, which moves no optimum.

PPO-max (Zheng et al. 2023, arXiv:2307.04964, section 5.2) is normalise
"standardise" and a clip; its "reward scaling" is "scale".

A truncated answer ends the episode: no value is bootstrapped at the cut.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import token_rewards
from rlhf_jax.types import FINISH_LENGTH, Array, Metrics, Rollout


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of reward shaping and of the KL controller."""

  missing_eos: str = "keep"  # an answer without an end token: its score stays,
  # is replaced, is lowered, or the answer does not count
  missing_eos_value: float = -1.0  # "replace": the score; raw score units
  missing_eos_penalty: float = 1.0  # "subtract": taken off; raw score units
  length_penalty: float = 0.0  # alpha: score taken off per token over the start
  length_penalty_start: int = 0  # L0 tokens: alpha max(0, length - L0)
  overlong_tokens: int | None = None  # L_max; None for no overlong penalty
  overlong_cache: int = 0  # L_cache tokens before L_max, where it sets in
  overlong_penalty: float = 1.0  # taken off at L_max; raw score units
  normalise: str = "none"  # scores by their running moments: not at all,
  # divided by the deviation, or the mean taken off too
  clip: float | None = 5.0  # c, bound on the score after normalising; 5 in
  # DeepSpeed-Chat; None for no clipping
  token_rewards: str = "none"  # what the reward model says of the beginnings
  # of an answer: "potential" leaves the optimum as it is, "raw" does not
  token_coefficient: float = 1.0  # scale of these values, in units of the score
  whitening: str = "none"  # of the rewards of all tokens of a rollout: "scale"
  # divides by their deviation, "keep_mean" about their mean (Ziegler 2019)
  kl_estimator: str = "k1"  # of the KL in the reward; only k1 has a gradient
  kl_coefficient: float = 0.1  # beta of the KL in the reward, at the start; 0
  # for a KL in the loss
  kl_controller: str = "adaptive"  # whether beta follows kl_target
  kl_target: float = 6.0  # nats per answer; Ziegler 2019 (6 or 10)
  kl_horizon: float = 10_000.0  # episodes; n / horizon is Ziegler's K_beta,
  # which is his 0.1 at n = 1,000 answers per rollout
  kl_clip: float = 0.2  # bound on KL / target - 1; Ziegler 2019
  warn_nats: float = 15.0  # KL to the reference per answer that is an alarm
  halt_nats: float = 20.0  # KL to the reference per answer that stops the run

  def __post_init__(self) -> None:
    choices = {
      "missing_eos": ("keep", "replace", "subtract", "mask"),
      "normalise": ("none", "scale", "standardise"),
      "token_rewards": token_rewards.MODES,
      "whitening": ("none", "scale", "keep_mean"),
      "kl_controller": ("fixed", "adaptive"),
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: must be one of "
          f"{', '.join(allowed)}."
        )
    if self.kl_estimator != "k1":
      raise ValueError(
        f"kl_estimator={self.kl_estimator!r}: the KL in the reward must be "
        "'k1'. The policy gradient of k3 as a reward is that of KL(p || p_ref) "
        "- KL(p_ref || p), which diverges; that of k2 is of neither KL. Set "
        "'k1', or use k2 or k3 in the loss (kl_loss)."
      )
    self._check_overlong()
    for name in (
      "missing_eos_penalty",
      "overlong_penalty",
      "length_penalty",
      "length_penalty_start",
      "kl_coefficient",
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name}={getattr(self, name)}: must be >= 0; its sign is already in "
          "the formula."
        )
    for name in ("kl_target", "kl_horizon", "kl_clip", "token_coefficient"):
      if getattr(self, name) <= 0:
        raise ValueError(f"{name}={getattr(self, name)}: must be > 0.")
    if self.kl_controller == "adaptive" and self.kl_coefficient == 0:
      raise ValueError(
        "kl_coefficient=0.0 with kl_controller='adaptive': the controller "
        "multiplies it, so it would stay 0. Set a coefficient > 0, or "
        "kl_controller='fixed' for no KL penalty."
      )
    if self.clip is not None and self.clip <= 0:
      raise ValueError(
        f"clip={self.clip}: must be > 0. Set None for no clipping."
      )
    if self.warn_nats > self.halt_nats:
      raise ValueError(
        f"warn_nats={self.warn_nats} > halt_nats={self.halt_nats}: the warning "
        "must not come after the stop."
      )
    self._check_read()

  def _check_read(self) -> None:
    """Raises ValueError for a setting that nothing reads beside the others."""
    unread = {
      "missing_eos_value": ("missing_eos", self.missing_eos != "replace"),
      "missing_eos_penalty": ("missing_eos", self.missing_eos != "subtract"),
      "length_penalty_start": ("length_penalty", self.length_penalty == 0),
      "overlong_penalty": ("overlong_tokens", self.overlong_tokens is None),
      "token_coefficient": ("token_rewards", self.token_rewards == "none"),
    }
    for name, (reader, is_unread) in unread.items():
      value, usual = getattr(self, name), getattr(type(self), name)
      if is_unread and value != usual:
        raise ValueError(
          f"{name}={value!r}: nothing reads it with {reader}="
          f"{getattr(self, reader)!r}. Change {reader}, or leave {name} at "
          f"{usual!r}."
        )

  def _check_overlong(self) -> None:
    if self.overlong_tokens is None:
      if self.overlong_cache:
        raise ValueError(
          f"overlong_cache={self.overlong_cache}: needs overlong_tokens too. "
          "Set it to the longest answer, or the cache to 0."
        )
      return
    if not 1 <= self.overlong_cache <= self.overlong_tokens:
      raise ValueError(
        f"overlong_cache={self.overlong_cache}: must be in [1, overlong_tokens="
        f"{self.overlong_tokens}]. DAPO has 4,096 of 20,480."
      )


@flax.struct.dataclass
class Moments:
  """Running moments of the scores of all answers seen: part of a checkpoint.

  count: [] float32, answers.
  mean: [] float32.
  m2: [] float32, sum of squared deviations from the mean.
  """

  count: Array
  mean: Array
  m2: Array


def init_moments() -> Moments:
  """Returns the moments of no answers."""
  return Moments(
    count=jnp.zeros((), jnp.float32),
    mean=jnp.zeros((), jnp.float32),
    m2=jnp.zeros((), jnp.float32),
  )


def standard_deviation(moments: Moments) -> Array:
  """Returns [] sqrt(m2 / count + 1e-8): population, not sample."""
  return jnp.sqrt(moments.m2 / jnp.maximum(moments.count, 1.0) + 1e-8)


def update_moments(moments: Moments, x: Array, mask: Array) -> Moments:
  """Returns the moments with x merged in.

  Chan, Golub and LeVeque 1979: exact for batches of any size, and stable where
  a running sum of squares is not.

  Args:
    moments: so far.
    x: [N] float32, the whole rollout batch, so that sharding has no effect.
    mask: [N], 1 on answers that count.
  """
  count = jnp.sum(mask)
  difference, mean = ops.centred(x, mask)
  m2 = jnp.sum(jnp.square(difference))
  total = moments.count + count
  delta = mean - moments.mean
  divisor = jnp.maximum(total, 1.0)
  return Moments(
    count=total,
    mean=moments.mean + delta * (count / divisor),  # exact where alone
    m2=moments.m2 + m2 + jnp.square(delta) * moments.count * count / divisor,
  )


def _raw_score(
  rollout: Rollout, config: Config
) -> tuple[Array, Array, Metrics]:
  """Returns scores after the two penalties, rows kept [N], and metrics."""
  score = rollout.score.astype(jnp.float32)
  exists = jnp.any(rollout.response_mask > 0, axis=-1).astype(jnp.float32)
  kept = exists
  is_truncated = rollout.finish_reason == FINISH_LENGTH
  penalised = score
  if config.missing_eos == "replace":
    penalised = jnp.where(is_truncated, config.missing_eos_value, score)
  elif config.missing_eos == "subtract":
    penalised = jnp.where(
      is_truncated, score - config.missing_eos_penalty, score
    )
  elif config.missing_eos == "mask":
    kept = jnp.where(is_truncated, 0.0, exists)
  lengths = jnp.sum(rollout.response_mask, -1)
  excess = jnp.maximum(lengths - config.length_penalty_start, 0.0)
  length_term = -config.length_penalty * excess
  if config.overlong_tokens is not None:
    start = config.overlong_tokens - config.overlong_cache
    share = jnp.clip((lengths - start) / config.overlong_cache, 0.0, 1.0)
    length_term = length_term - config.overlong_penalty * share
  metrics = {
    "reward/raw": ops.masked_mean(score, kept),
    "reward/missing_eos": ops.masked_mean(penalised - score, kept),
    "reward/length_penalty": ops.masked_mean(length_term, kept),
    "reward/kept_share": ops.masked_mean(kept, exists),
  }
  return penalised + length_term, kept, metrics


def _normalised(score: Array, moments: Moments, config: Config) -> Array:
  """Returns scores [N] in units of the moments, before the clip."""
  if config.normalise == "none":
    return score
  centre = moments.mean if config.normalise == "standardise" else 0.0
  return (score - centre) / standard_deviation(moments)


def _clipped(score: Array, limit: float | None) -> Array:
  return score if limit is None else jnp.clip(score, -limit, limit)


def shaped_scores(rollout: Rollout, moments: Moments, config: Config) -> Array:
  """Returns [N] s' of answers under given moments, which they do not enter.

  What `shape_rewards` puts on the last token, for answers that serve as a
  baseline only (ReMax): both sides of a difference then follow one rule. An
  answer that missing_eos="mask" would drop keeps its score.

  Args:
    rollout: unpacked, with score.
    moments: as returned by `shape_rewards`.
    config: settings.
  """
  score, _, _ = _raw_score(rollout, config)
  return _clipped(_normalised(score, moments, config), config.clip)


def shape_rewards(
  rollout: Rollout, moments: Moments, kl_coefficient: Array, config: Config
) -> tuple[Rollout, Moments, Metrics]:
  """Writes `rewards` into a rollout (module docstring has the formula).

  With missing_eos="mask", truncated answers leave the loss: response_mask
  becomes 0 on their rows, and they enter neither the moments nor the reward
  metrics. Under normalise, the moments include this batch before use.

  Metrics: those of `rollout_metrics`, over all answers, and over kept ones
    reward/raw: mean score as given. Falling is bad.
    reward/shaped: mean score after shaping, before the KL. Falling is bad.
    reward/kl_term: mean of -beta KL per answer. Far below 0 is bad.
    reward/total: shaped + kl_term, the objective. Falling is bad.
    reward/deviation: of the rewards of tokens before whitening, which divides
      by it. Towards 0 is bad: noise becomes the reward.
    reward/token_sum: mean of what token rewards add to an answer; of a
      potential its start's, with a minus, which no policy moves. Of raw values
      rising while reward/shaped does not is bad: it is longer, not better.
    reward/token_size: mean size of these, a token. Far above the size of the
      score is bad: they drown it.
    reward/missing_eos: mean change by that rule. Far below 0 is bad.
    reward/length_penalty: mean change by length. Far below 0 is bad.
    reward/kept_share: answers not masked. Down is bad: wasted samples.
    reward/clip_share: scores beyond the clip. Up is bad: differences lost.
    reward/running_mean, reward/running_std: of penalised scores. A std
      towards 0 is bad: nothing to learn from.
    ppo/kl_coefficient: beta as used. No bad direction.

  Args:
    rollout: unpacked, with score and reference_logprobs.
    moments: of all earlier rollouts; not read when normalise is "none".
    kl_coefficient: [] beta, from `update_kl_coefficient`.
    config: settings.

  Returns:
    rollout with rewards [N, L] (and response_mask), moments, metrics.

  Raises:
    ValueError: the rollout is packed.
  """
  if rollout.segment_ids is not None:
    raise ValueError(
      "segment_ids is set: a packed rollout has several answers per row and "
      "one score per answer. Shape rewards first, pack afterwards."
    )
  monitored = rollout_metrics(rollout)
  score, kept, metrics = _raw_score(rollout, config)
  moments = update_moments(moments, score, kept)
  normal = _normalised(score, moments, config)
  score = _clipped(normal, config.clip)
  clip_share = ops.masked_mean((normal != score) * 1.0, kept)

  mask = rollout.response_mask * kept[:, None]
  behaviour = ops.neutral(rollout.behaviour_logprobs, mask)
  reference = ops.neutral(rollout.reference_logprobs, mask)
  # A group of equal scores stays one under the rounding of two programs.
  difference = ops.unless_rounding(behaviour, reference) - reference
  columns = jnp.arange(mask.shape[-1])[None, :]
  is_last = (columns == ops.last_index(mask)[:, None]) & (mask > 0)
  kl_term = -kl_coefficient * difference
  rewards = kl_term + jnp.where(is_last, score[:, None], 0.0)
  if config.token_rewards != "none":
    added = mask * token_rewards.of_rollout(
      rollout, config.token_rewards, config.token_coefficient
    )
    rewards = rewards + added
    metrics["reward/token_sum"] = ops.masked_mean(jnp.sum(added, -1), kept)
    metrics["reward/token_size"] = ops.masked_mean(jnp.abs(added), mask)

  if config.whitening != "none":
    rewards, metrics["reward/deviation"] = _whitened(rewards, mask, config)

  kl_mean = ops.masked_mean(jnp.sum(kl_term, -1), kept)
  shaped = ops.masked_mean(score, kept)
  metrics |= monitored | {
    "reward/shaped": shaped,
    "reward/kl_term": kl_mean,
    "reward/total": shaped + kl_mean,
    "reward/clip_share": clip_share,
    "reward/running_mean": moments.mean,
    "reward/running_std": standard_deviation(moments),
    "ppo/kl_coefficient": jnp.asarray(kl_coefficient, jnp.float32),
  }
  rollout = rollout.replace(
    rewards=rewards, response_mask=mask, prefix_values=None, prefix_mask=None
  )
  return rollout, moments, metrics


def _whitened(
  rewards: Array, mask: Array, config: Config
) -> tuple[Array, Array]:
  """Returns rewards [N, L] of unit deviation, and the deviation [] before.

  Statistics are of all response tokens of the rollout, so sharding has no
  effect; variance is divided by n, 1e-8 inside the root.
  """
  deviation = jnp.sqrt(ops.masked_variance(rewards, mask) + 1e-8)
  if config.whitening == "keep_mean":
    return ops.whiten(rewards, mask, shifts_mean=False), deviation
  return ops.neutral(rewards, mask) / deviation, deviation


def rollout_metrics(rollout: Rollout) -> Metrics:
  """Returns what to watch in a rollout, over all its answers.

  Metrics:
    rollout/score_mean: falling is bad. rollout/score_std: towards 0 is bad.
    rollout/kl_k1_sum: KL to the reference, nats per answer, unbiased. Up is
      drift; below 0 by more than its standard error is a sampler that does
      not match the trainer.
    rollout/kl_k1_standard_error: of the former.
    rollout/kl_k3_sum: the same KL, never negative, heavy tail. Up is bad.
    rollout/kl_per_token: k1 per token. Up is drift.
    rollout/entropy: -log p of the samples, nats per token. Towards 0 is bad.
    rollout/length_mean, rollout/length_p95: tokens. Up, win rate flat, is bad.
    rollout/eos_share: answers that ended by themselves. Below 0.5 is bad.
    rollout/score_length_correlation: Pearson's, of score and tokens of an
      answer; 0 where either does not vary. Above 0.3 is bad: length pays.

  Args:
    rollout: unpacked.
  """
  mask = rollout.response_mask
  exists = jnp.any(mask > 0, axis=-1).astype(jnp.float32)
  answers = jnp.maximum(jnp.sum(exists), 1.0)
  behaviour = ops.neutral(rollout.behaviour_logprobs, mask)
  reference = ops.neutral(rollout.reference_logprobs, mask)
  k1 = jnp.sum(ops.kl_k1(behaviour, reference), axis=-1)
  lengths = jnp.sum(mask, axis=-1)
  score = rollout.score.astype(jnp.float32)
  k3 = ops.kl_k3(behaviour, reference)
  return {
    "rollout/score_mean": ops.masked_mean(score, exists),
    "rollout/score_std": jnp.sqrt(ops.masked_variance(score, exists)),
    "rollout/kl_k1_sum": ops.masked_mean(k1, exists),
    "rollout/kl_k1_standard_error": jnp.sqrt(
      ops.masked_variance(k1, exists) / answers
    ),
    "rollout/kl_k3_sum": jnp.sum(k3) / answers,
    "rollout/kl_per_token": jnp.sum(k1) / jnp.maximum(jnp.sum(mask), 1.0),
    "rollout/entropy": ops.masked_mean(-behaviour, mask),
    "rollout/length_mean": ops.masked_mean(lengths, exists),
    "rollout/length_p95": jnp.percentile(lengths, 95.0),
    "rollout/eos_share": ops.masked_mean(
      (rollout.finish_reason != FINISH_LENGTH) * 1.0, exists
    ),
    "rollout/score_length_correlation": _correlation(score, lengths, exists),
  }


def _correlation(x: Array, y: Array, mask: Array) -> Array:
  """Returns Pearson's correlation where mask is 1, 0 where one is constant."""
  x = (x - ops.masked_mean(x, mask)) * mask
  y = (y - ops.masked_mean(y, mask)) * mask
  scale = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
  is_known = scale > 1e-9
  return jnp.where(
    is_known, jnp.sum(x * y) / jnp.where(is_known, scale, 1.0), 0.0
  )
