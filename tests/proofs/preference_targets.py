"""Optima of the preference methods on a bandit, in float64 numpy.

One prompt, K arms, rewards r, comparisons of arms drawn uniformly and decided
by Bradley-Terry, P(i beats j) = s(r_i - r_j). What the methods minimise in
expectation is written out here a second time, so that the package's losses and
these share no code.

KTO. A judged arm a is shown with share q_a and liked with probability l_a.
While answers come from the reference, the mean of u = log p / p_ref over
mismatched answers is -KL(q || p) <= 0, and the baseline z is 0. Up to a
constant the loss is

  - sum_a g_a s(beta u_a),   g_a = q_a (2 l_a - 1),

whose derivative in the logit of arm a is -(g_a beta s'(beta u_a) - p_a G) with
G = sum_b g_b beta s'(beta u_b). An arm that is disliked more often than not
(g_a < 0) has a rising loss for every G > 0, and ends with no mass. The others
stand where

  g_a beta s'(beta u_a) = p_ref,a e^(u_a) G,   sum_a p_ref,a e^(u_a) = 1:

for beta <= 1 log s'(beta u) - u falls in u, so each G has one u_a, and their
sum falls in G: one solution, found by two bisections. It depends on r only
through the sign of g and, weakly, its size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import optimize

from tests.proofs.fixed_points import log_softmax
from tests.proofs.preference_data import Bandit, differences


def softplus(x: np.ndarray) -> np.ndarray:
  """Returns log(1 + e^x), which is -log sigmoid(-x)."""
  return np.logaddexp(0.0, x)


def log_odds(log_p: np.ndarray) -> np.ndarray:
  """Returns log p / (1 - p)."""
  return log_p - np.log(-np.expm1(log_p))


def tilt(bandit: Bandit, beta: float) -> np.ndarray:
  """Returns log of p_ref exp(r / beta) / Z: DPO, robust DPO."""
  return log_softmax(bandit.reference + bandit.reward / beta)


def uniform(bandit: Bandit, beta: float) -> np.ndarray:
  """Returns log of exp(r / beta) / Z, DPO's optimum for a flat reference."""
  return log_softmax(bandit.reward / beta)


def solve(
  bandit: Bandit,
  expected: Callable[[np.ndarray], np.ndarray],
  flips: float = 0.0,
) -> np.ndarray:
  """Returns the minimiser of an expected loss, as log p.

  Args:
    bandit: whose comparisons.
    expected: log p [K] -> [K, K], the loss of a comparison that i won.
    flips: share of flipped labels.
  """
  p = bandit.wins * (1.0 - 2.0 * flips) + flips
  np.fill_diagonal(p, 0.0)
  p /= p.sum()

  def total(logits: np.ndarray) -> float:
    return float(np.sum(p * expected(log_softmax(logits))))

  found = [
    optimize.minimize(total, start, method="BFGS", options={"gtol": 1e-9})
    for start in (bandit.reference, np.zeros_like(bandit.reference))
  ]
  return log_softmax(min(found, key=lambda result: result.fun).x)


def dpo(bandit: Bandit, beta: float, flips: float) -> np.ndarray:
  """DPO on flipped labels."""

  def expected(log_p: np.ndarray) -> np.ndarray:
    return softplus(-beta * differences(log_p - bandit.reference))

  return solve(bandit, expected, flips)


def cdpo(bandit: Bandit, beta: float, flips: float) -> np.ndarray:
  """Conservative DPO on flipped labels, smoothed by their share."""

  def expected(log_p: np.ndarray) -> np.ndarray:
    h = beta * differences(log_p - bandit.reference)
    return (1.0 - flips) * softplus(-h) + flips * softplus(h)

  return solve(bandit, expected, flips)


def ipo(bandit: Bandit, tau: float) -> np.ndarray:
  """IPO: h_i = mean_j (2 p_ij - 1) / (2 tau), the least-squares fit."""
  h = np.mean((2.0 * bandit.wins - 1.0) / (2.0 * tau), axis=1)
  return log_softmax(bandit.reference + h)


def orpo(bandit: Bandit, weight: float) -> np.ndarray:
  """ORPO on answers of one token."""

  def expected(log_p: np.ndarray) -> np.ndarray:
    preference = softplus(-differences(log_odds(log_p)))
    return -log_p[:, None] + weight * preference

  return solve(bandit, expected)


def simpo(bandit: Bandit, beta: float, margin: float) -> np.ndarray:
  """SimPO on answers of one token."""
  return solve(
    bandit, lambda log_p: softplus(margin - beta * differences(log_p))
  )


def cpo(bandit: Bandit, beta: float) -> np.ndarray:
  """CPO with its likelihood term."""

  def expected(log_p: np.ndarray) -> np.ndarray:
    return -log_p[:, None] + softplus(-beta * differences(log_p))

  return solve(bandit, expected)


def kto(
  shown: np.ndarray, liked: np.ndarray, reference: np.ndarray, beta: float
) -> np.ndarray:
  """Returns KTO's optimum (module docstring) as log p, -inf without mass.

  Args:
    shown: [K], share of each arm among the judged answers.
    liked: [K], P(liked).
    reference: [K], log p_ref.
    beta: of KTO, at most 1.
  """
  gain = shown * (2.0 * liked - 1.0)
  good = gain > 0

  def log_p(log_g: float) -> np.ndarray:
    low, high = np.full(good.sum(), -80.0), np.full(good.sum(), 80.0)
    for _ in range(100):
      u = 0.5 * (low + high)
      slope = -softplus(beta * u) - softplus(-beta * u)  # log s'
      is_left = np.log(gain[good] * beta) + slope > reference[good] + u + log_g
      low, high = np.where(is_left, u, low), np.where(is_left, high, u)
    return reference[good] + low

  low, high = -60.0, 60.0
  for _ in range(100):
    middle = 0.5 * (low + high)
    is_over = np.logaddexp.reduce(log_p(middle)) > 0.0
    low, high = (middle, high) if is_over else (low, middle)
  result = np.full(len(gain), -np.inf)
  result[good] = log_softmax(log_p(low))
  return result
