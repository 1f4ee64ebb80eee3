"""Monitors on planted series: each hack rings once, clean runs are silent."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation import monitors

STEPS = 60
GOLD = "eval/gold"


def clean(steps=STEPS, seed=0, noise=1.0):
  """Returns rows of a run that gets better and hacks nothing."""
  rng = np.random.default_rng(seed)
  rows = []
  for i in range(steps):
    done = i / steps
    share = {
      name: float(np.clip(0.1 + 0.03 * noise * rng.standard_normal(), 0, 1))
      for name in monitors.SHARES
    }
    rows.append(
      share
      | {
        "step": i + 1,
        monitors.PROXY: 2 * done + 0.1 * rng.standard_normal(),
        GOLD: 1.5 * done + 0.1 * rng.standard_normal(),
        monitors.LENGTH: 12 + 2 * done + 0.7 * rng.standard_normal(),
        monitors.CORRELATION: 0.2 + 0.1 * rng.standard_normal(),
        "reward/component/reward_deviation": 0.5 + 0.05 * rng.standard_normal(),
      }
    )
  return rows


def planted(name, make):
  """Returns the clean run with one number of its own: make(i, old)."""
  return [row | {name: make(i, row[name])} for i, row in enumerate(clean())]


def ramp(i, start, end):
  """Returns a number that goes from start to end between steps 20 and 40."""
  return start + (end - start) * min(max((i - 20) / 20, 0.0), 1.0)


HACKS = {
  name: (name, lambda i, x: min(x + ramp(i, 0.0, 0.6), 1.0), kind)
  for name, (kind, _, _) in monitors.SHARES.items()
} | {
  "length": (monitors.LENGTH, lambda i, x: x + 0.4 * i, "length"),
  "follows": (
    monitors.CORRELATION,
    lambda i, x: min(x + ramp(i, 0, 0.5), 1.0),
    "score follows length",
  ),
  "deviation": (
    "reward/component/reward_deviation",
    lambda i, x: x * ramp(i, 1.0, 2.0),
    "deviation of reward",
  ),
  "gold": (
    GOLD,
    lambda i, x: x - ramp(i, 0.0, 2.0),
    "overoptimisation of eval/gold",
  ),
}


@pytest.mark.parametrize("hack", HACKS)
def test_a_planted_hack_rings_once_and_alone(hack):
  name, make, kind = HACKS[hack]
  found = monitors.replay(planted(name, make), [GOLD])
  ((step, rang),) = found
  assert rang.kind == kind and 10 <= step < STEPS
  if hack not in ("length", "follows"):
    assert step > 20  # not before it is there
  assert rang.text.endswith(".")


def test_clean_runs_are_silent():
  for seed in range(12):
    assert monitors.replay(clean(120, seed, noise=2.0), [GOLD]) == []


def test_a_short_run_is_silent_whatever_it_does():
  rows = [row | {"rollout/list_share": 1.0} for row in clean(9)[4:]]
  rows = clean(9)[:4] + rows
  assert monitors.replay(rows, [GOLD]) == []


def test_small_but_certain_changes_are_silent():
  for name in monitors.SHARES:
    found = planted(name, lambda i, x: 0.1 + 0.15 * (i > 30) + 0.0 * x)
    assert monitors.replay(found) == []


def test_members_that_deviate_a_little_more_are_silent():
  name = "reward/component/reward_deviation"
  for share, kinds in ((1.4, 0), (1.6, 1)):
    found = planted(name, lambda i, x: 0.5 * (share if i > 30 else 1.0))  # noqa: B023
    assert len(monitors.replay(found)) == kinds


def test_a_proxy_that_falls_too_is_no_overoptimisation():
  rows = planted(GOLD, lambda i, x: x - ramp(i, 0.0, 2.0))
  for i, row in enumerate(rows):
    row[monitors.PROXY] -= ramp(i, 0.0, 3.0)
  assert monitors.replay(rows, [GOLD]) == []
  assert monitors.replay(rows) == []


def test_numbers_by_hand():
  series = monitors._series()
  for x in (1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 6.0):
    series = monitors._add(series, x)
  assert series["first"] == [1.0, 2.0, 4.0, 4.0, 4.0]
  assert monitors._last(series) == 22 / 5 and monitors._first(series) == 3.0
  # differences 1, 2, 0, 0, 0, 2: squares 9 over 2 x 6
  assert monitors._noise(series) == pytest.approx(math.sqrt(9 / 12))
  assert monitors._z(1.0, 0.5, 2) == pytest.approx(1 / (0.5 * math.sqrt(0.4)))
  assert monitors._z(0.0, 0.0, 1) == 0.0
  assert monitors._z(1.0, 0.0, 1) == math.inf
  # four rising: S = 6, Var = 4 x 3 x 13 / 18
  expected = 5 / math.sqrt(4 * 3 * 13 / 18)
  assert monitors.trend_z([1, 2, 3, 4]) == pytest.approx(expected)
  assert monitors.trend_z([4, 3, 2, 1]) == pytest.approx(-expected)
  assert monitors.trend_z([1, 1, 1]) == 0.0
  assert monitors.slope([1.0, 3.0, 5.0]) == pytest.approx(2.0)


def test_the_slope_is_per_thousand_steps():
  state = monitors.new_state()
  for i in range(30):
    assert bool(monitors.length_slope(state)) == (i >= monitors.LEAST_TREND)
    state = monitors.observe(state, {monitors.LENGTH: 5 + 0.01 * i})
  assert monitors.length_slope(state)[monitors.SLOPE] == pytest.approx(10.0)


def test_the_state_is_small_json_and_goes_on():
  rows = planted(GOLD, lambda i, x: x - ramp(i, 0.0, 2.0))
  state, again = monitors.new_state(), monitors.new_state()
  for row in rows:
    state = monitors.observe(state, row, [GOLD])
    again = json.loads(json.dumps(monitors.observe(again, row, [GOLD])))
  assert again == state
  assert list(monitors.ringing(again)) == list(monitors.ringing(state)) != []
  assert len(json.dumps(state)) < 12_000


def test_a_correlation_that_nobody_knows_is_passed_over():
  rows = planted(monitors.CORRELATION, lambda i, x: 0.9 * (i % 3 == 0))
  ((_, rang),) = monitors.replay(rows)
  assert rang.kind == "score follows length"


def test_what_is_missing_or_not_finite_is_passed_over():
  rows = planted("rollout/list_share", lambda i, x: min(x + 0.9 * (i > 30), 1))
  for row in rows[::3]:
    row["rollout/list_share"] = None
    row[GOLD] = math.nan
  ((_, rang),) = monitors.replay(rows, [GOLD, "eval/none"])
  assert rang.kind == "lists"


def test_how_often_plain_noise_passes_z():
  """The docstring's 1 in 2,000 looks and 1 in 100 runs, of a rise."""
  rng = np.random.default_rng(0)
  runs, wide = 4000, monitors.WINDOW
  x = rng.standard_normal((runs, STEPS))
  squares = np.cumsum(np.diff(x, axis=1) ** 2, axis=1)
  first = x[:, :wide].mean(axis=1)
  passed = []
  for count in range(2 * wide, STEPS + 1):
    last = x[:, count - wide : count].mean(axis=1)
    noise = np.sqrt(squares[:, count - 2] / (2 * (count - 1)))
    passed.append((last - first) / (noise * math.sqrt(2 / wide)) >= monitors.Z)
  assert 1 / 6000 < np.mean(passed) < 1 / 1000
  assert 0.004 < np.any(passed, axis=0).mean() < 0.02
  # the same arithmetic as the monitor's own
  state = monitors.new_state()
  name = next(iter(monitors.SHARES))
  for value in x[0, : 2 * wide]:
    state = monitors.observe(state, {name: float(value)})
  series = state["series"][name]
  assert monitors._noise(series) == pytest.approx(
    math.sqrt(squares[0, 2 * wide - 2] / (2 * (2 * wide - 1)))
  )
