"""Reward models: losses on comparisons of answers to one prompt.

  pairwise  - p log s(d) - (1 - p) log s(-d),   d = r_0 - r_1 - m sign(p - 1/2)
  k-wise    - mean over pairs i better than j of log s(r_i - r_j)
  Plackett-Luce  - sum_k log softmax(r_k ... r_K)_k, best first

s is the logistic function, p the probability that candidate 0 is better (1
for a plain choice, 1/2 for a tie), m a margin. Bradley and Terry 1952;
k-wise: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155); margin: Touvron et
al. 2023, section 3.2.2 (arXiv:2307.09288). Only differences of scores of one
prompt are identified; centring, eta (r_i + r_j)^2, pins the rest near 0
(Eisenstein et al. 2023, arXiv:2312.09244).

Left out: `update` passes no margin and takes candidates of K > 2 as listed
best first, because a PreferenceBatch carries neither margins nor ranks; two
candidates are ranked by their label. A tie in a ranking is excluded, not
counted as 1/2, and a soft label is taken as certain: `check_labels` refuses
both, 'pairwise' has them. L2 is the optimizer's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms.accumulate import accumulate, apply_gradients
from rlhf_jax.types import Array, Metrics, PreferenceBatch, PyTree, TrainState

OBJECTIVES = ("pairwise", "k-wise", "plackett-luce")


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of reward-model training."""

  objective: str = "pairwise"  # two answers, or rankings of K >= 2: all their
  # pairs (Ouyang et al. 2022), or Plackett-Luce
  label_smoothing: float = 0.0  # epsilon: label p becomes p(1-e) + (1-p)e
  centering: float = 0.0  # eta of eta (r_i + r_j)^2, which holds scores near
  # 0; 0.01 in Eisenstein et al. 2023
  microbatches: int = 1  # parts of a batch; one part's activations at a time

  def __post_init__(self) -> None:
    if self.objective not in OBJECTIVES:
      raise ValueError(
        f"objective={self.objective!r}: must be one of {', '.join(OBJECTIVES)}."
      )
    if not 0.0 <= self.label_smoothing < 0.5:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 0.5); at 0.5 "
        "labels say nothing."
      )
    if self.objective == "plackett-luce" and self.label_smoothing > 0.0:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: a ranking under "
        "'plackett-luce' has no smoothed form. Set 0, or use 'k-wise'."
      )
    if self.centering < 0.0:
      raise ValueError(f"centering={self.centering}: must be >= 0.")
    if self.microbatches < 1:
      raise ValueError(
        f"microbatches={self.microbatches}: must be >= 1. Set 1 for no split."
      )


def pairwise_loss(
  scores: Array,
  label: Array,
  *,
  margin: Array | None = None,
  label_smoothing: float = 0.0,
) -> Array:
  """Returns [B], the Bradley-Terry loss with soft labels, in nats.

  Args:
    scores: [B, 2] float32.
    label: [B] in [0, 1], probability that candidate 0 is the better.
    margin: [B] >= 0, by how much the better one must win; no effect on ties.
    label_smoothing: epsilon, the assumed share of flipped labels.

  Raises:
    ValueError: K is not 2.
  """
  if scores.shape[-1] != 2:
    raise ValueError(
      f"scores have K={scores.shape[-1]} candidates: pairwise_loss takes 2. "
      "Set objective to 'k-wise' or 'plackett-luce'."
    )
  difference = scores[:, 0] - scores[:, 1]
  if margin is not None:
    difference = difference - margin * jnp.sign(label - 0.5)
  target = label * (1.0 - label_smoothing) + (1.0 - label) * label_smoothing
  return -target * jax.nn.log_sigmoid(difference) - (
    1.0 - target
  ) * jax.nn.log_sigmoid(-difference)


def pair_wins(rank: Array, valid: Array) -> Array:
  """Returns [B, K, K], 1 where i and j are valid and i ranks above j.

  Args:
    rank: [B, K], 0 is best; equal ranks are ties and give no pair.
    valid: [B, K], 0 where a prompt has fewer than K answers.
  """
  above = rank[:, :, None] < rank[:, None, :]
  both = (valid[:, :, None] > 0) & (valid[:, None, :] > 0)
  return (above & both).astype(jnp.float32)


def pair_mean(x: Array, wins: Array) -> Array:
  """Returns [B], the mean of x [B, K, K] over the pairs of each prompt."""
  total = jnp.sum(ops.neutral(x, wins) * wins, (1, 2))
  return total / jnp.maximum(jnp.sum(wins, (1, 2)), 1.0)


def kwise_loss(
  scores: Array, rank: Array, valid: Array, *, label_smoothing: float = 0.0
) -> Array:
  """Returns [B], the mean pairwise loss over all ordered pairs of a prompt.

  Each prompt is divided by its own number of pairs (Ouyang et al. 2022, eq. 1,
  where it is K choose 2).

  Args:
    scores: [B, K] float32.
    rank: [B, K], 0 is best; tied pairs are excluded.
    valid: [B, K]; a candidate that does not exist may score anything, NaN too.
    label_smoothing: epsilon, the assumed share of flipped pairs.
  """
  scores = ops.neutral(scores, valid)
  difference = scores[:, :, None] - scores[:, None, :]
  losses = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(
    difference
  ) - label_smoothing * jax.nn.log_sigmoid(-difference)
  return pair_mean(losses, pair_wins(rank, valid))


def plackett_luce_loss(scores: Array, rank: Array, valid: Array) -> Array:
  """Returns [B], minus the log-likelihood of each ranking, in nats.

  Plackett 1975. Candidates with equal rank stay in each other's choice set
  (Breslow's approximation for ties).

  Args:
    scores: [B, K] float32.
    rank: [B, K], 0 is best.
    valid: [B, K], 0 where a prompt has fewer than K answers, whose scores may
      be anything, NaN too.
  """
  scores = ops.neutral(scores, valid)
  remaining = (rank[:, None, :] >= rank[:, :, None]) & (valid[:, None, :] > 0)
  itself = jnp.eye(scores.shape[-1], dtype=bool)[None]  # keeps every row finite
  logits = jnp.where(remaining | itself, scores[:, None, :], -jnp.inf)
  losses = jax.nn.logsumexp(logits, axis=-1) - scores
  return jnp.sum(losses * (valid > 0), axis=-1)


def _wins(batch: PreferenceBatch, objective: str) -> Array:
  """Returns [B, K, K], 1 where the label says that i beats j; ties give 0."""
  if objective == "pairwise":
    first = (batch.label > 0.5).astype(jnp.float32)
    second = (batch.label < 0.5).astype(jnp.float32)
    zero = jnp.zeros_like(first)
    return jnp.stack(
      [jnp.stack([zero, first], -1), jnp.stack([second, zero], -1)], axis=1
    )
  return pair_wins(_rank(batch), _valid(batch))


def _rank(batch: PreferenceBatch) -> Array:
  """Returns [B, K] ranks, 0 is best: by label for K = 2, else as listed."""
  rows, candidates = batch.tokens.shape[:2]
  if candidates == 2:
    first, second = batch.label < 0.5, batch.label > 0.5
    return jnp.stack([first, second], axis=1).astype(jnp.int32)
  return jnp.broadcast_to(jnp.arange(candidates)[None], (rows, candidates))


def _valid(batch: PreferenceBatch) -> Array:
  """Returns [B, K], 1 where a candidate has any response token."""
  return jnp.any(batch.loss_mask > 0, axis=-1).astype(jnp.float32)


def check_labels(labels: np.ndarray, config: Config) -> None:
  """Raises ValueError for labels that the objective cannot express.

  Args:
    labels: [P], probability that the first of two candidates is the better.
    config: settings.
  """
  if config.objective == "pairwise":
    return
  soft = labels[(labels != 0.0) & (labels != 1.0)]
  if soft.size:
    raise ValueError(
      f"objective={config.objective!r}: {soft.size} of {labels.size} labels "
      f"are neither 0 nor 1 (for example {soft[0]:g}), and a ranking has no "
      "soft order. Use objective='pairwise', or leave them out (data.ties="
      "'drop' for rated texts)."
    )


def denominators(batch: PreferenceBatch, config: Config) -> Metrics:
  """Returns the weights of a whole batch that `loss` divides by."""
  has_winner = jnp.any(_wins(batch, config.objective) > 0, axis=(1, 2))
  return {
    "prompts": jnp.sum(batch.weight),
    "decided": jnp.sum(batch.weight * has_winner),
  }


def loss(
  scores: Array, batch: PreferenceBatch, config: Config, denominators: Metrics
) -> tuple[Array, Metrics]:
  """Returns the loss plus centring, as a contribution to the batch's.

  Metrics (over prompts; ties count in neither accuracy nor margin):
    reward_model/loss: nats, without centring. Up is bad; log 2 is chance.
    reward_model/accuracy: share of pairs ordered as labelled. Down is bad; 0.5
      is chance.
    reward_model/margin: score of the better minus score of the worse. Below 0
      is bad.
    reward_model/spread: standard deviation (divided by K) of the scores of one
      prompt. Stuck near 0 is bad: a collapsed model.
    reward_model/score_mean: of all candidates. Far from 0 is drift; harmless
      to ranks.

  Args:
    scores: [B, K] float32; anything where weight is 0.
    batch: these prompts.
    config: settings.
    denominators: of the whole batch.
  """
  weight = batch.weight
  mask = jnp.broadcast_to(weight[:, None], scores.shape)
  if config.objective != "pairwise":
    mask = mask * _valid(batch)
  scores = ops.neutral(scores, mask)
  wins = _wins(batch, config.objective)
  if config.objective == "pairwise":
    losses = pairwise_loss(
      scores, batch.label, label_smoothing=config.label_smoothing
    )
  elif config.objective == "k-wise":
    losses = kwise_loss(
      scores, _rank(batch), mask, label_smoothing=config.label_smoothing
    )
  else:
    losses = plackett_luce_loss(scores, _rank(batch), mask)

  prompts = jnp.maximum(denominators["prompts"], 1e-8)
  decided = jnp.maximum(denominators["decided"], 1e-8)
  value = jnp.sum(losses * weight) / prompts
  centring = jnp.sum(centering_loss(scores, mask) * weight) / prompts
  count = jnp.maximum(jnp.sum(mask > 0, -1), 1)
  mean = jnp.sum(scores, -1) / count
  deviation = jnp.where(mask > 0, scores - mean[:, None], 0.0)
  spread = jnp.sqrt(jnp.sum(jnp.square(deviation), -1) / count)
  difference = scores[:, :, None] - scores[:, None, :]
  right = pair_mean((difference > 0) * 1.0, wins)
  metrics = {
    "reward_model/loss": value,
    "reward_model/accuracy": jnp.sum(right * weight) / decided,
    "reward_model/margin": jnp.sum(pair_mean(difference, wins) * weight)
    / decided,
    "reward_model/spread": jnp.sum(spread * weight) / prompts,
    "reward_model/score_mean": jnp.sum(mean * weight) / prompts,
  }
  return value + config.centering * centring, metrics


def centering_loss(scores: Array, valid: Array) -> Array:
  """Returns [B], the mean of (r_i + r_j)^2 over the pairs of valid candidates.

  Args:
    scores: [B, K] float32.
    valid: [B, K], > 0 where the candidate exists.
  """
  candidates = jnp.broadcast_to(
    jnp.arange(scores.shape[-1])[None], scores.shape
  )
  scores = ops.neutral(scores, valid)
  total = scores[:, :, None] + scores[:, None, :]
  return pair_mean(jnp.square(total), pair_wins(candidates, valid))


def update(
  state: TrainState,
  frozen: PyTree,
  batch: PreferenceBatch,
  rng: Array,
  *,
  config: Config,
  apply: Callable[..., Array],
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on one batch of comparisons.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train. `rng` is unused (there is no dropout): all updates share a signature.

  Metrics: those of `loss`, and
    reward_model/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: [B, K, L]; K = 2 is ordered by its label, more candidates are
      listed best first; those without a response token are absent.
    rng: unused.
    config: settings.
    apply: (params, frozen, batch) -> scores [B, K] float32.
    optimizer: an optax.GradientTransformation.

  Raises:
    ValueError: microbatches does not divide B, or K does not fit objective.
  """
  del rng

  def contribution(params, microbatch, frozen, counts):
    return loss(apply(params, frozen, microbatch), microbatch, config, counts)

  grads, value, metrics = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    denominators(batch, config),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics |= {
    "reward_model/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
