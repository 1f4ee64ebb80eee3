"""Win rates, paired differences and intervals, by hand and by simulation."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import win_rate as wr


def test_win_rate_by_hand():
  result = wr.win_rate([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 4.0])
  assert result.value == 0.625  # win, tie, loss, win
  # deviations of (1, .5, 0, 1) from .625, over n - 1 = 3, then / sqrt(4)
  squares = 0.375**2 + 0.125**2 + 0.625**2 + 0.375**2
  assert result.standard_error == pytest.approx(math.sqrt(squares / 3) / 2)
  assert result.count == 4


def test_trap_14_standard_error_divides_by_n_minus_one():
  difference = wr.paired_difference([3.0, 5.0], [0.0, 0.0])
  assert difference.value == 4.0
  assert difference.standard_error == pytest.approx(1.0)  # population: 0.707


def test_win_rate_of_a_and_b_sum_to_one():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 3, (2, 50)).astype(float)
  assert wr.win_rate(a, b).value + wr.win_rate(b, a).value == pytest.approx(1)


def test_trap_33_pairs_must_match():
  with pytest.raises(ValueError, match="same prompts, in the same order"):
    wr.win_rate([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize(
  ("a", "b", "message"),
  [
    ([1.0], [2.0], "at least 2"),
    ([1.0, math.nan], [2.0, 1.0], r"scores_a\[1\]=nan"),
    ([[1.0, 2.0]], [[1.0, 2.0]], "one dimension"),
  ],
)
def test_win_rate_refuses(a, b, message):
  with pytest.raises(ValueError, match=message):
    wr.win_rate(a, b)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
  values = np.random.default_rng(3).normal(1.0, 2.0, 400)
  first = wr.bootstrap_interval(values, seed=7)
  assert first == wr.bootstrap_interval(values, seed=7)
  assert first != wr.bootstrap_interval(values, seed=8)
  error = np.std(values, ddof=1) / 20
  expected = values.mean() + 1.96 * error * np.array([-1, 1])
  np.testing.assert_allclose(first, expected, atol=0.25 * error)


@pytest.mark.parametrize(
  "overrides",
  [{"resamples": 10}, {"level": 1.0}, {"level": 0.0}, {"values": [1.0]}],
)
def test_bootstrap_refuses(overrides):
  arguments = {"values": [1.0, 2.0, 3.0], "seed": 0} | overrides
  with pytest.raises(ValueError):
    wr.bootstrap_interval(arguments.pop("values"), **arguments)


def test_wilson_interval_known_answers():
  # Wilson's 95 % interval of 15 in 20, and of 0 in 10: z^2 / (n + z^2).
  np.testing.assert_allclose(
    wr.wilson_interval(15, 20), (0.5313, 0.8881), atol=2e-4
  )
  low, high = wr.wilson_interval(0, 10)
  assert low == 0.0
  assert high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


def test_wilson_interval_solves_its_equation():
  # The ends are the rates q with |p - q| = z sqrt(q (1 - q) / n).
  for end in wr.wilson_interval(7, 31, z=1.5):
    assert abs(7 / 31 - end) == pytest.approx(
      1.5 * math.sqrt(end * (1 - end) / 31)
    )


def test_wilson_interval_edges():
  assert all(math.isnan(end) for end in wr.wilson_interval(0, 0))
  with pytest.raises(ValueError, match="successes=3"):
    wr.wilson_interval(3, 2)
