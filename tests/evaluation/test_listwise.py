"""Best of K, ties as RewardBench 2 counts them, and Kendall's tau_b."""

import math

import pytest

from rlhf_jax.evaluation import listwise
from rlhf_jax.schema import UserError

# Scores that were drawn once: RewardBench 2's own function gives 0.77332...
# of them, with these parts. The right answers stand first.
REFERENCE = {
  "0": [0.67, -0.12, 0.21, 0.57],
  "1": [0.82, 0.8, 0.1, -0.87],
  "2": [0.96, 0.2, 0.41, -0.82],
  "3": [1.04, -0.55, -0.68, 0.11],
  "4": [0.4, -0.12, -0.13, 0.48],
  "5": [1.54, 0.42, -0.3, -0.04],
  "9": [1.0, 0.0],
}
TIED = {
  "0": ([1.16, 1.1, 0.37, 0.82, 0.14], 2),
  "1": ([1.28, 1.01, 1.14, -0.24, -0.36, 0.28], 3),
  "2": ([1.05, 1.26, 0.98, 0.01, -0.02, -0.15], 3),
  "3": ([1.02, 1.59, 1.48, 0.8, 0.14, -0.55, 0.02], 4),
  "4": ([1.48, 1.03, 1.22, 1.09, 0.72, 0.28, 1.22], 4),
  "5": ([1.64, 1.2, 1.35, 1.29, 0.3, -0.18, -0.08], 4),
  "9": ([1.0, 1.0, 0.5, 0.0], 2),
}


def right(scores, count):
  return scores, [n < count for n in range(len(scores))]


def test_ties_are_those_of_rewardbench():
  found = listwise.ties(
    {k: right(x, 1) for k, x in REFERENCE.items()},
    {k: right(*x) for k, x in TIED.items()},
  )
  assert found.prompts == 7
  assert found.score == pytest.approx(0.7733245148131437, abs=1e-12)
  expected = (6 / 7, 6 / 7, 5 / 7, 4 / 7, 0.18959433845721702)
  assert found[:5] == pytest.approx(expected, abs=1e-12)


def test_ties_by_hand():
  found = listwise.ties(
    {"a": right([2.0, 0.0], 1)}, {"a": right([3.0, 2.0, 0.0], 2)}
  )
  # spread 1, gap 2, beside the single one 2: all margins are kept.
  margin = math.tanh(2 / 1 - 1)
  assert found.score == pytest.approx(1.0 + 0.01 * margin)
  with pytest.raises(UserError, match="prompt b: has one right answer"):
    listwise.ties({}, {"b": right([1.0, 0.0], 1)})
  with pytest.raises(UserError, match="needs right and wrong"):
    listwise.ties({"c": right([1.0], 1)}, {})


def test_best_of_four_and_its_ties():
  first = [True, False, False, False]
  assert listwise.best_of([2, 1, 0, -1], first) == 1.0
  assert listwise.best_of([2, 3, 0, -1], first) == 0.0
  assert listwise.best_of([2, 2, 0, 2], first) == pytest.approx(1 / 3)
  assert listwise.best_of([1, 1, 1, 1], first) == 0.25


@pytest.mark.parametrize(
  "scores, ranks, expected",  # of scipy.stats.kendalltau
  [
    ([3, 1, 2, 0], [0, 1, 2, 3], 2 / 3),
    ([1.0, 1.0, 0.5, 2.0, 0.1], [0, 1, 1, 0, 2], 0.8249579113843054),
    ([0.3, 0.2, 0.9, 0.9, 0.1, 0.4], [2, 2, 0, 1, 3, 3], 0.592999453328881),
    ([3, 9, 2, 1], [0, math.nan, 1, 2], 1.0),
  ],
)
def test_kendall_tau_b(scores, ranks, expected):
  found = listwise.kendall_tau_b(scores, ranks)
  assert found == pytest.approx(expected, abs=1e-12)


def test_no_order_has_no_tau():
  assert math.isnan(listwise.kendall_tau_b([1, 2], [0, 0]))
