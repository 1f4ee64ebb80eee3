"""Score against the square root of the KL: a straight line, and how steep.

  E score - E_start score ~ slope sqrt(KL),  slope <= sqrt(2) deviations

The policy that gains most for its KL is the tilt p_ref exp(score / beta) / Z;
near the start it gains sqrt(2 KL) deviations of the score under p_ref, and
everywhere where that score is Gaussian. Bai et al. 2022 (arXiv:2204.05862,
section 4.3) saw the line in PPO. slope / sqrt(2) says how near a run is to the
best use of its KL (METHODS 13, A9). Above 1 the KL or the score is measured
wrong, or good scores have a long tail, which a policy may reach far from the
start.

A score whose units move with the run (judges by running moments, a Lagrange
multiplier) has no such line; pipelines/stage_curves.py draws none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

BEST = math.sqrt(2.0)
NEAR, FAR = 0.3, 3.0  # sqrt(nats): where the line is looked for
STILL = 0.01  # nats, to either side: first rollouts within tell the start's
# score
EXCESS = 1.03  # of the best slope, beyond which something is wrong
ERRORS = 2.0  # standard errors that it must be beyond


class Law(NamedTuple):
  """A line through the start.

  slope: deviations of the start's score a sqrt(nat).
  error: its standard error, that of the start's mean included.
  r2: share of the variance that it explains; NaN where nothing varies.
  ratio: slope / sqrt(2).
  points: that it was fitted to.
  """

  slope: float
  error: float
  r2: float
  ratio: float
  points: int

  @property
  def is_too_steep(self) -> bool:
    """Whether it is beyond the best by more than chance."""
    return self.slope - ERRORS * self.error > EXCESS * BEST


def fit(
  kl: Sequence[float],
  gain: Sequence[float],
  deviation: float,
  start_error: float = 0.0,
) -> Law | None:
  """Returns the line of least squares through 0; None of fewer than 3 points.

  Args:
    kl: [n] nats to the start; what is below 0 by chance has no root and is
      left out with all that is nearer than NEAR or farther than FAR.
    gain: [n] score less that of the start, in its own units.
    deviation: of the score of single answers at the start; > 0.
    start_error: standard error of the start's mean score.
  """
  nats, gained = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
  d = np.sqrt(np.maximum(nats, 0.0))
  is_in = (d >= NEAR) & (d <= FAR) & np.isfinite(gained)
  if is_in.sum() < 3 or not deviation > 0.0:
    return None
  d, y = d[is_in], gained[is_in] / deviation
  weight = float(np.sum(d**2))
  slope = float(np.sum(d * y)) / weight
  rest = y - slope * d
  own = float(np.sum(rest**2)) / (len(d) - 1) / weight
  common = (start_error / deviation * float(np.sum(d)) / weight) ** 2
  spread = float(np.sum((y - y.mean()) ** 2))
  r2 = 1.0 - float(np.sum(rest**2)) / spread if spread > 0 else math.nan
  return Law(slope, math.sqrt(own + common), r2, slope / BEST, len(d))


def of_rows(
  rows: Sequence[Mapping[str, Any]], answers: int = 0
) -> tuple[Law | None, list[tuple[float, float]]]:
  """Returns the line of a policy run, and its points (sqrt(KL), gain).

  Points are in deviations of the first rollout's scores, by distance. The
  start's score is the mean of the first rows whose KL is within STILL of 0, or
  of step 1 alone. Where the first row is neither (schedule.log_every=10 has
  none before step 10), nobody knows it: None and no points.

  Args:
    rows: of metrics.jsonl; without "step" they begin at step 1.
    answers: of a rollout, for the error of the first mean; 0: unknown.
  """
  names = ("rollout/kl_k1_sum", "rollout/score_mean")
  known = [x for x in rows if all(x.get(name) is not None for name in names)]
  if not known or not known[0].get("rollout/score_std"):
    return None, []
  deviation = float(known[0]["rollout/score_std"])
  kl = np.array([float(x[names[0]]) for x in known])
  score = np.array([float(x[names[1]]) for x in known])
  moved = np.flatnonzero(np.abs(kl) >= STILL)
  still = int(moved[0]) if len(moved) else len(kl)
  if not still and known[0].get("step", 1) == 1:
    still = 1
  if not still:
    return None, []
  gain = score - score[:still].mean()
  count = answers * still
  error = deviation / math.sqrt(count) if count else 0.0
  points = sorted(
    (math.sqrt(max(float(k), 0.0)), float(g) / deviation)
    for k, g in zip(kl, gain, strict=True)
  )
  return fit(kl, gain, deviation, error), points


def sentence(law: Law) -> str:
  """Returns the numbers of a line for people."""
  return (
    f"slope {law.slope:.2f} +- {law.error:.2f}, R2 {law.r2:.2f}, "
    f"{100 * law.ratio:.0f} % of the best, sqrt(2)"
  )


def warning(law: Law) -> str:
  """Returns what is wrong with a line that is too steep, "" if nothing."""
  if not law.is_too_steep:
    return ""
  return (
    f"the score rises by {law.slope:.2f} +- {law.error:.2f} deviations a "
    f"sqrt(nat), more than sqrt(2) = {BEST:.2f}, which no policy gains near "
    "its start: the KL or the score is measured wrong, or the score has a long "
    "upper tail. Compare rollout/kl_k1_sum with rollout/kl_k3_sum, and look at "
    "the best answers."
  )
