"""Reward-model diagnostics: known answers, symmetry, planted biases."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import reward_model as rm


def planted(pairs=4000, seed=0, scale=1.0):
  """Scores [P, 2] in nats and labels drawn from sigmoid(delta / scale)."""
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=(pairs, 2)) * 1.5
  delta = (scores[:, 0] - scores[:, 1]) / scale
  labels = (rng.random(pairs) < 1 / (1 + np.exp(-delta))).astype(float)
  return scores, labels, rng


def test_accuracy_by_hand():
  # right, wrong, equal scores (half), tie (left out), soft label: right
  result = rm.accuracy([1.0, 1.0, 0.0, 5.0, -2.0], [1, 0, 1, 0.5, 0.3])
  assert result.value == pytest.approx(2.5 / 4)
  assert result.count == 4
  z2 = 1.959964**2
  centre = (0.625 + z2 / 8) / (1 + z2 / 4)
  assert (result.low + result.high) / 2 == pytest.approx(centre)


def test_accuracy_of_ties_only_is_nan():
  assert math.isnan(rm.accuracy([1.0], [0.5]).value)


@pytest.mark.parametrize(
  ("differences", "labels", "message"),
  [
    ([1.0, 2.0], [1.0], "2 differences but 1 labels"),
    ([1.0], [1.5], r"labels\[0\]=1.5"),
    ([math.nan], [1.0], r"differences\[0\]=nan"),
  ],
)
def test_accuracy_refuses(differences, labels, message):
  with pytest.raises(ValueError, match=message):
    rm.accuracy(differences, labels)


def test_calibration_by_hand():
  # confidences .6, .6 (one right, one wrong), .9 (right): gaps .1 and .1
  def logit(p):
    return math.log(p / (1 - p))

  result = rm.calibration([logit(0.6), -logit(0.6), logit(0.9)], [1, 1, 1], 2)
  np.testing.assert_allclose(result["centres"], [0.625, 0.875])
  np.testing.assert_allclose(result["empirical"], [0.5, 1.0])
  np.testing.assert_array_equal(result["counts"], [2, 1])
  assert result["ece"] == pytest.approx(0.1)


def test_the_calibration_error_weighs_bins_by_their_pairs():
  # three pairs at 0.6, all right: gap 0.4; one at 0.9, right: gap 0.1
  logit = lambda p: math.log(p / (1 - p))  # noqa: E731
  result = rm.calibration([logit(0.6)] * 3 + [-logit(0.9)], [1, 1, 1, 0], 2)
  assert result["ece"] == pytest.approx((3 * 0.4 + 0.1) / 4)


def test_calibration_of_empty_bins_and_certain_scores():
  result = rm.calibration([0.0, 1e4, -1e4], [1.0, 1.0, 0.0], 5)
  np.testing.assert_array_equal(result["counts"], [1, 0, 0, 0, 2])
  assert np.isnan(result["empirical"][1])
  assert result["ece"] == pytest.approx(0.0)


def test_calibrated_scores_have_small_ece_and_temperature_one():
  scores, labels, _ = planted()
  delta = scores[:, 0] - scores[:, 1]
  assert rm.calibration(delta, labels)["ece"] < 0.02
  assert rm.temperature(delta, labels) == pytest.approx(1.0, abs=0.1)


def test_temperature_recovers_a_planted_scale():
  scores, labels, _ = planted(scale=2.5)
  delta = scores[:, 0] - scores[:, 1]
  fitted = rm.temperature(delta, labels)
  assert fitted == pytest.approx(2.5, abs=0.25)

  def loss(t):
    right = np.where(labels > 0.5, delta, -delta)
    return np.mean(np.logaddexp(0.0, -right / t))

  assert loss(fitted) < min(loss(fitted * 1.05), loss(fitted / 1.05))
  assert rm.calibration(delta, labels)["ece"] > 0.1


def test_temperature_limits():
  assert rm.temperature([1.0, -3.0], [1, 0]) == 0.0
  assert rm.temperature([1.0, 3.0], [0, 0]) == math.inf
  assert rm.temperature([0.0], [1]) == math.inf
  soft = 1 / (1 + math.exp(-0.5))
  assert rm.temperature([2.0], [soft]) == pytest.approx(4.0)


def test_length_bias_by_hand():
  scores = np.array([[2.0, 0], [0, 1], [3, 0], [0, 4], [1, 0]])
  lengths = np.array([[9, 3], [2, 4], [1, 5], [6, 6], [2, 7]])
  labels = np.array([1.0, 1, 0, 1, 1])
  result = rm.length_bias(scores, labels, lengths)
  # winners longer: pair 0 (right), pair 2 (wrong); shorter: 1 (wrong), 4 (ok)
  assert result["longer_won"][::3] == (0.5, 2)
  assert result["shorter_won"][::3] == (0.5, 2)
  assert result["longer_wins"][::3] == (0.5, 4)
  assert result["gap"] == 0.0
  delta, longer = [2, -1, 3, -4, 1], [6, -2, -4, 0, -5]
  expected = np.dot(delta, longer) / math.sqrt(
    np.dot(delta, delta) * np.dot(longer, longer)
  )
  assert result["pearson"] == pytest.approx(expected)


def test_spearman_against_naive_ranks():
  rng = np.random.default_rng(5)
  x, y = rng.integers(0, 4, (2, 13)).astype(float)
  naive = [
    [
      sum(o < v for o in row) + 0.5 * (sum(o == v for o in row) + 1)
      for v in row
    ]
    for row in (x, y)
  ]
  np.testing.assert_allclose(rm._ranks(x), naive[0])
  zeros = np.zeros_like(x)
  result = rm.length_bias(
    np.stack([x, zeros], 1), np.ones(13), np.stack([y, zeros], 1)
  )
  both = [np.concatenate([v, -v]) for v in (x, y)]
  ranks = [rm._ranks(v) for v in both]
  assert result["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_planted_length_bias_is_flagged_and_its_absence_is_not():
  scores, labels, rng = planted(2000)
  lengths = rng.integers(5, 50, scores.shape).astype(float)
  clean = rm.length_bias(scores, labels, lengths)
  assert not clean["correlation_flag"] and not clean["gap_flag"]
  biased = rm.length_bias(scores + 0.1 * lengths, labels, lengths)
  assert biased["correlation_flag"] and biased["gap_flag"]
  assert biased["longer_won"].value > biased["shorter_won"].value


def test_diagnosis_does_not_depend_on_the_order_within_pairs():
  scores, labels, rng = planted(300)
  lengths = rng.integers(5, 50, scores.shape).astype(float) + scores
  labels[:20] = 0.5
  labels[20:40] = 0.8
  turn = rng.random(300) < 0.5

  def turned(x):
    return np.where(turn[:, None], x[:, ::-1], x)

  first = rm.diagnose(scores, labels, lengths)
  second = rm.diagnose(
    turned(scores), np.where(turn, 1 - labels, labels), turned(lengths)
  )
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value == pytest.approx(second[name], rel=1e-6), name


def test_diagnose_known_answers():
  scores, labels, rng = planted(500)
  lengths = rng.integers(5, 50, scores.shape)
  result = rm.diagnose(scores, labels, lengths)
  assert all(name.startswith("reward_model/") for name in result)
  assert all(isinstance(value, float) for value in result.values())
  delta = scores[:, 0] - scores[:, 1]
  assert result["reward_model/spread"] == pytest.approx(
    np.sqrt(np.mean(delta**2) / 4)
  )
  signed = np.where(labels > 0.5, delta, -delta)
  assert result["reward_model/margin"] == pytest.approx(signed.mean())
  assert result["reward_model/loss"] == pytest.approx(
    np.log1p(np.exp(-signed)).mean()
  )
  with pytest.raises(ValueError, match="0 pairs"):
    rm.diagnose(np.zeros((0, 2)), [], np.zeros((0, 2)))
  with pytest.raises(ValueError, match=r"lengths has shape \(500,\)"):
    rm.diagnose(scores, labels, lengths[:, 0])


HEALTHY = {
  "reward_model/accuracy": 0.78,
  "reward_model/accuracy_low": 0.74,
  "reward_model/accuracy_high": 0.81,
  "reward_model/pairs": 500.0,
  "reward_model/length_pearson": 0.1,
  "reward_model/length_spearman": 0.1,
  "reward_model/length_gap": 0.02,
  "reward_model/length_flag": 0.0,
  "reward_model/spread": 0.9,
}


def test_guard_is_silent_when_all_is_well():
  assert rm.guard(HEALTHY, 10_000, 1) == []


@pytest.mark.parametrize(
  ("change", "comparisons", "epochs", "level", "words"),
  [
    (
      {"reward_model/accuracy": 0.549},
      20_000,
      1,
      "refuse",
      ("0.549", "0.55", "force"),
    ),
    (
      {"reward_model/accuracy": math.nan},
      20_000,
      1,
      "refuse",
      ("nan", "force"),
    ),
    (
      {"reward_model/accuracy": 0.55},
      20_000,
      1,
      "warn",
      ("0.550", "0.70", "label"),
    ),
    ({"reward_model/accuracy": 0.699}, 20_000, 1, "warn", ("0.699", "0.70")),
    ({}, 4_999, 1, "warn", ("4999", "5000", "DPO")),
    ({}, 5_000, 1, "note", ("5000", "10000", "Collect")),
    ({}, 20_000, 2, "note", ("epochs=2", "1 is usual")),
    ({}, 20_000, 3, "warn", ("epochs=3", "more than 2", "Train for 1")),
    (
      {"reward_model/length_flag": 1.0},
      20_000,
      1,
      "warn",
      ("0.3", "0.15", "Balance"),
    ),
    (
      {"reward_model/spread": 0.05},
      20_000,
      1,
      "warn",
      ("0.050", "0.1", "Train"),
    ),
  ],
)
def test_guard_rules(change, comparisons, epochs, level, words):
  findings = rm.guard(HEALTHY | change, comparisons, epochs)
  assert [found for found, _ in findings] == [level]
  for word in words:
    assert word in findings[0][1]
