"""Preferences between segments: hand numbers, limits, shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import segments

LOG3 = float(np.log(3.0))


def test_a_segment_that_is_worth_log_3_more_wins_three_of_four():
  returns = jnp.array([[LOG3, 0.0], [0.0, LOG3], [2.0, 2.0]])
  found = segments.preference(returns)
  np.testing.assert_allclose(found, [0.75, 0.25, 0.5], rtol=1e-6)
  found = segments.preference(returns, 0.1)
  np.testing.assert_allclose(found, [0.725, 0.275, 0.5], rtol=1e-6)


def test_the_loss_by_hand_and_ties_are_half_of_each():
  returns = jnp.array([[LOG3, 0.0]] * 3)
  labels = jnp.array([1.0, 0.0, 0.5])
  first, second = -np.log(0.725), -np.log(0.275)
  found = segments.loss(returns, labels, 0.1)
  wanted = [first, second, 0.5 * (first + second)]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  plain = segments.loss(returns, labels, 0.0)
  np.testing.assert_allclose(plain[:2], -np.log([0.75, 0.25]), rtol=1e-6)


def test_errors_bound_the_loss_of_a_wrong_label():
  """However sure the predictor: log 20 at most, and no gradient to speak of."""
  returns, label = jnp.array([[200.0, 0.0]]), jnp.zeros(1)
  assert segments.loss(returns, label, 0.1)[0] == pytest.approx(np.log(20.0))
  assert segments.loss(returns, label, 0.0)[0] == pytest.approx(200.0)
  slope = jax.grad(lambda x: segments.loss(x, label, 0.1)[0])(returns)
  assert float(jnp.abs(slope).max()) < 1e-6


def test_members_disagree_where_they_prefer_otherwise():
  returns = jnp.array([[[LOG3, 0.0], [1.0, 1.0]], [[0.0, LOG3], [9.0, 9.0]]])
  found = segments.disagreement(returns, 0.0)
  np.testing.assert_allclose(found, [0.0625, 0.0], atol=1e-7)


def test_a_bootstrap_counts_each_label_once_on_average_and_1_in_e_never():
  counts = np.asarray(segments.bootstrap(jax.random.key(0), 20_000, 3))
  assert counts.shape == (20_000, 3)
  np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.03)
  np.testing.assert_allclose((counts == 0).mean(0), np.exp(-1), atol=0.015)
  assert abs(np.corrcoef(counts.T)[0, 1]) < 0.03


def test_l2_grows_above_the_band_and_falls_below_it():
  how = segments.Decay(start=0.01, factor=2.0, least=0.004, most=0.015)
  training = jnp.full(5, 0.4)
  validation = jnp.array([0.52, 0.7, 0.41, jnp.nan, 0.4])
  found = segments.tuned(jnp.full(5, 0.01), training, validation, how)
  np.testing.assert_allclose(found, [0.01, 0.015, 0.005, 0.01, 0.005])
  again = segments.tuned(found, training, validation, how)
  assert again[4] == pytest.approx(0.004)


@pytest.mark.parametrize(
  "values", [{"low": 0.9}, {"factor": 1.0}, {"start": 1.0}, {"low": 1.6}]
)
def test_a_decay_that_cannot_be_is_refused(values):
  with pytest.raises(ValueError, match=next(iter(values))):
    segments.Decay(**values)


def test_labels_are_due_early_and_sum_up():
  found = segments.due(700, 80, 0.25, 20.0)
  assert found.sum() == 700 and found[0] == 175 and found.min() >= 0
  early, late = found[1:21].sum(), found[60:].sum()
  assert early > 2.5 * late > 0
  # h / (h + t): half the rate after h rollouts, but for rounding
  many = segments.due(10**6, 80, 0.0, 20.0)
  assert many[20] / many[1] == pytest.approx(21 / 40, rel=1e-3)
  assert segments.due(5, 1, 0.25, 20.0).tolist() == [5]
  assert segments.due(0, 4, 0.25, 20.0).tolist() == [0] * 4
