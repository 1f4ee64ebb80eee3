"""How often, and by how much, one policy beats another on the same prompts.

  win rate = mean_i o_i,  o_i = 1 if a_i > b_i, 1/2 if a_i = b_i, 0 otherwise

Both policies answer the same prompts, so the unit is the prompt and every
error is the sample deviation (n - 1) of a per-prompt number over sqrt(n).
Left out: judges and their position bias, which make the scores, and any
correction for a reward model that over-optimisation has fooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.types import Array


class Estimate(NamedTuple):
  """A mean over prompts.

  value: the mean.
  standard_error: sample deviation (n - 1) / sqrt(n). It is 0 when all
    prompts agree, which says nothing of prompts not drawn: see
    `wilson_interval` for a rate near 0 or 1.
  count: prompts.
  """

  value: float
  standard_error: float
  count: int


def finite_vector(name: str, values: Array | Sequence[float]) -> np.ndarray:
  """Returns `values` as float64 [n].

  Raises:
    ValueError: not one-dimensional, or a value is NaN or infinite.
  """
  vector = np.asarray(values, np.float64)
  if vector.ndim != 1:
    raise ValueError(
      f"{name} has shape {vector.shape}: one number per prompt or pair is "
      "wanted. Pass an array of one dimension."
    )
  bad = np.flatnonzero(~np.isfinite(vector))
  if bad.size:
    raise ValueError(
      f"{name}[{bad[0]}]={vector[bad[0]]} ({bad.size} such values): a "
      "comparison needs finite scores. Find out why scoring failed there; "
      "do not drop the row from one side only."
    )
  return vector


def check_paired(
  scores_a: Array, scores_b: Array
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [n], n >= 2, or raises ValueError."""
  a = finite_vector("scores_a", scores_a)
  b = finite_vector("scores_b", scores_b)
  if a.shape != b.shape:
    raise ValueError(
      f"scores_a has {a.size} prompts, scores_b {b.size}: the comparison is "
      "paired. Score the same prompts, in the same order, for both policies."
    )
  if a.size < 2:
    raise ValueError(
      f"{a.size} prompts: a standard error needs at least 2. Evaluate on more "
      "prompts."
    )
  return a, b


def mean_with_error(values: np.ndarray) -> Estimate:
  """Returns the mean of values [n], n >= 2, with its standard error."""
  error = float(np.std(values, ddof=1) / np.sqrt(values.size))
  return Estimate(float(np.mean(values)), error, int(values.size))


def outcomes(scores_a: Array, scores_b: Array) -> np.ndarray:
  """Returns [n]: 1 where a wins, 0.5 on a tie, 0 where b wins."""
  a, b = check_paired(scores_a, scores_b)
  return 0.5 * (1.0 + np.sign(a - b))


def group_outcomes(scores_a: Array, scores_b: Array) -> np.ndarray:
  """Returns [P] the share of pairs of answers to a prompt that a wins.

  All G x G pairs of the answers of a and of b count; ties count one half.

  Args:
    scores_a: [P, G], any scale.
    scores_b: [P, G], the same prompts in the same order.

  Raises:
    ValueError: as in `win_rate`.
  """
  a, b = np.asarray(scores_a), np.asarray(scores_b)
  check_paired(a.reshape(-1), b.reshape(-1))
  signs = np.sign(a[:, :, None] - b[:, None, :])
  return 0.5 * (1.0 + signs.mean(axis=(1, 2)))


def win_rate(scores_a: Array, scores_b: Array) -> Estimate:
  """Returns the share of prompts on which a beats b; ties count one half.

  Args:
    scores_a: [n], any scale: only the order within a prompt matters.
    scores_b: [n], the same prompts in the same order.

  Raises:
    ValueError: shapes differ, fewer than 2 prompts, or a score not finite.
  """
  return mean_with_error(outcomes(scores_a, scores_b))


def paired_difference(scores_a: Array, scores_b: Array) -> Estimate:
  """Returns the mean of a - b over prompts, with its standard error.

  Smaller than the error of two independent means when prompts differ in
  difficulty, because the prompt's own effect cancels.

  Args:
    scores_a: [n].
    scores_b: [n], the same prompts in the same order.

  Raises:
    ValueError: as in `win_rate`.
  """
  a, b = check_paired(scores_a, scores_b)
  return mean_with_error(a - b)


def bootstrap_interval(
  values: Array,
  *,
  seed: int,
  resamples: int = 2000,
  level: float = 0.95,
) -> tuple[float, float]:
  """Returns the percentile bootstrap interval of the mean of `values`.

  Efron 1979; percentile form. Prompts are drawn with replacement, so pass one
  number per prompt (`outcomes`, or a - b), never one per token.

  Args:
    values: [n], n >= 2.
    seed: of the resampling; the same seed gives the same interval.
    resamples: number of resampled means.
    level: coverage aimed at, in (0, 1).

  Raises:
    ValueError: too few values or resamples, or level out of range.
  """
  vector = finite_vector("values", values)
  if vector.size < 2:
    raise ValueError(
      f"{vector.size} values: resampling needs at least 2. Evaluate on more "
      "prompts."
    )
  if resamples < 100:
    raise ValueError(
      f"resamples={resamples}: the tails of fewer than 100 means are noise. "
      "Set resamples >= 100 (2000 is usual)."
    )
  if not 0.0 < level < 1.0:
    raise ValueError(f"level={level}: a share of 1. Set 0 < level < 1.")
  generator = np.random.default_rng(seed)
  means = np.array(
    [
      np.mean(vector[generator.integers(0, vector.size, vector.size)])
      for _ in range(resamples)
    ]
  )
  tail = 0.5 * (1.0 - level)
  low, high = np.quantile(means, [tail, 1.0 - tail])
  return float(low), float(high)


class Proportion(NamedTuple):
  """A rate with its Wilson interval, all in [0, 1]; NaN when count is 0."""

  value: float
  low: float
  high: float
  count: int


def wilson_interval(
  successes: float, count: int, z: float = 1.959964
) -> tuple[float, float]:
  """Returns Wilson's score interval of a rate.

    centre = (p + z^2 / 2n) / (1 + z^2 / n)
    half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

  Unlike p +- z sqrt(p (1 - p) / n) it stays in [0, 1] and is not empty at 0 or
  1. Wilson 1927.

  Args:
    successes: in [0, count]; a tie may count one half.
    count: trials; 0 gives (NaN, NaN).
    z: normal quantile, 1.96 for 95 %.

  Raises:
    ValueError: successes outside [0, count].
  """
  if not 0 <= successes <= count:
    raise ValueError(
      f"successes={successes}, count={count}: successes are among the trials. "
      "Pass 0 <= successes <= count."
    )
  if count == 0:
    return math.nan, math.nan
  share = successes / count
  scale = 1.0 + z * z / count
  centre = (share + z * z / (2 * count)) / scale
  half = (
    z
    / scale
    * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
  )
  return max(0.0, centre - half), min(1.0, centre + half)


def proportion(hits: np.ndarray) -> Proportion:
  """Returns the mean of hits [n], each in [0, 1], with its 95 % interval."""
  count = int(hits.size)
  successes = float(hits.sum())
  low, high = wilson_interval(successes, count)
  return Proportion(successes / count if count else math.nan, low, high, count)
