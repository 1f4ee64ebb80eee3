"""Ratings to pairs, and the ceiling that raters set."""

import numpy as np
import pytest

from rlhf_jax.data import ratings as ratings_lib
from rlhf_jax.data.examples import RatedText

TEXTS = [
  RatedText("f:1", "low", (-2.0, -1.0)),
  RatedText("f:2", "middle", (0.0, 0.0, 1.0)),
  RatedText("f:3", "high", (1.0, 2.0, 2.0, 3.0)),
  RatedText("f:4", "also high", (1.0, 2.0, 2.0, 3.0)),
]


@pytest.mark.parametrize("ties", ["drop", "soft"])
def test_pairs_follow_the_raters(ties):
  pairs, labels = ratings_lib.comparisons_from_ratings(TEXTS, 20_000, 3, ties)
  assert pairs.shape == (20_000, 2) and pairs.dtype == np.int32
  assert labels.shape == (20_000,) and labels.dtype == np.float32
  assert (pairs[:, 0] != pairs[:, 1]).all()
  for i, a in enumerate(TEXTS):
    for j, b in enumerate(TEXTS):
      if i == j:
        continue
      chosen = labels[(pairs == [i, j]).all(axis=1)]
      draws = [0.5 + 0.5 * np.sign(x - y) for x in a.ratings for y in b.ratings]
      if ties == "drop":
        draws = [d for d in draws if d != 0.5]
        assert not (chosen == 0.5).any()
      expected = np.mean(draws)
      assert len(chosen) > 600
      assert abs(chosen.mean() - expected) < 4 * 0.5 / np.sqrt(len(chosen))


def test_pairs_are_deterministic():
  first = ratings_lib.comparisons_from_ratings(TEXTS, 50, 3)
  again = ratings_lib.comparisons_from_ratings(TEXTS, 50, 3)
  other = ratings_lib.comparisons_from_ratings(TEXTS, 50, 4)
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert (first[0] != other[0]).any()


def test_pairs_that_cannot_be_drawn():
  same = [RatedText("f:1", "a", (1.0,)), RatedText("f:2", "b", (1.0, 1.0))]
  with pytest.raises(ValueError, match="all pairs tie"):
    ratings_lib.comparisons_from_ratings(same, 5, 0)
  labels = ratings_lib.comparisons_from_ratings(same, 5, 0, "soft")[1]
  assert (labels == 0.5).all()
  with pytest.raises(ValueError, match="all 5 labels are ties"):
    ratings_lib.rater_ceiling(same, np.zeros((5, 2), int), labels)
  with pytest.raises(ValueError, match="at least 2 texts"):
    ratings_lib.comparisons_from_ratings(TEXTS[:1], 5, 0)
  with pytest.raises(ValueError, match="ties='skip'"):
    ratings_lib.comparisons_from_ratings(TEXTS, 5, 0, "skip")


def test_rater_ceiling_known_value():
  pairs = np.array([[0, 1], [1, 0], [1, 2], [2, 3], [0, 2]], np.int32)
  labels = np.array([0.0, 1.0, 1.0, 1.0, 0.5], np.float32)
  # right, right, wrong, equal means, tie left out
  assert (
    ratings_lib.rater_ceiling(TEXTS, pairs, labels) == (1 + 1 + 0 + 0.5) / 4
  )
