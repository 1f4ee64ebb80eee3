"""Accuracy at equal length, on pairs whose making is known."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import length_control


def drawn(quality, length, seed=0, count=6000):
  """Returns hits and length differences of a model of the two.

  People prefer quality and, by 1, length; the model's score is as told.
  """
  rng = np.random.default_rng(seed)
  good, longer = rng.standard_normal((2, count))
  label = rng.random(count) < 1 / (1 + np.exp(-(2 * good + longer)))
  delta = quality * good + length * longer
  sign = np.where(label, 1.0, -1.0)
  return (delta * sign > 0).astype(float), longer * sign, delta, longer, label


def test_a_score_of_length_alone_is_worth_nothing_at_equal_length():
  hits, longer, *_ = drawn(0.0, 1.0)
  assert np.mean(hits) > 0.6
  found = length_control.accuracy(hits, longer)
  assert found.accuracy == pytest.approx(0.5, abs=0.05)
  assert found.slope > 5


def test_a_score_of_quality_is_better_at_equal_length():
  """There nobody prefers a worse answer because it is longer."""
  hits, longer, *_ = drawn(1.0, 0.0)
  found = length_control.accuracy(hits, longer)
  good = np.abs(np.random.default_rng(9).standard_normal(100_000))
  expected = np.mean(1 / (1 + np.exp(-2 * good)))
  assert found.accuracy > np.mean(hits)
  assert found.accuracy == pytest.approx(expected, abs=0.015)
  assert found.slope < 0 and found.high - found.low < 0.05


def test_what_preferences_are_made_of():
  _, _, delta, longer, label = drawn(2.0, 0.0)
  found = length_control.weighed(delta, longer, label.astype(float))
  assert found.temperature == pytest.approx(1.0, abs=0.1)
  assert found.length == pytest.approx(1.0, abs=0.1)
  # Scores that are twice as wide are twice as hot, and say the same of length.
  wide = length_control.weighed(2.0 * delta, longer, label.astype(float))
  assert wide.temperature == pytest.approx(2.0 * found.temperature, rel=1e-3)
  assert wide.length == pytest.approx(found.length, abs=1e-3)
  _, _, delta, longer, label = drawn(2.0, 1.0)
  found = length_control.weighed(delta, longer, label.astype(float))
  assert found.length == pytest.approx(0.0, abs=0.1)


def test_the_fit_is_at_its_maximum():
  rng = np.random.default_rng(1)
  x = rng.standard_normal((200, 2))
  y = (rng.random(200) < 0.6).astype(float)
  found, covariance = length_control.logistic(x, y, np.array([0.0, 0.5]))
  p = 1 / (1 + np.exp(-(x @ found)))
  gradient = x.T @ (p - y) + np.array([0.0, 0.5]) * found
  np.testing.assert_allclose(gradient, 0, atol=1e-8)
  assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_edges():
  assert math.isnan(length_control.accuracy(np.zeros(0), np.zeros(0)).accuracy)
  assert length_control.accuracy(np.ones(9), np.arange(9.0)).accuracy == 1.0
  same = length_control.accuracy(np.array([1.0, 0, 1]), np.zeros(3))
  assert same.accuracy == pytest.approx(2 / 3)
