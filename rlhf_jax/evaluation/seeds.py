"""A number of several runs that differ by their seed: mean, range, interval.

  mean +- t(n - 1, 97.5 %) s / sqrt(n),  s with n - 1 (Student 1908)

The unit is the run. With few seeds the interval is wide, as it should be: for
three it is 2.5 s on each side, for two 9 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
  """What several runs say of one number.

  count: runs.
  mean: of them; NaN of none.
  low, high: the least and the most.
  interval_low, interval_high: 95 % interval of the mean; NaN of one run.
  """

  count: int
  mean: float
  low: float
  high: float
  interval_low: float
  interval_high: float


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
  """Returns mean, range and Student's interval of a number of several runs.

  Args:
    values: [n], one a run; n may be 0.
    level: coverage of the interval, in (0, 1).

  Raises:
    ValueError: level out of range.
  """
  if not 0.0 < level < 1.0:
    raise ValueError(f"level={level}: a share of 1. Set 0 < level < 1.")
  runs = np.asarray(values, np.float64)
  count = runs.size
  if count == 0:
    return Spread(0, *[math.nan] * 5)
  mean, low, high = float(runs.mean()), float(runs.min()), float(runs.max())
  if count == 1:
    return Spread(1, mean, low, high, math.nan, math.nan)
  from scipy import special  # slow to import; jax needs it too

  quantile = float(special.stdtrit(count - 1, 0.5 * (1.0 + level)))
  half = quantile * float(runs.std(ddof=1)) / math.sqrt(count)
  return Spread(count, mean, low, high, mean - half, mean + half)
