"""Best of n by enumeration of all answers: what estimates are held against."""

import numpy as np


def probabilities_of_best(
  probabilities: np.ndarray, scores: np.ndarray, n: int
) -> np.ndarray:
  """Returns [Y] float64: the exact distribution of the best of n samples.

  Ties are broken uniformly among the tied samples, so each answer of a level
  keeps its share of it.

  Args:
    probabilities: [Y] of every answer, sum 1.
    scores: [Y].
    n: samples.

  Raises:
    ValueError: n < 1, shapes differ, or probabilities do not sum to 1.
  """
  if n < 1:
    raise ValueError(f"n={n}: the best of no sample. Set n >= 1.")
  pi = np.asarray(probabilities, np.float64)
  scores = np.asarray(scores, np.float64)
  if pi.ndim != 1 or pi.shape != scores.shape:
    raise ValueError(
      f"probabilities {pi.shape}, scores {scores.shape}: both list the same "
      "answers. Pass two arrays [Y]."
    )
  if np.any(pi < 0) or abs(pi.sum() - 1.0) > 1e-6:
    raise ValueError(
      f"probabilities sum to {pi.sum()}, smallest {pi.min()}: a distribution "
      "over all answers is wanted. Normalise it."
    )
  _, level = np.unique(scores, return_inverse=True)
  mass = np.bincount(level, weights=pi)
  cumulative = np.minimum(np.cumsum(mass), 1.0)
  cumulative[-1] = 1.0
  below = np.concatenate([[0.0], cumulative[:-1]])
  gained = cumulative**n - below**n
  share = np.divide(pi, mass[level], out=np.zeros_like(pi), where=pi > 0)
  return share * gained[level]


def exact_kl(probabilities: np.ndarray, scores: np.ndarray, n: int) -> float:
  """Returns KL(best of n || one sample) in nats by enumeration.

  Args, Raises: as `probabilities_of_best`.
  """
  pi = np.asarray(probabilities, np.float64)
  best = probabilities_of_best(pi, scores, n)
  kept = best > 0
  return float(np.sum(best[kept] * np.log(best[kept] / pi[kept])))
