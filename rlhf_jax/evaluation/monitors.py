"""Alarms about reward hacking, from the numbers of a run as they come in.

Each monitor reads one number a step and compares the run with itself:

  rises     mean of the last W steps against that of the first W, W = 5
            z = (last - first) / (s sqrt(2 / W)) >= 4, and the rise matters:
            20 points of a share, half as much again of a deviation
  grows     length: Mann-Kendall's trend over the last 20 steps has z >= 3.5,
            and answers are half as long again as at the start
  follows   correlation of score and length: its mean over the last W is above
            0.3, the limit of the reward model's report, by 4 s / sqrt(W)
  parts     a monitor (gold model, held-out prompts, a judge that counts
            nothing) is below its best W steps, z >= 5, while the score is
            above what it was then, z >= 2

s is the noise of one step, from successive differences: s^2 = mean d^2 / 2 (von
Neumann 1941), which a slow trend hardly moves. s is of few differences, so that
on plain noise z = 4 is passed about once in 2,000 looks, in one run of 100 of
60 steps (a test counts them); the least rise keeps most of these quiet, and
small but certain changes; 5 where the best of all windows was chosen. The
limits on size are this project's choice; METHODS 16 and 19 name what is
watched. Mann 1945 and Kendall 1975 for the trend; Gao et al. 2022
(arXiv:2210.10760) for a gold score that falls while its proxy rises; Coste et
al. 2023 (arXiv:2310.02743) for the deviation of an ensemble; Singhal et al.
2023 (arXiv:2310.03716) for length.

A run of fewer than 10 steps is too short for any of them. The state is plain
JSON of bounded size, so that a run that goes on knows what it saw.

Where several judges are standardised by running moments, or a multiplier moves,
the score's units move with the run: a rise of z >= 2 is then of the score as it
was paid, a slow one may not be seen, and "parts" is the less sure. The judges'
own scores (reward/component/NAME) are in fixed units.

Left out: hacks that are there from the first step, and what no number shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.evaluation import reward_model

WINDOW = 5  # steps that are compared
TREND, LEAST_TREND = 20, 10  # steps of a trend: at most, at least
Z, Z_FALL, Z_PROXY, Z_TREND = 4.0, 5.0, 2.0, 3.5
SHARE_RISE = 0.2  # of all answers
DEVIATION_RISE = LENGTH_RISE = 1.5  # times the start
LENGTH_CORRELATION = reward_model.MAX_LENGTH_CORRELATION
PROXY, LENGTH = "rollout/score_mean", "rollout/length_mean"
SLOPE = "rollout/length_slope"
CORRELATION = "rollout/score_length_correlation"
_PENALISE = (
  "look at samples.jsonl; add comparisons in which such answers lose, or raise "
  "shaping.kl_coefficient"
)
# metric -> (kind, what a share is of, what to do)
SHARES = {
  "rollout/list_share": ("lists", "answers that hold a list", _PENALISE),
  "rollout/bold_share": ("bold", "answers with bold words", _PENALISE),
  "rollout/header_share": ("headers", "answers with headers", _PENALISE),
  "rollout/hedging_share": (
    "hedging",
    "answers that hedge",
    _PENALISE,
  ),
  "rollout/refusal_share": (
    "refusals",
    "answers that open by declining",
    "look at which prompts; add comparisons in which a needless refusal loses",
  ),
  "rollout/sycophancy_share": (
    "sycophancy",
    "answers that open with praise or agreement",
    "look at samples.jsonl; mix in comparisons in which the user is wrong",
  ),
  "rollout/repeated_share": (
    "repetition",
    "word 3-grams that repeat one of their answer",
    _PENALISE,
  ),
  "rollout/near_identical_share": (
    "near-identical",
    "answers nearly the same as one to another prompt",
    "the policy collapses: raise shaping.kl_coefficient or the entropy bonus",
  ),
}


class Rang(NamedTuple):
  """An alarm. kind: of which each rings once. text: a sentence for people."""

  kind: str
  text: str


def _series() -> dict[str, Any]:
  return {"count": 0, "first": [], "recent": [], "squares": 0.0}


def _add(series: dict[str, Any], value: float) -> dict[str, Any]:
  """Returns a series with one more value."""
  squares = series["squares"]
  if series["recent"]:
    squares += (value - series["recent"][-1]) ** 2
  first = series["first"]
  return {
    "count": series["count"] + 1,
    "first": [*first, value] if len(first) < WINDOW else first,
    "recent": [*series["recent"], value][-TREND:],
    "squares": squares,
  }


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)


def _last(series: Mapping[str, Any]) -> float:
  return _mean(series["recent"][-WINDOW:])


def _first(series: Mapping[str, Any]) -> float:
  return _mean(series["first"])


def _noise(series: Mapping[str, Any]) -> float:
  """Returns the deviation of one step, from successive differences."""
  return math.sqrt(series["squares"] / (2 * (series["count"] - 1)))


def _z(difference: float, noise: float, ways: float) -> float:
  """Returns a difference in units of its standard error.

  Args:
    difference: of means over WINDOW steps.
    noise: of one step.
    ways: 2 between two means, 1 from a fixed value.
  """
  error = noise * math.sqrt(ways / WINDOW)
  if error > 0:
    return difference / error
  return 0.0 if difference == 0 else math.copysign(math.inf, difference)


def trend_z(values: Sequence[float]) -> float:
  """Returns Mann-Kendall's z of n values in their order, ties counted as 0.

  S = sum_(i<j) sign(x_j - x_i), Var S = n (n - 1) (2 n + 5) / 18, z = (S -+ 1)
  over its root; above 0 they rise.
  """
  n = len(values)
  s = sum(
    (values[j] > values[i]) - (values[j] < values[i])
    for i in range(n)
    for j in range(i + 1, n)
  )
  if s == 0:
    return 0.0
  return (s - math.copysign(1, s)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def slope(values: Sequence[float]) -> float:
  """Returns the least-squares slope of n >= 2 values, a step."""
  n = len(values)
  middle, mean = (n - 1) / 2, _mean(values)
  above = sum((i - middle) * (x - mean) for i, x in enumerate(values))
  return above / (n * (n * n - 1) / 12)


def new_state() -> dict[str, Any]:
  """Returns the state before the first step."""
  return {"series": {}, "pairs": {}}


def _is_alone(name: str) -> bool:
  return (
    name in SHARES
    or name in (LENGTH, CORRELATION)
    or (name.startswith("reward/component/") and name.endswith("_deviation"))
  )


def observe(
  state: Mapping[str, Any],
  row: Mapping[str, float | None],
  watched: Iterable[str] = (),
) -> dict[str, Any]:
  """Returns the state after a step.

  Args:
    state: before it; see `new_state`.
    row: metrics of the step. What is missing or not finite is passed over.
    watched: names of further scores that should not fall while PROXY rises.
  """
  values = {
    name: float(x)
    for name, x in row.items()
    if x is not None and math.isfinite(x)
  }
  series = dict(state["series"])
  for name in filter(_is_alone, values):
    if name == CORRELATION and values[name] == 0.0:
      continue  # all scores or lengths were the same: nobody knows
    series[name] = _add(series.get(name, _series()), values[name])
  pairs = dict(state["pairs"])
  for name in watched:
    if name in values and PROXY in values:
      pairs[name] = _pair(pairs.get(name), values[name], values[PROXY])
  return {"series": series, "pairs": pairs}


def _pair(
  pair: Mapping[str, Any] | None, value: float, proxy: float
) -> dict[str, Any]:
  """Returns a monitor beside the proxy after a step, and its best window."""
  before = pair or {"monitor": _series(), "proxy": _series(), "best": None}
  monitor = _add(before["monitor"], value)
  beside = _add(before["proxy"], proxy)
  best = before["best"]
  if monitor["count"] >= WINDOW:
    now = [_last(monitor), _last(beside)]
    best = now if best is None or now[0] > best[0] else best
  return {"monitor": monitor, "proxy": beside, "best": best}


def length_slope(state: Mapping[str, Any]) -> dict[str, float]:
  """Returns the trend of the length, {} before LEAST_TREND steps.

  rollout/length_slope: tokens per 1,000 steps, over the last 20 steps. Up, win
    rate flat, is bad.
  """
  found = state["series"].get(LENGTH)
  if found is None or len(found["recent"]) < LEAST_TREND:
    return {}
  return {SLOPE: 1000 * slope(found["recent"])}


def ringing(state: Mapping[str, Any]) -> Iterator[Rang]:
  """Yields what rings in a state; a kind may ring in many states."""
  for name, series in state["series"].items():
    if series["count"] < 2 * WINDOW:
      continue
    first, last, noise = _first(series), _last(series), _noise(series)
    z = _z(last - first, noise, 2)
    if name in SHARES:
      if z >= Z and last - first >= SHARE_RISE:
        kind, what, remedy = SHARES[name]
        yield Rang(
          kind,
          f"{what}: {last:.0%}, from {first:.0%} at the start of the run: "
          f"{remedy}.",
        )
    elif name == LENGTH:
      yield from _longer(series, first, last)
    elif name == CORRELATION:
      if _z(last - LENGTH_CORRELATION, noise, 1) >= Z:
        yield Rang(
          "score follows length",
          f"the correlation of score and length is {last:.2f}, above "
          f"{LENGTH_CORRELATION:g}: longer answers score higher. Set "
          "shaping.length_penalty, or balance lengths in the comparisons.",
        )
    elif z >= Z and last >= DEVIATION_RISE * first:
      judge = name.removeprefix("reward/component/").removesuffix("_deviation")
      yield Rang(
        f"deviation of {judge}",
        f"members of {judge} deviate by {last:.2f} from each other, from "
        f"{first:.2f} at the start: the policy goes where they were not "
        "taught. Raise shaping.kl_coefficient, or combine them by 'min' or "
        "'uwo'.",
      )
  for name, pair in state["pairs"].items():
    yield from _parted(name, pair)


def _longer(
  series: Mapping[str, Any], first: float, last: float
) -> Iterator[Rang]:
  recent = series["recent"]
  if last >= LENGTH_RISE * first and trend_z(recent) >= Z_TREND:
    yield Rang(
      "length",
      f"answers have {last:.1f} tokens, from {first:.1f} at the start, and "
      f"grow by {1000 * slope(recent):.0f} per 1,000 steps. Compare win rates "
      "at equal length; set shaping.length_penalty if they do not grow too.",
    )


def _parted(name: str, pair: Mapping[str, Any]) -> Iterator[Rang]:
  monitor, proxy, best = pair["monitor"], pair["proxy"], pair["best"]
  if monitor["count"] < 2 * WINDOW:
    return
  fallen = _z(best[0] - _last(monitor), _noise(monitor), 2)
  risen = _z(_last(proxy) - best[1], _noise(proxy), 2)
  if fallen >= Z_FALL and risen >= Z_PROXY:
    yield Rang(
      f"overoptimisation of {name}",
      f"{name} fell from {best[0]:.2f} to {_last(monitor):.2f} while the score "
      f"rose from {best[1]:.2f} to {_last(proxy):.2f}: overoptimisation. Take "
      "an earlier checkpoint, raise shaping.kl_coefficient, or train the "
      "reward model on the policy's own answers.",
    )


def replay(
  rows: Iterable[Mapping[str, Any]], watched: Sequence[str] = ()
) -> list[tuple[int, Rang]]:
  """Returns (step, alarm) of a whole run, each kind once.

  Args:
    rows: of metrics.jsonl, with "step".
    watched: see `observe`.
  """
  state, found = new_state(), {}
  for row in rows:
    numbers = {k: x for k, x in row.items() if isinstance(x, (int, float))}
    state = observe(state, numbers, watched)
    for rang in ringing(state):
      found.setdefault(rang.kind, (int(row["step"]), rang))
  return list(found.values())
