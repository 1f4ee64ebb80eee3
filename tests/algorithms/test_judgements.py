"""Labels of judges: METHODS T22 and the arithmetic of scores."""

import numpy as np
import pytest

from rlhf_jax.algorithms import judgements


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def test_t22_a_planted_position_bias_is_gone():
  s, bias = np.linspace(-3.0, 3.0, 13), 1.7
  found, b = judgements.unswapped(s + bias, -s + bias)
  np.testing.assert_allclose(found, s, atol=1e-12)
  np.testing.assert_allclose(b, bias, atol=1e-12)
  np.testing.assert_allclose(judgements.labels(found), sigmoid(s), atol=1e-12)
  means = 0.5 * (sigmoid(s + bias) + 1.0 - sigmoid(-s + bias))
  assert means[6] == pytest.approx(0.5)  # s = 0
  shrunk = np.abs(means - 0.5) < np.abs(sigmoid(s) - 0.5)
  assert shrunk[np.arange(13) != 6].all()


def test_votes_that_disagree_leave_a_half():
  up, down = np.inf, -np.inf
  s, b = judgements.unswapped([up, up, down, 0.0], [down, up, down, 0.0])
  assert judgements.labels(s).tolist() == [1.0, 0.5, 0.5, 0.5]
  assert np.isnan(b[:3]).all() and b[3] == 0.0


def test_labels_after_reasoning_are_cut():
  assert judgements.labels([-9.0, 0.1, 9.0], 0.4).tolist() == pytest.approx(
    [0.4, sigmoid(0.1), 0.6]
  )
  with pytest.raises(ValueError, match=r"clamp=0\.6"):
    judgements.labels([0.0], 0.6)


def test_scores_are_means_over_the_labels():
  values = np.arange(1.0, 11.0)
  even = np.log(np.full(10, 0.05))  # half of the probability is elsewhere
  top = np.where(values == 10.0, -3.0, -np.inf)
  two = np.where(values == 1.0, np.log(0.3), -np.inf)
  two = np.where(values == 10.0, np.log(0.1), two)
  found = judgements.expected_scores([even, top, two], values)
  np.testing.assert_allclose(found, [0.0, 1.0, -0.5], atol=1e-12)
  masses = judgements.masses([even, top, two])
  np.testing.assert_allclose(masses, [0.5, np.exp(-3.0), 0.4])


def test_entropies_of_labels():
  found = judgements.entropies([0.0, 0.5, 1.0, 0.25])
  wanted = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
  np.testing.assert_allclose(found, [0.0, np.log(2.0), 0.0, wanted])
