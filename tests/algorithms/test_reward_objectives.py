"""Losses on rankings, choices, margins and scores, against hand values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import reward, reward_losses
from rlhf_jax.types import PreferenceBatch

NAN = np.nan
SCORES = jnp.asarray([[0.5, 2.0, -1.0], [0.0, 0.3, 1.0]])
ALL = jnp.ones((2, 3))


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def batch_of(**said):
  mask = jnp.ones((2, said.pop("K", 3), 1))
  return PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=mask,
    loss_mask=mask,
    label=said.pop("label", jnp.ones(2)),
    weight=jnp.ones(2),
    **{name: jnp.asarray(x, jnp.float32) for name, x in said.items()},
  )


def value(scores, batch, **settings):
  config = reward.Config(**settings)
  counts = reward.denominators(batch, config)
  return reward.loss(scores, batch, config, counts)[0]


def test_a_choice_among_three_by_hand():
  """Ziegler et al. 2019, equation 1: -log softmax of the chosen one."""
  rank = [[1, 0, 1], [0, 0, 1]]
  found = reward_losses.choice_loss(SCORES, jnp.asarray(rank), ALL)
  p = np.exp(np.asarray(SCORES, np.float64))
  p /= p.sum(1, keepdims=True)
  np.testing.assert_allclose(
    found, -np.log([p[0, 1], p[1, 0] + p[1, 1]]), rtol=1e-5
  )
  all_tie = reward_losses.choice_loss(SCORES, jnp.zeros((2, 3)), ALL)
  np.testing.assert_allclose(all_tie, 0.0, atol=1e-6)
  nothing = reward_losses.choice_loss(SCORES, jnp.zeros((2, 3)), 0 * ALL)
  np.testing.assert_array_equal(nothing, 0.0)
  # Its slope is p - 1[chosen]; one that is not ranked is not among them.
  slope = jax.grad(
    lambda s: reward_losses.choice_loss(
      s, jnp.asarray([[1.0, 0.0, NAN], [1.0, 2.0, 0.0]]), ALL
    ).sum()
  )(SCORES)
  two = sigmoid(-1.5)
  np.testing.assert_allclose(slope[0], [two, -two, 0.0], rtol=1e-5)
  np.testing.assert_allclose(slope[1], p[1] - [0, 0, 1], rtol=1e-5)


def test_kwise_with_margins_and_ties_is_a_loop_over_pairs():
  rank = np.array([[0, 1, 1], [2, 0, NAN]])
  margin = np.random.default_rng(0).normal(size=(2, 3, 3))
  expected = []
  for s, r, m in zip(np.asarray(SCORES), rank, margin, strict=True):
    terms = []
    for i, j in itertools.permutations(range(3), 2):
      if r[i] < r[j]:
        p = sigmoid(s[i] - s[j] - m[i, j])
        terms.append(-0.9 * np.log(p) - 0.1 * np.log(1 - p))
      elif r[i] == r[j] and i < j:
        p = sigmoid(s[i] - s[j])
        terms.append(-0.5 * np.log(p) - 0.5 * np.log(1 - p))
    expected.append(np.mean(terms))
  found = reward_losses.kwise_loss(
    SCORES,
    jnp.asarray(rank),
    ALL,
    margin=jnp.asarray(margin),
    label_smoothing=0.1,
    counts_ties=True,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_regression_is_the_mean_square_of_scored_answers():
  target = jnp.asarray([[1.0, 0.0, NAN], [NAN, NAN, NAN]])
  found = reward_losses.regression_loss(SCORES, target, ALL)
  np.testing.assert_allclose(found, [(0.25 + 4.0) / 2, 0.0], rtol=1e-6)
  slope = jax.grad(
    lambda s: reward_losses.regression_loss(s, target, ALL).sum()
  )(SCORES)
  np.testing.assert_allclose(slope, [[-0.5, 2.0, 0.0], [0.0, 0.0, 0.0]])


def test_grades_have_probabilities_that_sum_to_one():
  bounds = reward.grade_bounds(np.float32([1, 2, 2, 5]))
  np.testing.assert_allclose(
    bounds[[0, 1, 3]],
    [[-np.inf, -np.log(3)], [-np.log(3), np.log(3)], [np.log(3), np.inf]],
    rtol=1e-6,
  )
  grades = jnp.asarray(bounds[[0, 1, 3]])[None]

  def probabilities(score):
    scores = jnp.full((3, 1), score)
    one = grades.reshape(3, 1, 2)
    return jnp.exp(-reward_losses.ordinal_loss(scores, one, jnp.ones((3, 1))))

  # A score of 0 has the shares of the data: a quarter, a half, a quarter.
  np.testing.assert_allclose(probabilities(0.0), [0.25, 0.5, 0.25], rtol=1e-5)
  for score in (-3.0, 0.7, 40.0):
    np.testing.assert_allclose(jnp.sum(probabilities(score)), 1.0, rtol=1e-5)
  by_hand = sigmoid(0.7 + np.log(3)) - sigmoid(0.7 - np.log(3))
  np.testing.assert_allclose(probabilities(0.7)[1], by_hand, rtol=1e-5)
  assert probabilities(40.0)[2] == pytest.approx(1.0)


def test_grades_that_are_none_or_unseen_count_as_said():
  bounds = reward.grade_bounds(np.float32([[NAN, 1], [2, 9]]))
  assert np.isnan(bounds[0, 0]).all()
  scores = jnp.asarray([[NAN, 0.0], [0.0, 0.0]])
  loss = jax.value_and_grad(
    lambda s: reward_losses.ordinal_loss(
      s, jnp.asarray(bounds), jnp.ones((2, 2))
    ).sum()
  )
  found, slope = loss(scores)
  np.testing.assert_allclose(found, 2 * np.log(3), rtol=1e-5)
  assert np.isfinite(slope).all() and slope[0, 0] == 0.0
  for bad in ([1.0, 1.0], np.arange(30.0)):
    with pytest.raises(ValueError, match="grades are 2 to 20"):
      reward.grade_bounds(np.float32(bad))


def test_llama_2_margins_by_name():
  words = np.asarray(["significantly", "better", "slightly", "negligibly"])
  words = np.append(words.astype(object), None)
  np.testing.assert_allclose(
    reward.margins_of(words, "small"), [1, 2 / 3, 1 / 3, 0, 0], rtol=1e-6
  )
  np.testing.assert_array_equal(
    reward.margins_of(words, "large"), [3, 2, 1, 0, 0]
  )
  numbers = np.asarray([0.5, None], object)
  np.testing.assert_array_equal(reward.margins_of(numbers, "given"), [0.5, 0])
  with pytest.raises(ValueError, match="'better'. Set margins='small' or"):
    reward.margins_of(np.asarray(["better"], object), "given")
  with pytest.raises(ValueError, match="reads words.*0.5. Set margins='given'"):
    reward.margins_of(numbers, "small")


def test_margins_reach_the_loss_of_a_batch():
  """-log s(d - m), Touvron et al. 2023, equation 2; whoever is the winner."""
  pair = SCORES[:, :2]
  label = jnp.asarray([0.0, 1.0])
  batch = batch_of(K=2, label=label, margin=[3.0, 2.0])
  found = value(pair, batch, margins="large")
  by_hand = -np.log(sigmoid([1.5 - 3.0, -0.3 - 2.0])).mean()
  np.testing.assert_allclose(found, by_hand, rtol=1e-5)
  rank = [[1, 0], [0, 1]]
  of_ranks = batch_of(K=2, rank=rank, margin=[3.0, 2.0])
  together = value(pair, of_ranks, objective="k-wise", margins="large")
  np.testing.assert_allclose(together, by_hand, rtol=1e-5)
  # Differences of scores: the winner's above the loser's.
  scored = batch_of(K=2, label=label, rank=rank, target=[[1, 4], [5, 3]])
  for objective in ("pairwise", "k-wise"):
    found = value(pair, scored, margins="scores", objective=objective)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def test_the_order_of_a_batch_is_that_of_its_ranks():
  """The same ranking, listed otherwise, has the same loss and accuracy."""
  rank = np.array([[0, 1, 2], [1, 0, 2]], np.float32)
  order = [[2, 0, 1], [1, 2, 0]]
  for objective in ("k-wise", "plackett-luce", "choice"):
    config = reward.Config(objective=objective)
    found = []
    for index in ([[0, 1, 2]] * 2, order):
      scores = jnp.take_along_axis(SCORES, jnp.asarray(index), 1)
      batch = batch_of(rank=np.take_along_axis(rank, np.asarray(index), 1))
      counts = reward.denominators(batch, config)
      found.append(reward.loss(scores, batch, config, counts))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *found
    )
  # Of the first 0.5 beats -1 but not 2, 2 beats -1; of the second 0.3 beats 0.
  accuracy = found[0][1]["reward_model/accuracy"]
  np.testing.assert_allclose(accuracy, (2 / 3 + 1 / 3) / 2, rtol=1e-6)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"objective": "choice", "margins": "small"}, "'choice' has no such form"),
    ({"objective": "regression", "label_smoothing": 0.1}, "has no such form"),
    ({"counts_ties": True}, "set objective to 'k-wise'"),
    ({"objective": "ordinal", "centering": 0.01}, "learns the score itself"),
    ({"margins": "huge"}, "margins='huge': must be one of"),
  ],
)
def test_settings_that_nothing_reads_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    reward.Config(**settings)
