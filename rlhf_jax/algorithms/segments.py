"""Preferences between segments of trajectories.

  P(1 > 2) = exp sum_t r(o_t, a_t) / (the same of 1 and 2)
  Q = (1 - e) P + e / 2
  L = - mu log Q - (1 - mu) log (1 - Q)

over pairs of segments of equal length; mu is 1, 0, or 1/2 for a tie, and pairs
that nobody can compare count nothing. e is the share of answers that are given
by chance: however far apart two rewards are, a label may be wrong. Christiano
et al. 2017, arXiv:1706.03741, sections 2.2.3 and 2.2.4, with e = 0.1.

Each of several predictors learns from labels drawn with replacement, and is
validated on those it did not draw: as labels come one by one, each counts for a
member as often as a Poisson variable of mean 1 says (Oza and Russell 2001), and
a share 1 / e of them not at all, the share that the paper holds out.

Sums are compared, so a longer segment would win by its length alone. All are of
one length here, and nothing is masked.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array


def preference(returns: Array, error: float = 0.0) -> Array:
  """Returns [...], the probability that the first of two segments is preferred.

  Args:
    returns: [..., 2], sum of predicted rewards of each segment, nats.
    error: e, share of answers given by chance, in [0, 1).
  """
  chosen = jax.nn.sigmoid(returns[..., 0] - returns[..., 1])
  return (1.0 - error) * chosen + 0.5 * error


def loss(returns: Array, label: Array, error: float = 0.1) -> Array:
  """Returns [...], the cross-entropy of labels, nats.

  Args:
    returns: [..., 2], sum of predicted rewards of each segment, nats.
    label: [...] in [0, 1], mu: probability that the first is better; of several
      members the same.
    error: e, share of answers given by chance, in [0, 1).
  """
  if error == 0.0:
    apart = returns[..., 0] - returns[..., 1]
    first, second = jax.nn.log_sigmoid(apart), jax.nn.log_sigmoid(-apart)
  else:
    first = jnp.log(preference(returns, error))
    second = jnp.log(preference(returns[..., ::-1], error))
  label = jnp.broadcast_to(label, first.shape)
  return -label * first - (1.0 - label) * second


def disagreement(returns: Array, error: float = 0.1) -> Array:
  """Returns [Q], the variance over members of their preference.

  Christiano et al. 2017, section 2.2.4: what is asked next is where it is
  largest.

  Args:
    returns: [M, Q, 2].
    error: e.
  """
  return jnp.var(preference(returns, error), axis=0)


def bootstrap(key: Array, labels: int, members: int) -> Array:
  """Returns float32 [labels, M], how often each new label counts for a member.

  0, of a share 1 / e, is what validates it.
  """
  drawn = jax.random.poisson(key, 1.0, (labels, members))
  return drawn.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Decay:
  """How L2 regularisation follows the validation loss.

  Stronger where validation loss is more than `high` times the training loss,
  weaker below `low`; Christiano et al. 2017, section 2.2.3.
  """

  start: float = 1e-3  # coefficient of half the sum of squared weights
  low: float = 1.1  # validation loss as a multiple of the training loss
  high: float = 1.5  # the same, upper end
  factor: float = 1.5  # by which the coefficient changes at a time
  least: float = 1e-6  # coefficient
  most: float = 0.1  # coefficient

  def __post_init__(self) -> None:
    if not 1.0 <= self.low < self.high:
      raise ValueError(
        f"low={self.low}, high={self.high}: must be 1 <= low < high."
      )
    if self.factor <= 1.0:
      raise ValueError(f"factor={self.factor}: must be > 1.")
    if not 0.0 < self.least <= self.start <= self.most < math.inf:
      raise ValueError(
        f"start={self.start}: must be within least={self.least} > 0 and most="
        f"{self.most}."
      )


def tuned(decay: Array, training: Array, validation: Array, how: Decay):
  """Returns [...] the coefficients for the next steps.

  Args:
    decay: [...], coefficients.
    training, validation: [...], losses without the penalty, nats; a coefficient
      stays where one of them is NaN.
    how: see `Decay`.
  """
  ratio = validation / jnp.maximum(training, 1e-8)
  factor = jnp.where(ratio > how.high, how.factor, 1.0)
  factor = jnp.where(ratio < how.low, 1.0 / how.factor, factor)
  return jnp.clip(decay * factor, how.least, how.most)


def due(
  labels: int, rollouts: int, first_share: float, half_rollouts: float
) -> np.ndarray:
  """Returns int [rollouts], the labels that are asked for after each rollout.

  A share of all is asked of the first rollout, which a random policy made; the
  rest at a rate h / (h + t) that falls as the policy settles (Christiano et al.
  2017, appendices A.1 and A.2).

  Args:
    labels: of the whole run.
    rollouts: of the whole run, >= 1.
    first_share: of the labels, in [0, 1].
    half_rollouts: h, after how many the rate has halved.
  """
  first = labels if rollouts == 1 else round(first_share * labels)
  rate = half_rollouts / (half_rollouts + np.arange(rollouts, dtype=float))
  rate[0] = 0.0
  share = np.cumsum(rate) / max(rate.sum(), 1e-12)
  total = first + np.round(share * (labels - first)).astype(int)
  return np.diff(total, prepend=0)
