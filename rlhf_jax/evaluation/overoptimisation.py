"""Gold against the square root of the KL: fits, peaks, when to stop.

With d = sqrt(KL(policy || start)) in sqrt(nats) and gold measured from the
start's mean, in the start's deviations (Gao et al. 2022, arXiv:2210.10760,
section 3; METHODS 12):

  best of n  R(d) = d (alpha - beta d)       peak alpha / (2 beta)
  RL         R(d) = d (alpha - beta log d)   peak exp(alpha / beta - 1)

Both are linear in alpha and beta, so a fit is least squares of R. The slope of
the second is infinite at 0: what is nearer than MINIMUM is left out. They are
laws of experience: R2 says how far they hold. Intervals are over runs, drawn
anew with replacement: with three runs they are narrow by luck at times.

Left out: how curves are made (experiments/), pictures (distance_pictures.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FORMS = ("best_of_n", "rl")
MINIMUM = {"best_of_n": 0.0, "rl": 0.4}  # sqrt(nats) that a fit begins at
LEVEL = 0.95  # of intervals
DRAWS = 1_000  # of runs, for an interval


class Interval(NamedTuple):
  """Where 95 % of redrawn runs lie; NaN where nobody knows."""

  low: float
  high: float


UNKNOWN = Interval(math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A curve of one of the FORMS.

  alpha, beta: its coefficients.
  r2: share of the variance of gold that it explains; NaN of none.
  points: that it was fitted to.
  """

  form: str
  alpha: float
  beta: float
  r2: float = math.nan
  points: int = 0

  @property
  def peak(self) -> float:
    """d of the peak in sqrt(nats); infinite where the curve never turns."""
    if self.beta <= 0.0:
      return math.inf
    if self.form == "best_of_n":
      return max(self.alpha / (2.0 * self.beta), 0.0)
    return math.exp(min(self.alpha / self.beta - 1.0, 700.0))

  @property
  def top(self) -> float:
    """Gold at the peak; infinite where the curve never turns."""
    if self.beta <= 0.0:
      return math.inf
    return self.at(np.array([self.peak]))[0]

  def at(self, distance: np.ndarray) -> np.ndarray:
    """Returns gold [n] at distances [n]."""
    return basis(self.form, distance) @ np.array([self.alpha, self.beta])


def basis(form: str, distance: np.ndarray) -> np.ndarray:
  """Returns [n, 2], what alpha and beta are multiplied with; 0 at d = 0.

  Raises:
    ValueError: an unknown form.
  """
  if form not in FORMS:
    raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}.")
  d = np.asarray(distance, np.float64)
  if form == "best_of_n":
    return np.stack([d, -(d**2)], axis=1)
  return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=1)


def _kept(
  form: str, distance: np.ndarray, gold: np.ndarray, minimum: float | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points that a fit reads."""
  d, r = np.asarray(distance, np.float64), np.asarray(gold, np.float64)
  if d.shape != r.shape or d.ndim != 1:
    raise ValueError(
      f"distance {d.shape}, gold {r.shape}: one gold for each distance [n]."
    )
  least = MINIMUM[form] if minimum is None else minimum
  is_in = np.isfinite(d) & np.isfinite(r) & (d > least)
  return d[is_in], r[is_in]


def until_start(
  distance: np.ndarray, gold: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a curve up to where its gold has fallen back to the start.

  What comes after is no part of the laws: a judge that is fooled without end
  falls by a hundred deviations, and a fit would describe that alone.

  Args:
    distance, gold: [n], in the order of training.
  """
  d, r = np.asarray(distance, np.float64), np.asarray(gold, np.float64)
  top = int(np.argmax(r)) if len(r) else 0
  below = np.flatnonzero(r[top:] < 0.0)
  end = top + int(below[0]) if len(below) else len(r)
  return d[:end], r[:end]


def explained(measured: np.ndarray, predicted: np.ndarray) -> float:
  """Returns R2 about the mean; NaN where nothing varies."""
  spread = float(np.sum((measured - measured.mean()) ** 2))
  if spread <= 0.0:
    return math.nan
  return 1.0 - float(np.sum((measured - predicted) ** 2)) / spread


def fit(
  distance: np.ndarray,
  gold: np.ndarray,
  form: str,
  minimum: float | None = None,
) -> Fit | None:
  """Returns the curve of least squares, None of fewer than three points.

  Args:
    distance: [n] sqrt(nats).
    gold: [n], 0 at the start.
    form: of FORMS.
    minimum: distances up to it are left out; None: MINIMUM of the form.

  Raises:
    ValueError: shapes differ, or an unknown form.
  """
  if form not in FORMS:
    raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}.")
  d, r = _kept(form, distance, gold, minimum)
  if len(np.unique(d)) < 3:
    return None
  design = basis(form, d)
  (alpha, beta), *_ = np.linalg.lstsq(design, r, rcond=None)
  r2 = explained(r, design @ np.array([alpha, beta]))
  return Fit(form, float(alpha), float(beta), r2, len(d))


def intervals(
  runs: Sequence[tuple[np.ndarray, np.ndarray]],
  form: str,
  draws: int = DRAWS,
  seed: int = 0,
) -> dict[str, Interval]:
  """Returns 95 % intervals of alpha, beta, peak and top over redrawn runs.

  Args:
    runs: (distance [n], gold [n]) of each; the run is the unit, for its points
      move together. Of one run nothing is known: NaN.
    form: of FORMS.
    draws: how often runs are drawn, with replacement.
    seed: of the draws.
  """
  names = ("alpha", "beta", "peak", "top")
  if len(runs) < 2:
    return dict.fromkeys(names, UNKNOWN)
  rng = np.random.default_rng(seed)
  found: dict[str, list[float]] = {name: [] for name in names}
  for _ in range(draws):
    chosen = rng.integers(len(runs), size=len(runs))
    d = np.concatenate([runs[i][0] for i in chosen])
    r = np.concatenate([runs[i][1] for i in chosen])
    one = fit(d, r, form)
    if one is not None:
      for name in names:
        found[name].append(getattr(one, name))
  return {name: _middle(values) for name, values in found.items()}


def _middle(values: Sequence[float]) -> Interval:
  if not values:
    return UNKNOWN
  tail = 0.5 * (1.0 - LEVEL)
  ends = np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf")
  return Interval(float(ends[0]), float(ends[1]))


class Extrapolation(NamedTuple):
  """What the near part of a curve says of the far part.

  until: distances up to it were fitted, sqrt(nats).
  fit: of them.
  error: root of the mean square error beyond, over the range of gold.
  """

  until: float
  fit: Fit
  error: float


def extrapolate(
  distance: np.ndarray, gold: np.ndarray, form: str, share: float = 0.5
) -> Extrapolation | None:
  """Fits the near part of a curve and predicts the rest (METHODS 12).

  Args:
    distance, gold: [n].
    form: of FORMS.
    share: of the largest distance that is fitted, in (0, 1).

  Returns:
    None where either part has fewer than three points.
  """
  d, r = _kept(form, distance, gold, None)
  if not len(d):
    return None
  until = share * float(d.max())
  near, far = d <= until, d > until
  found = fit(d[near], r[near], form) if near.any() else None
  width = float(np.ptp(r))
  if found is None or far.sum() < 3 or width <= 0.0:
    return None
  miss = float(np.sqrt(np.mean((found.at(d[far]) - r[far]) ** 2)))
  return Extrapolation(until, found, miss / width)


class Observed(NamedTuple):
  """A curve's own peak and end, without a fit.

  distance, gold: of the peak of the smoothed curve.
  end: gold over the last tenth of the points.
  end_distance: d there.
  error: standard error of the end, from how it scatters; NaN of one point.
  kept: end over peak; below 0 where the end is below the start.
  """

  distance: float
  gold: float
  end: float
  end_distance: float
  error: float
  kept: float


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
  """Returns means [n] over `width` neighbours, fewer at both ends.

  Args:
    values: [n].
    width: odd; 1 leaves them as they are.
  """
  x, half = np.asarray(values, np.float64), width // 2
  total = np.concatenate([[0.0], np.cumsum(x)])
  low = np.maximum(np.arange(len(x)) - half, 0)
  high = np.minimum(np.arange(len(x)) + half + 1, len(x))
  return (total[high] - total[low]) / (high - low)


def observe(distance: np.ndarray, gold: np.ndarray, width: int = 1) -> Observed:
  """Returns the peak and the end of one run's curve.

  Args:
    distance, gold: [n], in the order of training.
    width: of the smoothing, see `smoothed`; without it the peak of noisy gold
      is one of luck.
  """
  d, r = np.asarray(distance, np.float64), smoothed(gold, width)
  top = int(np.argmax(r))
  count = max(1, round(0.1 * len(r)), min(width, len(r)))
  tail = np.asarray(gold, np.float64)[-count:]
  error = float(tail.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
  end, peak = float(tail.mean()), float(r[top])
  kept = end / peak if peak > 0.0 else math.nan
  return Observed(
    float(d[top]), peak, end, float(d[-count:].mean()), error, kept
  )


def stop_by_probe(probe: np.ndarray, patience: int) -> tuple[int, int]:
  """Returns (where a run ends, where its best is) by a gold probe.

  The run ends when `patience` measurements in a row were not better than the
  best; what is kept is the best. As schedule.patience and schedule.keep_best.

  Args:
    probe: [n] gold at each measurement.
    patience: >= 1.

  Raises:
    ValueError: patience below 1.
  """
  if patience < 1:
    raise ValueError(f"patience={patience}: measurements in a row. Set >= 1.")
  best = 0
  for place, value in enumerate(np.asarray(probe, np.float64)):
    if value > probe[best]:
      best = place
    if place - best >= patience:
      return place, best
  return len(probe) - 1, best


def stop_by_distance(distance: np.ndarray, limit: float) -> int:
  """Returns the last place before a run goes beyond a distance.

  As shaping.halt_nats = limit^2, with limit the peak of a fit.

  Args:
    distance: [n] sqrt(nats), in the order of training.
    limit: sqrt(nats).
  """
  beyond = np.flatnonzero(np.asarray(distance, np.float64) > limit)
  return max(int(beyond[0]) - 1, 0) if len(beyond) else len(distance) - 1


def ranks(values: np.ndarray) -> np.ndarray:
  """Returns ranks [n] from 0; equal values share the mean of theirs."""
  x = np.asarray(values, np.float64)
  low = np.searchsorted(np.sort(x), x, side="left")
  high = np.searchsorted(np.sort(x), x, side="right")
  return 0.5 * (low + high - 1)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Returns Spearman's correlation; NaN where either does not vary.

  Args:
    x, y: [n]; pairs with NaN are left out, infinities have a rank.
  """
  a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
  is_known = ~(np.isnan(a) | np.isnan(b))
  if is_known.sum() < 3:
    return math.nan
  first, second = ranks(a[is_known]), ranks(b[is_known])
  if first.std() == 0.0 or second.std() == 0.0:
    return math.nan
  return float(np.corrcoef(first, second)[0, 1])
