"""Fits of gold against sqrt(KL), with answers that are known."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import overoptimisation as over

D = np.linspace(0.0, 6.0, 61)


@pytest.mark.parametrize("form", over.FORMS)
def test_planted_coefficients_and_peak_come_back(form):
  planted = over.Fit(form, 1.2, 0.4)
  found = over.fit(D, planted.at(D), form)
  assert (found.alpha, found.beta) == pytest.approx((1.2, 0.4))
  assert found.r2 == pytest.approx(1.0)
  peak = {"best_of_n": 1.5, "rl": math.exp(2.0)}[form]
  top = {"best_of_n": 0.9, "rl": 0.4 * math.exp(2.0)}[form]
  assert (found.peak, found.top) == pytest.approx((peak, top))
  near = planted.at(np.array([0.99 * peak, 1.01 * peak]))
  assert near.max() < top


def test_the_forms_are_told_apart():
  """A curve of the one form is explained worse by the other."""
  bon = over.Fit("best_of_n", 1.2, 0.2).at(D)
  assert over.fit(D, bon, "rl").r2 < 0.98


def test_what_never_turns_has_no_peak():
  found = over.fit(D, D, "best_of_n")
  assert found.alpha == pytest.approx(1.0)
  straight = over.Fit("rl", 1.0, 0.0)
  assert straight.peak == math.inf and straight.top == math.inf


def test_rl_leaves_out_what_is_near():
  gold = over.Fit("rl", 1.0, 0.5).at(D)
  gold[D < 0.4] = 100.0
  assert over.fit(D, gold, "rl").alpha == pytest.approx(1.0)
  assert over.fit(D[:3], gold[:3], "rl") is None
  at_it = over.fit(np.array([0.4, 1.0, 2.0, 3.0]), np.arange(4.0), "rl")
  assert at_it.points == 3  # the least distance is left out itself


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="best_of_n, rl"):
    over.fit(D, D, "linear")
  with pytest.raises(ValueError, match="one gold for each"):
    over.fit(D, D[1:], "rl")


def test_intervals_hold_the_truth_and_shrink():
  rng = np.random.default_rng(0)
  planted = over.Fit("best_of_n", 1.2, 0.2)

  def runs(count):
    return [(D, planted.at(D) + D * rng.normal(0.0, 0.1)) for _ in range(count)]

  few = over.intervals(runs(4), "best_of_n", draws=200)
  many = over.intervals(runs(64), "best_of_n", draws=200)
  low, high = many["alpha"]
  assert low < 1.2 < high
  assert high - low < few["alpha"].high - few["alpha"].low
  assert many["peak"].low < planted.peak < many["peak"].high
  assert math.isnan(over.intervals(runs(1), "rl")["peak"].low)


def test_extrapolation_sees_what_the_near_part_cannot_know():
  right = over.extrapolate(
    D, over.Fit("best_of_n", 1.2, 0.2).at(D), "best_of_n"
  )
  assert right.until == 3.0
  assert right.error < 1e-9
  cliff = np.where(D <= 3.0, D, -10.0)
  found = over.extrapolate(D, cliff, "best_of_n")
  miss = D[D > 3.0] + 10.0  # of the line that the near half is
  assert found.error == pytest.approx(math.sqrt(np.mean(miss**2)) / 13.0)
  assert over.extrapolate(D[:3], D[:3], "rl") is None


def test_peak_end_and_share():
  gold = np.concatenate([np.linspace(0, 2, 41), np.linspace(1.9, 1.0, 20)])
  found = over.observe(D, gold)
  assert (found.distance, found.gold) == pytest.approx((4.0, 2.0))
  assert found.kept == pytest.approx(found.end / 2.0)
  assert found.end == pytest.approx(gold[-6:].mean())
  error = gold[-6:].std(ddof=1) / math.sqrt(6)
  assert found.error == pytest.approx(error)
  spike = gold.copy()
  spike[5] = 2.5  # luck of one step
  assert over.observe(D, spike).distance == pytest.approx(0.5)
  assert over.observe(D, spike, width=5).distance == pytest.approx(4.0, abs=0.2)


def test_smoothing_keeps_a_line_and_the_ends():
  line = np.arange(7.0)
  np.testing.assert_allclose(over.smoothed(line, 3)[1:-1], line[1:-1])
  assert over.smoothed(line, 3)[0] == 0.5
  np.testing.assert_array_equal(over.smoothed(line, 1), line)


def test_a_run_stops_when_gold_falls_or_where_a_fit_says():
  probe = np.array([0.0, 1.0, 0.9, 1.2, 1.1, 1.0, 0.9, 2.0])
  assert over.stop_by_probe(probe, 3) == (6, 3)
  assert over.stop_by_probe(probe, 4) == (7, 7)
  assert over.stop_by_probe(np.arange(4.0), 1) == (3, 3)
  assert over.stop_by_probe(np.ones(9), 3) == (3, 0)  # as good is no better
  with pytest.raises(ValueError, match="patience=0"):
    over.stop_by_probe(probe, 0)
  d = np.array([0.0, 1.0, 2.0, 3.0])
  assert over.stop_by_distance(d, 1.5) == 1
  assert over.stop_by_distance(d, 9.0) == 3
  assert over.stop_by_distance(d, -1.0) == 0


def test_rank_correlation_with_ties_and_infinite_peaks():
  assert over.rank_correlation([1, 2, 3], [5.0, 7.0, math.inf]) == 1.0
  assert over.rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
  assert over.rank_correlation([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(
    0.8944, abs=1e-4
  )
  # of ties of different sizes the mean rank counts: 3 / sqrt(10)
  assert over.rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(
    3 / math.sqrt(10.0)
  )
  assert math.isnan(over.rank_correlation([1, 1, 1], [1, 2, 3]))
  assert math.isnan(over.rank_correlation([1, 2, math.nan], [1, 2, 3]))


def test_a_curve_ends_where_gold_is_back_at_the_start():
  d = np.arange(6.0)
  gold = np.array([-0.1, 1.0, 0.5, -0.2, 0.3, -9.0])
  np.testing.assert_array_equal(over.until_start(d, gold)[1], gold[:3])
  kept = over.until_start(d, np.abs(gold))[0]
  np.testing.assert_array_equal(kept, d)
