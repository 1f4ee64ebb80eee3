"""Losses of a reward model on the scores of compared answers, in nats.

  pairwise  - p log s(d) - (1 - p) log s(-d),   d = r_0 - r_1 - m sign(p - 1/2)
  k-wise    - mean over pairs i better than j of log s(r_i - r_j - m_ij)
  Plackett-Luce  - sum_k log softmax(r_k ... r_K)_k, best first
  choice    - log softmax(r_1 ... r_K)_best
  regression  mean of (r_i - y_i)^2
  ordinal   - log (s(r_i - lower) - s(r_i - upper)), thresholds of its grade

s is the logistic function, p the probability that candidate 0 is better (1
for a plain choice, 1/2 for a tie), m a margin. Bradley and Terry 1952;
k-wise: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155); margin: Touvron et
al. 2023, section 3.2.2 (arXiv:2307.09288); choice: Ziegler et al. 2019
(arXiv:1909.08593). Of the first four only differences of scores of one prompt
are identified; centring, eta (r_i + r_j)^2, pins the rest near 0 (Eisenstein
et al. 2023, arXiv:2312.09244). Regression and ordinal read scores that people
gave, and identify the score itself.

Arrays in, one number a prompt out; reward.py has settings and the update.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array

FAR = 1e4  # nats; a threshold that is not there


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
    rank: [B, K], 0 is best; equal ranks are ties and give no pair, nor does
      NaN.
    valid: [B, K], 0 where a prompt has fewer than K answers.
  """
  above = rank[:, :, None] < rank[:, None, :]
  return (above & _both(valid)).astype(jnp.float32)


def _both(valid: Array) -> Array:
  """Returns [B, K, K], whether i and j are there."""
  return (valid[:, :, None] > 0) & (valid[:, None, :] > 0)


def pair_mean(x: Array, wins: Array) -> Array:
  """Returns [B], the mean of x [B, K, K] over the pairs of each prompt."""
  total = jnp.sum(ops.neutral(x, wins) * wins, (1, 2))
  return total / jnp.maximum(jnp.sum(wins, (1, 2)), 1.0)


def kwise_loss(
  scores: Array,
  rank: Array,
  valid: Array,
  *,
  margin: Array | None = None,
  label_smoothing: float = 0.0,
  counts_ties: bool = False,
) -> Array:
  """Returns [B], the mean pairwise loss over all ordered pairs of a prompt.

  Each prompt is divided by its own number of pairs (Ouyang et al. 2022, eq. 1,
  where it is K choose 2).

  Args:
    scores: [B, K] float32.
    rank: [B, K], 0 is best; NaN is in no pair.
    valid: [B, K]; a candidate that does not exist may score anything, NaN too.
    margin: [B, K, K], by how much i must win over j; or broadcast to it.
    label_smoothing: epsilon, the assumed share of flipped pairs.
    counts_ties: tied pairs count, with p = 1/2; else they are excluded.
  """
  scores = ops.neutral(scores, valid)
  difference = scores[:, :, None] - scores[:, None, :]
  apart = difference if margin is None else difference - margin
  losses = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(
    apart
  ) - label_smoothing * jax.nn.log_sigmoid(-apart)
  wins = pair_wins(rank, valid)
  if not counts_ties:
    return pair_mean(losses, wins)
  tied = (rank[:, :, None] == rank[:, None, :]) & _both(valid)
  tied = jnp.triu(tied.astype(jnp.float32), 1)
  evenly = -0.5 * (
    jax.nn.log_sigmoid(difference) + jax.nn.log_sigmoid(-difference)
  )
  return pair_mean(jnp.where(tied > 0, evenly, losses), wins + tied)


def plackett_luce_loss(scores: Array, rank: Array, valid: Array) -> Array:
  """Returns [B], minus the log-likelihood of each ranking, in nats.

  Plackett 1975. Candidates with equal rank stay in each other's choice set
  (Breslow's approximation for ties).

  Args:
    scores: [B, K] float32.
    rank: [B, K], 0 is best; NaN takes no part.
    valid: [B, K], 0 where a prompt has fewer than K answers, whose scores may
      be anything, NaN too.
  """
  valid = valid * ~jnp.isnan(rank)
  scores = ops.neutral(scores, valid)
  remaining = (rank[:, None, :] >= rank[:, :, None]) & (valid[:, None, :] > 0)
  itself = jnp.eye(scores.shape[-1], dtype=bool)[None]  # keeps every row finite
  logits = jnp.where(remaining | itself, scores[:, None, :], -jnp.inf)
  losses = jax.nn.logsumexp(logits, axis=-1) - scores
  return jnp.sum(losses * (valid > 0), axis=-1)


def choice_loss(scores: Array, rank: Array, valid: Array) -> Array:
  """Returns [B], -log softmax(scores)_b of the best answer b, in nats.

  Ziegler et al. 2019, equation 1 (arXiv:1909.08593): one choice among K, not a
  ranking. Where several share the first place it is the probability that one of
  them is chosen; where all do it is 0 and teaches nothing.

  Args:
    scores: [B, K] float32.
    rank: [B, K], the lowest is the best; NaN takes no part.
    valid: [B, K], as in `plackett_luce_loss`.
  """
  valid = valid * ~jnp.isnan(rank)
  scores = ops.neutral(scores, valid)
  known = jnp.where(valid > 0, rank, jnp.inf)
  is_best = (valid > 0) & (known == jnp.min(known, -1, keepdims=True))
  # Absent ones far below, so that a row without any stays finite.
  among = jnp.where(valid > 0, scores, ops.ABSENT)
  best = jnp.where(is_best, scores, ops.ABSENT)
  losses = jax.nn.logsumexp(among, -1) - jax.nn.logsumexp(best, -1)
  return jnp.where(jnp.any(valid > 0, -1), losses, 0.0)


def regression_loss(scores: Array, target: Array, valid: Array) -> Array:
  """Returns [B], the mean of (r - y)^2 over the scored answers of a prompt.

  As HelpSteer trains its attributes (Wang et al. 2023, arXiv:2311.09528).

  Args:
    scores: [B, K] float32.
    target: [B, K], y, NaN for none.
    valid: [B, K], 0 where a prompt has fewer than K answers.
  """
  known = valid * ~jnp.isnan(target)
  apart = ops.neutral(scores, known) - ops.neutral(target, known)
  count = jnp.maximum(jnp.sum(known > 0, -1), 1)
  return jnp.sum(jnp.square(apart), -1) / count


def ordinal_loss(scores: Array, bounds: Array, valid: Array) -> Array:
  """Returns [B], minus the mean log-likelihood of the grades of a prompt.

    P(grade) = s(r - lower) - s(r - upper)

  the proportional odds of McCullagh 1980, with the thresholds between grades
  given: the lowest grade has lower = -inf, the highest upper = inf. They are
  not learnt: wrong ones are a wrong link of a concave likelihood, which leaves
  the direction of a linear score consistent where features are elliptical (Li
  and Duan 1989), and its scale, the rest, is normalised afterwards.

  Args:
    scores: [B, K] float32.
    bounds: [B, K, 2], lower and upper threshold of the grade, nats; NaN for no
      grade.
    valid: [B, K], 0 where a prompt has fewer than K answers.
  """
  known = valid * ~jnp.any(jnp.isnan(bounds), -1)
  scores = ops.neutral(scores, known)
  lower, upper = (
    ops.neutral(jnp.clip(bounds[..., n], -FAR, FAR), known, fill)
    for n, fill in ((0, -FAR), (1, FAR))
  )
  # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)); the last is of the bounds alone.
  losses = -(
    jax.nn.log_sigmoid(scores - lower)
    + jax.nn.log_sigmoid(upper - scores)
    + jnp.log1p(-jnp.exp(lower - upper))
  )
  count = jnp.maximum(jnp.sum(known > 0, -1), 1)
  return jnp.sum(losses * (known > 0), -1) / count


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
