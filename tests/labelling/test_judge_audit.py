"""What an audit finds of a judge whose faults were planted."""

import math

import numpy as np
import pytest

from rlhf_jax.labelling import judge_audit

NONE = math.nan


def test_flips_and_position_bias_by_hand():
  first = np.array([2.0, 1.0, -1.0, 3.0])
  swapped = np.array([1.0, -2.0, 2.0, -1.0])
  found = judge_audit.positions(first, swapped)
  assert found["flip_rate"] == 0.25  # the first pair is "A" twice
  assert found["first_share"] == 5 / 8
  assert found["position_bias"] == pytest.approx((3 - 1 + 1 + 2) / 8)
  assert found["flip_rate_low"] < 0.25 < found["flip_rate_high"]
  votes = judge_audit.positions(np.array([np.inf]), np.array([np.inf]))
  assert votes["flip_rate"] == 1.0 and "position_bias" not in votes
  assert judge_audit.positions(np.zeros(0), np.zeros(0)) == {}


def test_kappa_by_hand():
  """Cohen 1960 by hand: 50 items, 20 both yes, 15 both no, 5 and 10 not."""
  ours = np.array([True] * 25 + [False] * 25)
  theirs = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
  found = judge_audit.agreement(ours * 1.0, theirs * 1.0)
  assert found["kappa"] == pytest.approx(0.4)
  assert "kappa" not in judge_audit.agreement(ours[:3] * 1.0, theirs[:3] * 1.0)


def test_ties_are_counted_and_left_out():
  labels = np.array([0.9, 0.2, 0.5, 0.7, 0.6, 0.8])
  gold = np.array([1.0, 1.0, 1.0, 0.5, NONE, 1.0])
  found = judge_audit.agreement(labels, gold)
  assert found["gold_labels"] == 5
  assert (found["ties"], found["gold_ties"]) == (1, 1)
  assert found["agreement"] == pytest.approx(2 / 3)
  assert judge_audit.agreement(labels, np.full(6, NONE)) == {}


def test_the_slope_of_length_is_what_people_do_not_see_in_it():
  """People like long answers; the judge likes them by 0.3 nats beyond."""
  rng = np.random.default_rng(0)
  longer = rng.normal(0.0, 50.0, 4000)
  gold = (rng.random(4000) < 1.0 / (1.0 + np.exp(-longer / 40.0))) * 1.0
  noise = rng.normal(0.0, 0.5, 4000)
  s = 2.0 * (gold - 0.5) + 0.3 * longer / longer.std() + noise
  found = judge_audit.lengths(s, longer, gold)
  error = found["length_slope_standard_error"]
  assert found["length_slope"] == pytest.approx(0.3, abs=4 * error)
  assert error < 0.02
  assert 0.6 < found["gold_longer_share"] < found["longer_share"]
  blind = judge_audit.lengths(s, longer, np.full(4000, NONE))
  assert blind["length_slope"] > 0.7 and "gold_longer_share" not in blind
  votes = np.where(s > 1.0, np.inf, 0.0)
  assert "length_slope" not in judge_audit.lengths(votes, longer, gold)
  assert judge_audit.lengths(s[:2], longer[:2], gold[:2]).keys() <= {
    "longer_share",
    "gold_longer_share",
  }


def test_a_preference_for_itself_is_what_others_do_not_see():
  labels = np.array([0.9, 0.3, 0.8, 0.6])
  gold = np.array([1.0, 0.0, 0.5, NONE])
  is_own = np.array([[True, False], [False, True], [True, True], [True, False]])
  found = judge_audit.self_preference(labels, gold, is_own)
  gains = np.array([-0.1, 0.7 - 1.0, 0.6 - 0.5])
  assert found["own_pairs"] == 3
  assert found["self_preference"] == pytest.approx(gains.mean())
  error = gains.std(ddof=1) / math.sqrt(3)
  assert found["self_preference_standard_error"] == pytest.approx(error)
  none = judge_audit.self_preference(labels, gold, np.zeros((4, 2), bool))
  assert none == {}


def test_the_table_has_what_is_known():
  facts = {"calls": 1200, "flip_rate": 0.25, "flip_rate_low": 0.1}
  facts |= {"flip_rate_high": 0.4, "position_bias": 1.0}
  facts |= {"position_bias_standard_error": 0.125}
  assert judge_audit.table(facts, ("calls", "failed")) == [
    ["calls", "1,200", ""],
    ["flip rate", "0.250", "0.100 to 0.400"],
    ["position bias", "1.000", "+- 0.125"],
  ]
