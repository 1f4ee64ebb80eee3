"""Statistics of agreement against numbers by hand and of other libraries."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.labelling import agreement
from rlhf_jax.schema import UserError

# scipy.stats.binomtest and krippendorff 0.9.0 (GPL: numbers alone) said these.
SMALL = ["++-0+-.+0+", "+--0+-+.0+", "++-+.-++-.", ".+00++.+0-"]
SMALL_ALPHA = {
  "nominal": 0.4358974358974359,
  "ordinal": 0.4446078431372549,
  "interval": 0.4086021505376345,
}
RATED = [
  "..3.51114522242.4.32.3..25.1.23135131233",
  "3.2.1514.22225521..25.434133..33335415.2",
  "4..343..42..2..211..54234511323353544541",
  ".25..5.3425421.5114..4..331532333...45.3",
  "52235..412224.2.1.4453....1.3.53.5..2542",
  "43.2551..2322322414..35345.3..33.5214..2",
]
RATED_ALPHA = {
  "nominal": 0.31067688593166565,
  "ordinal": 0.18408328827960208,
  "interval": 0.18474612439590776,
}


def table(rows):
  signs = {"+": 1.0, "-": -1.0, ".": math.nan}
  return np.array(
    [
      [signs.get(x, None) if x in signs else float(x) for x in row]
      for row in rows
    ]
  )


@pytest.mark.parametrize("level", agreement.LEVELS)
def test_alpha_is_that_of_the_library(level):
  for rows, expected in ((SMALL, SMALL_ALPHA), (RATED, RATED_ALPHA)):
    found = agreement.krippendorff_alpha(table(rows), level)
    assert found == pytest.approx(expected[level], abs=1e-12)


def naive_alpha(values):
  """Returns nominal alpha by its definition: disagreement seen / expected."""
  units = [u[~np.isnan(u)] for u in values.T]
  units = [u for u in units if len(u) > 1]
  pooled = np.concatenate(units)
  seen = sum(
    sum(a != b for a, b in itertools.permutations(u, 2)) / (len(u) - 1)
    for u in units
  ) / len(pooled)
  chance = sum(a != b for a, b in itertools.permutations(pooled, 2))
  return 1 - seen / (chance / (len(pooled) * (len(pooled) - 1)))


def test_alpha_is_its_definition():
  found = agreement.krippendorff_alpha(table(SMALL))
  assert found == pytest.approx(naive_alpha(table(SMALL)), abs=1e-12)


def test_cohen_and_fleiss_by_hand():
  first, second = table(SMALL[:2])
  # Of sklearn.metrics.cohen_kappa_score; by hand: 7 of 8 agree.
  assert agreement.cohen_kappa(first, second) == pytest.approx(0.8095238095)
  both = np.array([[1.0, 1, 0, 0], [1, 0, 0, 0]])
  # p_o = 3/4, pooled shares 3/8 and 5/8: p_e = 34/64
  expected = (0.75 - 34 / 64) / (1 - 34 / 64)
  assert agreement.fleiss_kappa(both) == pytest.approx(expected)
  # p_e = 1/2 * 1/4 + 1/2 * 3/4 = 1/2
  assert agreement.cohen_kappa(*both) == pytest.approx(0.5)


def test_skew_makes_kappa_small_at_high_agreement():
  rows = np.ones((2, 100))
  rows[0, 0] = rows[1, 1] = 0
  assert agreement.raw_agreement(rows) == 0.98
  assert agreement.cohen_kappa(*rows) < 0
  assert math.isnan(agreement.cohen_kappa(*np.ones((2, 5))))
  assert math.isnan(agreement.krippendorff_alpha(np.ones((2, 5))))


def test_chance_is_zero_and_full_agreement_one():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 2, (4, 4000)).astype(float)
  for found in (
    agreement.krippendorff_alpha(rows),
    agreement.fleiss_kappa(rows),
    agreement.cohen_kappa(*rows[:2]),
  ):
    assert abs(found) < 0.03
  same = np.repeat(rows[:1], 3, axis=0)
  assert agreement.krippendorff_alpha(same) == 1.0
  assert agreement.fleiss_kappa(same) == 1.0


def test_what_one_annotator_alone_says_is_left_out():
  rows = table(SMALL)
  alone = np.full((4, 3), np.nan)
  alone[1] = [1, 0, -1]
  more = np.concatenate([rows, alone], axis=1)
  for f in (agreement.raw_agreement, agreement.krippendorff_alpha):
    assert f(more) == f(rows)
  assert math.isnan(agreement.raw_agreement(alone))


def test_the_interval_is_over_prompts():
  rng = np.random.default_rng(3)
  base = rng.integers(0, 2, 50)
  rows = np.where(rng.random((3, 50)) < 0.8, base, 1 - base).astype(float)
  single = agreement.resampled(agreement.raw_agreement, rows, np.arange(50))
  copied = agreement.resampled(
    agreement.raw_agreement, np.tile(rows, 4), np.tile(np.arange(50), 4)
  )
  assert single.low < single.value < single.high
  assert copied.value == pytest.approx(single.value)
  width = single.high - single.low
  assert copied.high - copied.low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize(
  "hits, count, share, expected",
  [
    (60, 100, 0.5, 0.05688793364098078),
    (3, 20, 0.25, 0.4393741000631053),
    (0, 5, 0.5, 0.0625),
    (5, 10, 0.5, 1.0),
  ],
)
def test_binomial_test_is_that_of_scipy(hits, count, share, expected):
  found = agreement.binomial_p(hits, count, share)
  assert found == pytest.approx(expected, rel=1e-9)


def test_triads_that_run_in_a_circle():
  circle = {("a", "b"): 1, ("b", "c"): 1, ("a", "c"): -1}
  assert agreement.triads(circle) == (1, 1)
  assert agreement.triads({k: -v for k, v in circle.items()}) == (1, 1)
  assert agreement.triads(circle | {("a", "c"): 1}) == (0, 1)
  assert agreement.triads(circle | {("a", "c"): 0}) == (0, 0)
  rng = np.random.default_rng(0)
  pairs = list(itertools.combinations("abcdefghij", 2))
  drawn = [
    agreement.triads({p: int(rng.choice([-1, 1])) for p in pairs})
    for _ in range(50)
  ]
  bad, total = np.sum(drawn, axis=0)
  assert bad / total == pytest.approx(0.25, abs=0.02)


def test_majority_of_the_others():
  rows = np.array([[1.0, 1, np.nan], [1, -1, 1], [-1, -1, np.nan]])
  np.testing.assert_array_equal(agreement.majority(rows), [1, -1, 1])
  others = agreement.majority(rows, without=1)
  np.testing.assert_array_equal(others, [np.nan, np.nan, np.nan])
  found = agreement.agreement_with(rows[0], np.array([1.0, -1, 1]))
  assert (found.value, found.count) == (0.5, 2)


def test_groups_that_want_different_things():
  rows = np.array([[1.0, 1, -1, 1]] * 2 + [[-1.0, -1, 1, 1]] * 2)
  found = agreement.between_groups(rows, ["a", "a", "b", "b"])
  assert found == {"a": (1.0, 0.25, 1.0, 16), "b": (1.0, 0.25, 1.0, 16)}


def test_refusals():
  with pytest.raises(UserError, match="level='ratio'"):
    agreement.krippendorff_alpha(table(SMALL), "ratio")
  with pytest.raises(UserError, match="shape"):
    agreement.raw_agreement(np.ones(3))
  with pytest.raises(UserError, match="hits=5, count=4"):
    agreement.binomial_p(5, 4)
