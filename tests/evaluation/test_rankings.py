"""Win rates of many policies, and the Bradley-Terry fit of them."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import rankings


def planted(strengths, prompts, seed=0):
  """Returns scores [P, n] whose wins follow Bradley and Terry exactly."""
  draws = np.random.default_rng(seed).gumbel(size=(len(strengths), prompts))
  return draws + np.asarray(strengths)[:, None]


def test_wins_ties_and_losses_are_counted():
  scores = [[1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 4.0, 0.0]]
  assert rankings.win_matrix(scores).tolist() == [[0.5, 0.625], [0.375, 0.5]]


def test_three_of_four_is_the_logarithm_of_three():
  wins = np.array([[0.5, 0.75], [0.25, 0.5]])
  found = rankings.strengths(wins, 100, virtual_ties=0.0)
  assert found[0] - found[1] == pytest.approx(math.log(3.0), abs=1e-9)
  assert found.sum() == pytest.approx(0.0, abs=1e-12)
  assert rankings.ELO * math.log(10) == pytest.approx(400.0)
  tied = rankings.strengths(wins, 99, virtual_ties=1.0)
  share = (99 * 0.75 + 0.5) / 100
  assert tied[0] - tied[1] == pytest.approx(math.log(share / (1 - share)))


def test_the_fit_is_the_maximum_of_its_likelihood():
  wins = rankings.win_matrix(planted([0.0, 0.4, -1.0, 2.0], 300))
  found = rankings.strengths(wins, 300, virtual_ties=0.0)

  def likelihood(s):
    gaps = s[:, None] - s[None, :]
    terms = wins * np.log(1 / (1 + np.exp(-gaps)))
    return terms.sum() - np.trace(terms)

  for direction in np.eye(4):
    assert likelihood(found) > likelihood(found + 1e-3 * direction)
    assert likelihood(found) > likelihood(found - 1e-3 * direction)


def test_planted_strengths_are_found_within_their_intervals():
  truth = np.array([1.0, 0.0, -0.5, -0.5])
  inside = np.zeros(4)
  for seed in range(40):
    ranked = rankings.rank(planted(truth, 200, seed), seed=seed, resamples=200)
    elo = rankings.ELO * truth
    inside += [r.low < e < r.high for r, e in zip(ranked, elo, strict=True)]
  assert (inside >= 33).all()  # of 40, at 95 %
  assert max(ranked, key=lambda r: r.elo) is ranked[0]
  whole = rankings.win_matrix(planted(truth, 200, 39))
  others = (whole.sum(axis=1) - 0.5) / 3
  assert [r.win_rate for r in ranked] == pytest.approx(others)


def test_the_order_of_policies_does_not_matter():
  scores = planted([1.0, 0.0, -1.0], 60)
  one = rankings.rank(scores, resamples=100)
  other = rankings.rank(scores[::-1], resamples=100)
  np.testing.assert_allclose(one, other[::-1], atol=1e-6)


def test_who_always_wins_has_a_strength_only_with_ties():
  scores = [[1.0] * 10, [0.0] * 10]
  found = rankings.rank(scores, resamples=100)
  assert found[0].elo == pytest.approx(rankings.ELO * math.log(21) / 2)
  with pytest.raises(ValueError, match="somebody won always"):
    rankings.strengths(rankings.win_matrix(scores), 10, virtual_ties=0.0)


@pytest.mark.parametrize(
  "scores", [[1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, math.nan]] * 2]
)
def test_scores_that_cannot_be_compared_are_refused(scores):
  with pytest.raises(ValueError, match="scores"):
    rankings.rank(scores)
