"""How accurate a reward model would be if both answers were equally long.

  logit P(the winner scores higher) = a + b (length of winner - of loser) / sd

s(a) is the length-controlled accuracy: b is set to 0 after the fit, as in the
length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475). In the other
direction, logit P(first wins) = d / T + b (length difference) / sd says whether
people ask for more length than scores give (b > 0) or less; leaving b out of
that leaves every order, and so the accuracy, as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_RIDGE = 1e-4  # on all but a constant; keeps separable data finite
_STEPS = 100


class Controlled(NamedTuple):
  """Accuracy at equal length, its 95 % interval, and the slope b per sd."""

  accuracy: float
  low: float
  high: float
  slope: float


class Weighed(NamedTuple):
  """What people's preferences are made of.

  temperature: T; infinite where scores say nothing.
  length: b, per deviation of length differences.
  """

  temperature: float
  length: float


def logistic(
  features: np.ndarray, target: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns coefficients [F] and their covariance [F, F], by Newton's method.

  Args:
    features: [P, F].
    target: [P] in [0, 1].
    penalty: [F] of the squares of coefficients, halved.
  """
  weights = np.zeros(features.shape[1])
  hessian = np.eye(features.shape[1])
  for _ in range(_STEPS):
    p = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
    gradient = features.T @ (p - target) + penalty * weights
    hessian = (features * (p * (1 - p))[:, None]).T @ features
    hessian += np.diag(penalty) + 1e-12 * np.eye(len(weights))
    step = np.linalg.solve(hessian, gradient)
    step *= min(1.0, 5.0 / max(float(np.max(np.abs(step))), 1e-12))
    weights = weights - step
    if np.max(np.abs(step)) < 1e-10:
      break
  return weights, np.linalg.inv(hessian)


def _scaled(differences: np.ndarray) -> np.ndarray:
  """Returns differences in units of their root mean square, 0 where that is."""
  scale = math.sqrt(float(np.mean(differences**2))) if differences.size else 0.0
  return differences / scale if scale > 0 else differences


def accuracy(hits: np.ndarray, longer: np.ndarray) -> Controlled:
  """Returns the accuracy at equal length.

  Args:
    hits: [P] 1 where the winner scores higher, 0.5 where scores are equal.
    longer: [P] length of the winner minus that of the loser, any unit.
  """
  if not len(hits):
    return Controlled(*(math.nan,) * 4)
  x = np.stack([np.ones(len(hits)), _scaled(np.asarray(longer, float))], axis=1)
  penalty = np.array([0.0, _RIDGE])
  if np.all(hits == hits[0]) and hits[0] in (0.0, 1.0):  # a is not finite
    return Controlled(float(hits[0]), math.nan, math.nan, 0.0)
  found, covariance = logistic(x, np.asarray(hits, float), penalty)
  deviation = math.sqrt(float(covariance[0, 0]))
  value, low, high = (
    1 / (1 + math.exp(-(found[0] + z * deviation))) for z in (0, -1.96, 1.96)
  )
  return Controlled(value, low, high, float(found[1]))


def weighed(
  differences: np.ndarray, longer: np.ndarray, labels: np.ndarray
) -> Weighed:
  """Returns how much of people's preferences is score, and how much length.

  Args:
    differences: [P] of scores, first minus second.
    longer: [P] of lengths, first minus second.
    labels: [P] probability that the first wins.
  """
  if not len(labels):
    return Weighed(math.nan, math.nan)
  x = np.stack([differences, _scaled(np.asarray(longer, float))], axis=1)
  found, _ = logistic(x, np.asarray(labels, float), np.full(2, _RIDGE))
  return Weighed(1 / found[0] if found[0] > 0 else math.inf, float(found[1]))
