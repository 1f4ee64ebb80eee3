"""What went wrong in a policy run: named causes and remedies, from its numbers.

  critic diverges      it explains clearly less than a constant, or a little
                       less with a loss that has grown, and its targets hardly
                       move: its rate is too high
  critic behind        it explains less than a constant, or much less than it
                       did, while the score moves by a fifth of its deviation a
                       step: its targets move too fast
  critic idle          it explains next to nothing though its targets hardly
                       move, and its loss has not fallen: its rate is too low
  oscillation          the KL swings by 30 % of its mean, or the score by 30 %
                       of its deviation, with a period
  divergence           the score is back near its start, far below its best,
                       while the KL went on
  large updates        clip fraction above 0.3 or approximate KL above 0.05
  refused updates      any that were not finite

Each is a pure function of the rows of metrics.jsonl. A run of fewer than 15
rows says nothing. First and last are thirds of the run. With
schedule.log_every=N a row is N steps: speeds and periods are of steps, and
updates refused between two rows are not seen.

Origins: METHODS 19 for explained variance below 0 and the critic's rate at 5
times the policy's; 30 % after settling for an oscillation is A6's; clip
fraction 0.05 to 0.2 and approximate KL below 0.01 are usual (Huang et al. 2024,
arXiv:2403.17031), and the limits here are well above. The other limits are this
project's choice.

Left out: causes that no number of a run shows, such as a reward with a bug.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import monitors

LEAST_STEPS = 15
LEAST_PERIODIC = 24  # steps of a series that may swing
IDLE = 0.1  # explained variance that is next to nothing
GREW, STAYED = 1.5, 0.8  # of the critic's loss, last over first
LOST = 0.3  # explained variance that a critic had and has no more
FAST = 0.2  # deviations of the score, a step
SWING = 0.3  # amplitude over the mean, or over the deviation of the score
PERIODIC = 0.5  # autocorrelation half a period and a period away
LARGE_KL, LARGE_CLIP = 0.05, 0.3
USUAL_RATIO = 5.0  # the critic's rate over the policy's
BACK = 0.25  # of the way from the start to the best


@dataclasses.dataclass(frozen=True)
class Finding:
  """A cause. evidence, cause, remedy: sentences for people."""

  name: str
  evidence: str
  cause: str
  remedy: str

  def __str__(self) -> str:
    return f"{self.name}: {self.evidence} {self.cause} {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Rates:
  """Learning rates of a run. value: None without a critic."""

  policy: float | None = None
  value: float | None = None

  @property
  def ratio(self) -> float:
    """The critic's rate over the policy's, 0 where one is not known."""
    if not self.policy or self.value is None:
      return 0.0
    return self.value / self.policy

  @property
  def said(self) -> str:
    """What the two are to each other, "" where one is not known."""
    if self.ratio == 0.0:
      return ""
    return (
      f" It is {self.ratio:.3g} times the policy's; {USUAL_RATIO:g} is usual."
    )


class Series:
  """The numbers of a run by name, without what is missing."""

  def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keeps the rows of metrics.jsonl, in their order."""
    self._rows = rows

  @property
  def stride(self) -> float:
    """Returns the steps between two rows, the median; 1 where nobody says."""
    steps = [row["step"] for row in self._rows if "step" in row]
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0

  @property
  def is_even(self) -> bool:
    """Says whether all rows are as many steps apart, so that periods mean one.

    Rows that only hold what was measured on held-out data stand between others.
    """
    steps = [
      row["step"]
      for row in self._rows
      if "step" in row and row.get(monitors.PROXY) is not None
    ]
    return len(set(np.diff(steps).tolist())) <= 1

  def __call__(self, name: str) -> np.ndarray:
    """Returns [n] float64 of a metric, [0] where too few steps have it."""
    values = [row.get(name) for row in self._rows]
    found = np.array(
      [x for x in values if isinstance(x, (int, float)) and math.isfinite(x)],
      np.float64,
    )
    return found if len(found) >= LEAST_STEPS else found[:0]

  def judges(self) -> list[np.ndarray]:
    """Returns the scores of several judges, each on its own scale."""
    start, end = "reward/component/", "_standard_error"
    names = dict.fromkeys(name for row in self._rows for name in row)
    found = [
      self(name.removesuffix(end))
      for name in names
      if name.startswith(start) and name.endswith(end)
    ]
    return [values for values in found if len(values)]

  def thirds(self, name: str) -> tuple[float, float] | None:
    """Returns means over the first and last third, None where unknown."""
    found = self(name)
    if not len(found):
      return None
    size = len(found) // 3
    return float(found[:size].mean()), float(found[-size:].mean())


def speed(series: Series) -> float:
  """Returns how far the score moves a step, in deviations of one rollout.

  The largest slope between neighbouring windows of 5 steps, so that the noise
  of a step counts little; 0 where it is not known.
  """
  score, deviation = series(monitors.PROXY), series("rollout/score_std")
  if not len(score) or len(deviation) != len(score):
    return 0.0
  width = monitors.WINDOW
  means = np.convolve(score, np.ones(width) / width, mode="valid")
  slopes = np.abs(means[width:] - means[:-width]) / width
  scale = float(np.median(deviation))
  return float(np.max(slopes)) / scale / series.stride if scale > 0 else 0.0


def critic(series: Series, rates: Rates = Rates()) -> list[Finding]:
  """Returns what is wrong with the critic: one cause at most.

  Args:
    series: of the run.
    rates: of the run, for the sentence.
  """
  explained = series.thirds("ppo/explained_variance")
  loss = series.thirds("ppo/value_loss")
  if explained is None or loss is None:
    return []
  best = float(np.max(_smooth(series("ppo/explained_variance"))))
  ratio = loss[1] / loss[0] if loss[0] > 0 else 1.0
  fast = speed(series)
  told = (
    f"explained variance {explained[1]:.2f} over the last third (best "
    f"{best:.2f}), value loss {ratio:.2g} times that of the first."
  )
  is_worse = explained[1] < 0.0
  if fast >= FAST and (is_worse or explained[1] < best - LOST):
    return [
      Finding(
        "critic behind",
        f"{told} The score moved by up to {fast:.2f} deviations a step.",
        "The critic's targets move faster than it learns.",
        "Lower the policy's rate (policy_optimizer.learning_rate) or "
        "epochs.epochs, or teach the critic first (value.pretrain_steps).",
      )
    ]
  if explained[1] < -IDLE or (is_worse and ratio >= GREW):
    return [
      Finding(
        "critic diverges",
        told,
        f"Its targets move by {fast:.2f} deviations a step at most, so its "
        f"rate is too high.{rates.said}",
        "Lower value_optimizer.learning_rate.",
      )
    ]
  if abs(explained[1]) < IDLE and ratio >= STAYED:
    cause = f"The critic hardly learns: its rate is too low.{rates.said}"
    if rates.ratio >= USUAL_RATIO:
      cause = (
        "The critic hardly learns, and its rate is not low: perhaps scores "
        "cannot be told from the tokens before."
      )
    return [
      Finding(
        "critic idle",
        told,
        cause,
        "Raise value_optimizer.learning_rate, or take a method without a "
        "critic (rloo, grpo).",
      )
    ]
  return []


def _smooth(values: np.ndarray) -> np.ndarray:
  width = monitors.WINDOW
  return np.convolve(values, np.ones(width) / width, mode="valid")


def period(values: np.ndarray) -> int | None:
  """Returns the period of a swing in steps, None where there is none.

  Of the values without their linear trend: the autocorrelation falls to
  -PERIODIC and then rises to PERIODIC, at the period.

  Args:
    values: [n].
  """
  n = len(values)
  if n < LEAST_PERIODIC:
    return None
  at = np.arange(n)
  rest = values - np.polyval(np.polyfit(at, values, 1), at)
  power = float(np.dot(rest, rest))
  if power < 1e-12:
    return None
  lags = np.array(
    [np.dot(rest[: n - k], rest[k:]) / power for k in range(n // 2 + 1)]
  )
  below = np.flatnonzero(lags <= -PERIODIC)
  if not len(below):
    return None
  after = lags[below[0] :]
  top = int(np.argmax(after))
  return int(below[0]) + top if after[top] >= PERIODIC else None


def _swing(values: np.ndarray, scale: float) -> tuple[int, float] | None:
  """Returns (period, amplitude over scale) of a swing that is large."""
  late = values[len(values) // 3 :]
  found = period(late)
  if found is None or scale <= 0:
    return None
  at = np.arange(len(late))
  rest = late - np.polyval(np.polyfit(at, late, 1), at)
  amplitude = math.sqrt(2.0) * float(np.std(rest)) / scale
  return (found, amplitude) if amplitude >= SWING else None


def oscillation(series: Series) -> list[Finding]:
  """Returns swings of the KL or the score, with what drives them."""
  kl, score = series("rollout/kl_k1_sum"), series(monitors.PROXY)
  found: list[Finding] = []
  if not series.is_even:
    return found
  swings = _swing(kl, float(np.mean(kl))) if len(kl) else None
  if swings is not None:
    beta = series("ppo/kl_coefficient")
    follows = len(beta) > 0 and period(beta[len(beta) // 3 :]) is not None
    cause = "Each update overshoots: the rate is too high for this beta."
    remedy = "Lower policy_optimizer.learning_rate or epochs.epochs."
    if follows:
      cause = (
        "The KL coefficient swings with it: the controller answers too hard."
      )
      remedy = (
        "Raise shaping.kl_horizon to 10 answers of a step or more (Ziegler et "
        "al. 2019: gain 0.1), or set shaping.kl_controller='fixed'."
      )
    found.append(
      Finding(
        "oscillation of the KL",
        f"it swings by {swings[1]:.0%} of its mean every "
        f"{swings[0] * series.stride:.0f} steps.",
        cause,
        remedy,
      )
    )
  deviation = series("rollout/score_std")
  if len(score) and len(deviation):
    swings = _swing(score, float(np.median(deviation)))
    if swings is not None:
      found.append(
        Finding(
          "oscillation of the score",
          f"it swings by {swings[1]:.0%} of a deviation every "
          f"{swings[0] * series.stride:.0f} steps.",
          "Updates overshoot, or prompts come in an order that repeats.",
          "Lower policy_optimizer.learning_rate, raise the batch, or look at "
          "the order of the prompts.",
        )
      )
  return found


def _is_at_its_best(values: np.ndarray) -> bool:
  """Says whether the last steps are within the noise of the best ones."""
  means = _smooth(values)
  noise = math.sqrt(float(np.mean(np.diff(values) ** 2)) / 2)
  error = noise * math.sqrt(2 / monitors.WINDOW)
  return bool(np.max(means) - means[-1] < monitors.Z_FALL * error)


def divergence(series: Series) -> list[Finding]:
  """Returns a score that was learned and lost again while the KL went on.

  Where several judge, the score may be in units that move with the run: then
  none of them may be at its best.
  """
  score, kl = series(monitors.PROXY), series("rollout/kl_k1_sum")
  if not len(score) or len(kl) != len(score):
    return []
  means, drift = _smooth(score), _smooth(kl)
  noise = math.sqrt(float(np.mean(np.diff(score) ** 2)) / 2)
  top = int(np.argmax(means))
  first, best, last = means[0], means[top], means[-1]
  error = noise * math.sqrt(2 / monitors.WINDOW)
  has_fallen = best - last >= monitors.Z_FALL * error
  if not has_fallen or last > first + BACK * (best - first):
    return []
  if drift[-1] <= drift[top] or any(map(_is_at_its_best, series.judges())):
    return []
  return [
    Finding(
      "divergence",
      f"the score fell from {best:.2f} back to {last:.2f} ({first:.2f} at the "
      f"start) while the KL went from {drift[top]:.1f} to {drift[-1]:.1f} "
      "nats.",
      "The policy ran away from where its updates are right: the rate is too "
      "high, or nothing holds it near the reference.",
      "Take the checkpoint at the best; lower the rate of the policy, decay "
      "it, or raise shaping.kl_coefficient.",
    )
  ]


def updates(series: Series) -> list[Finding]:
  """Returns updates that are too large, or were refused."""
  found = []
  names = ("ppo/clip_fraction_high", "ppo/clip_fraction_low")
  clipped = [series.thirds(name) for name in names]
  share = sum(x[1] for x in clipped if x is not None)
  moved = series.thirds("ppo/approximate_kl")
  far = 0.0 if moved is None else moved[1]
  if share > LARGE_CLIP or far > LARGE_KL:
    found.append(
      Finding(
        "large updates",
        f"clip fraction {share:.2f}, approximate KL {far:.3f} nats a token "
        "over the last third.",
        "One rollout moves the policy too far.",
        "Lower policy_optimizer.learning_rate, epochs.epochs or "
        "epochs.minibatches.",
      )
    )
  refused = series("sys/skipped_updates")
  if len(refused) and refused.sum() > 0:
    found.append(
      Finding(
        "refused updates",
        f"{refused.sum():.0f} updates were not finite and left out.",
        "A loss or a gradient overflowed.",
        "Lower the rate, set clip_norm, or train in float32.",
      )
    )
  return found


def findings(
  rows: Sequence[Mapping[str, Any]], rates: Rates = Rates()
) -> list[Finding]:
  """Returns all that is found in a policy run, the critic first.

  Args:
    rows: of its metrics.jsonl.
    rates: learning rates.
  """
  series = Series(rows)
  found = critic(series, rates)
  parts: tuple[Callable[[Series], list[Finding]], ...] = (
    oscillation,
    divergence,
    updates,
  )
  for part in parts:
    found += part(series)
  return found
