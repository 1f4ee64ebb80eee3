"""The line of score against sqrt(KL), where it is known."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import kl_law


def rows(slope, steps=20, deviation=2.0, noise=0.0, start=0.5):
  rng = np.random.default_rng(0)
  d = np.linspace(0.0, 2.5, steps)
  return [
    {
      "rollout/kl_k1_sum": x**2,
      "rollout/score_mean": start
      + deviation * (slope * x + noise * rng.normal()),
      "rollout/score_std": deviation,
    }
    for x in d
  ]


def test_a_planted_slope_comes_back_in_deviations_of_the_start():
  law, points = kl_law.of_rows(rows(0.7))
  assert law.slope == pytest.approx(0.7)
  assert law.ratio == pytest.approx(0.7 / math.sqrt(2.0))
  assert (law.r2, law.error) == pytest.approx((1.0, 0.0), abs=1e-9)
  assert points[-1] == pytest.approx((2.5, 1.75))
  assert kl_law.warning(law) == ""
  assert "49 % of the best" in kl_law.sentence(law)


def test_a_gaussian_tilt_is_the_best_there_is():
  """N(0, 1) tilted by exp(s x) has mean s and KL s^2 / 2."""
  s = np.linspace(0.1, 4.0, 40)
  law = kl_law.fit(s**2 / 2.0, s, 1.0)
  assert law.ratio == pytest.approx(1.0)
  assert not law.is_too_steep


def test_what_is_steeper_than_possible_is_told():
  law, _ = kl_law.of_rows(rows(1.7))
  assert law.is_too_steep
  assert "sqrt(2) = 1.41" in kl_law.warning(law)
  # The start's own error forgives what chance explains.
  unsure, _ = kl_law.of_rows(rows(1.5), answers=16)
  assert not unsure.is_too_steep
  assert unsure.error > 0.05


def test_errors_of_a_slope_by_hand():
  """d = 1, 2, 3 and gains 1, 2, 4: slope 17 / 14, rests -3, -6 and 5 / 14."""
  law = kl_law.fit([1.0, 4.0, 9.0], [2.0, 4.0, 8.0], 2.0)
  assert law.slope == pytest.approx(17 / 14)
  own = (9 + 36 + 25) / 14**2 / 2 / 14
  assert law.error == pytest.approx(math.sqrt(own))
  both = kl_law.fit([1.0, 4.0, 9.0], [2.0, 4.0, 8.0], 2.0, start_error=0.1)
  assert both.error == pytest.approx(math.sqrt(own + (0.05 * 6 / 14) ** 2))


def test_all_rows_that_stand_still_are_the_start():
  found = rows(0.7)
  for row, score in zip(found[:2], (0.3, 0.9), strict=True):
    row |= {"rollout/kl_k1_sum": 0.004, "rollout/score_mean": score}
  law, points = kl_law.of_rows(found)
  gain = (found[-1]["rollout/score_mean"] - 0.6) / 2.0  # less their mean
  assert points[-1] == pytest.approx((2.5, gain))


def test_near_far_and_negative_are_left_out():
  found = kl_law.fit(
    [-0.1, 0.04, 1.0, 4.0, 5.0, 100.0], [9, 9, 1, 2, 2.2, 0], 1
  )
  assert found.points == 3
  assert found.slope == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
  "given", [[], [{"rollout/score_mean": 1.0}], rows(1.0, steps=2)]
)
def test_too_little_is_no_line(given):
  assert kl_law.of_rows(given)[0] is None


def test_the_start_is_the_first_rows_alone():
  """A negative k1 later is chance, and no row of a policy that stood still."""
  found = rows(0.7)
  law, _ = kl_law.of_rows(found)
  found[5] |= {"rollout/kl_k1_sum": -0.5}
  again, _ = kl_law.of_rows(found)
  assert again.slope == pytest.approx(law.slope)
  found[0] |= {"rollout/kl_k1_sum": -0.05}  # of step 1: the start in any case
  assert kl_law.of_rows(found)[0].slope == pytest.approx(law.slope)


def test_rows_that_begin_after_the_start_have_no_line():
  """As with schedule.log_every=10."""
  found = [x | {"step": i + 1} for i, x in enumerate(rows(0.7))]
  assert kl_law.of_rows(found)[0] is not None
  assert kl_law.of_rows(found[9:]) == (None, [])
