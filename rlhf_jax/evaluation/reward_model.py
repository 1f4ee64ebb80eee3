"""Is this reward model fit to train a policy on? Held-out diagnostics.

  P(first wins) = sigmoid(delta),  delta = score_first - score_second
  ECE = sum_bins (n_bin / n) |mean confidence - share the favourite won|

Accuracy with Wilson's interval, calibration, length bias, spread, and the
guard rails that say whether PPO should start at all. Pairs must be held out
and split by prompt. Which answer of a pair is called first is arbitrary, so
every statistic here is unchanged when a pair is turned round: calibration
speaks of the favourite (the answer that scores higher), correlations count
each pair in both orders.

Wilson 1927; Guo et al. 2017, arXiv:1706.04599 (ECE, temperature); Bai et al.
2022, arXiv:2204.05862 (calibration of preference models). Left out: noise
ceilings, which need several annotators per pair. Members of ensembles are each
diagnosed so (programs/ensemble_facts.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.evaluation.win_rate import (
  Proportion,
  finite_vector,
  proportion,
)
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array

MAX_LENGTH_CORRELATION = 0.3  # flagged beyond; our choice
MAX_ACCURACY_GAP = 0.15  # shorter won against longer won; our choice
MIN_SPREAD = 0.1  # nats, within a prompt: sigmoid(delta) stays near 0.5
COLLAPSED_ACCURACY = 0.55  # at or near chance
GOOD_ACCURACY = 0.70  # held-out accuracy usual for human labels: 0.70-0.75
FEW_COMPARISONS = 5_000
MANY_COMPARISONS = 10_000
MAX_EPOCHS = 2


def _paired(differences: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [P], checked."""
  delta = finite_vector("differences", differences)
  label = finite_vector("labels", labels)
  if delta.shape != label.shape:
    raise ValueError(
      f"{delta.size} differences but {label.size} labels: both concern the "
      "same pairs. Pass one label for each pair."
    )
  wrong = np.flatnonzero((label < 0) | (label > 1))
  if wrong.size:
    raise ValueError(
      f"labels[{wrong[0]}]={label[wrong[0]]}: a label is the probability that "
      "the first answer wins. Set it in [0, 1], 0.5 for a tie."
    )
  return delta, label


def _checked_pairs(
  scores: Array, labels: Array, name: str = "scores"
) -> tuple[np.ndarray, np.ndarray]:
  """Returns column 0 minus column 1 of [P, 2], and labels [P]."""
  table = np.asarray(scores, np.float64)
  if table.ndim != 2 or table.shape[1] != 2:
    raise ValueError(
      f"{name} has shape {table.shape}: one row per pair is wanted, the first "
      "and the second answer. Pass [P, 2]."
    )
  return _paired(table[:, 0] - table[:, 1], labels)


def _hits(delta: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns 1 where the winner scores higher, 0.5 where scores are equal."""
  return 0.5 * (1.0 + np.sign(delta) * np.sign(label - 0.5))


def accuracy(differences: Array, labels: Array) -> Proportion:
  """Returns the share of pairs whose winner scores higher, with 95 % interval.

  Interval: `win_rate.wilson_interval`. Pairs of label 0.5 (ties) are left out;
  equal scores count one half.

  Args:
    differences: [P] score of the first answer minus score of the second.
    labels: [P] probability that the first wins, in [0, 1].

  Raises:
    ValueError: lengths differ, a difference is not finite, or a label is
      outside [0, 1].
  """
  delta, label = _paired(differences, labels)
  decided = label != 0.5
  return proportion(_hits(delta[decided], label[decided]))


def calibration(
  differences: Array, labels: Array, bins: int = 10
) -> dict[str, Any]:
  """Returns how often the favourite won, by how sure the model was of it.

  The confidence sigmoid(|delta|) lies in [0.5, 1] and is cut into `bins` bins
  of equal width. Ties enter with one half. This equals the usual curve over
  [0, 1] with every pair in both orders and twice the bins.

  Args:
    differences: [P], nats.
    labels: [P] probability that the first wins.
    bins: number of bins.

  Returns:
    "centres" [bins] of the bins, "empirical" [bins] share won by the favourite
    (NaN in an empty bin), "counts" [bins], and "ece", float (NaN for P = 0).

  Raises:
    ValueError: as in `accuracy`, or bins < 1.
  """
  delta, label = _paired(differences, labels)
  if bins < 1:
    raise ValueError(f"bins={bins}: at least one bin. Set bins >= 1.")
  confidence = 1.0 / (1.0 + np.exp(-np.abs(delta)))
  won = 0.5 + np.sign(delta) * (label - 0.5)
  which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
  counts = np.bincount(which, minlength=bins)
  with np.errstate(invalid="ignore"):
    predicted = np.bincount(which, confidence, bins) / counts
    empirical = np.bincount(which, won, bins) / counts
    gaps = np.where(counts > 0, np.abs(predicted - empirical), 0.0)
    ece = float(np.sum(gaps * counts) / counts.sum())
  edges = np.linspace(0.5, 1.0, bins + 1)
  return {
    "centres": 0.5 * (edges[1:] + edges[:-1]),
    "empirical": empirical,
    "counts": counts,
    "ece": ece,
  }


def temperature(differences: Array, labels: Array) -> float:
  """Returns T that minimises the log loss of sigmoid(delta / T).

  T > 1: the model is too sure of itself. The loss is convex in 1 / T, whose
  slope is bisected. Guo et al. 2017, for two classes.

  Args:
    differences: [P], nats.
    labels: [P] probability that the first wins.

  Returns:
    T; 0.0 where a smaller T is always better (every favourite won for
    certain), infinity where favourites win no more than half.

  Raises:
    ValueError: as in `accuracy`.
  """
  delta, label = _paired(differences, labels)

  def slope(inverse: float) -> float:
    tanh = np.tanh(0.5 * inverse * delta)
    return float(np.sum((0.5 * (1.0 + tanh) - label) * delta))

  if slope(0.0) >= 0.0:
    return math.inf
  if not np.any(delta * (np.sign(delta) * 0.5 + 0.5 - label)):
    return 0.0
  high = 1.0 / np.max(np.abs(delta))
  while slope(high) < 0.0:
    high *= 2.0
  low = 0.0
  for _ in range(60):
    middle = 0.5 * (low + high)
    low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
  return 2.0 / (low + high)


def _ranks(x: np.ndarray) -> np.ndarray:
  """Returns ranks, equal values sharing the mean of theirs."""
  _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - 0.5 * (counts - 1))[inverse]


def correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Returns Pearson's correlation, NaN where one side does not vary."""
  x, y = x - x.mean(), y - y.mean()
  scale = math.sqrt(float(np.sum(x * x)) * float(np.sum(y * y)))
  return float(np.sum(x * y)) / scale if scale > 0 else math.nan


def length_bias(scores: Array, labels: Array, lengths: Array) -> dict[str, Any]:
  """Returns how far the scores follow length rather than preference.

  Args:
    scores: [P, 2].
    labels: [P] probability that the first wins; 0.5 is left out of the
      accuracies.
    lengths: [P, 2] tokens (or words) of the same answers.

  Returns:
    pearson, spearman: correlation of score difference and length difference,
      each pair in both orders; NaN where either does not vary.
    shorter_won, longer_won: Proportion, accuracy on pairs that the shorter
      (longer) answer won.
    longer_wins: Proportion, accuracy of the rule "the longer answer wins".
    gap: longer_won - shorter_won, NaN where either is empty.
    correlation_flag: |spearman| or |pearson| > 0.3 (our choice).
    gap_flag: |gap| > 0.15 (our choice).

  Raises:
    ValueError: a shape is not [P, 2], or a value is not finite.
  """
  delta, label = _checked_pairs(scores, labels)
  longer, _ = _checked_pairs(lengths, labels, "lengths")
  decided = (label != 0.5) & (longer != 0)
  hits = _hits(delta, label)
  winner_longer = longer * (label - 0.5) > 0
  shorter_won = proportion(hits[decided & ~winner_longer])
  longer_won = proportion(hits[decided & winner_longer])
  both = np.concatenate([delta, -delta]), np.concatenate([longer, -longer])
  varies = delta.size > 0
  pearson = correlation(*both) if varies else math.nan
  spearman = correlation(*map(_ranks, both)) if varies else math.nan
  gap = longer_won.value - shorter_won.value
  return {
    "pearson": pearson,
    "spearman": spearman,
    "shorter_won": shorter_won,
    "longer_won": longer_won,
    "longer_wins": proportion(_hits(longer, label)[decided]),
    "gap": gap,
    "correlation_flag": (
      abs(pearson) > MAX_LENGTH_CORRELATION
      or abs(spearman) > MAX_LENGTH_CORRELATION
    ),
    "gap_flag": abs(gap) > MAX_ACCURACY_GAP,
  }


def spread(scores: Array) -> float:
  """Returns the standard deviation of scores within a prompt, in nats.

  Pooled over prompts, population form (divided by K). Near 0 the model does
  not tell answers apart.

  Args:
    scores: [P, K], the K answers of each prompt.
  """
  table = np.asarray(scores, np.float64)
  return float(np.sqrt(np.mean(np.var(table, axis=1))))


def diagnose(scores: Array, labels: Array, lengths: Array) -> dict[str, float]:
  """Returns every diagnostic of held-out pairs under one flat name each.

    reward_model/accuracy: lower is bad.
    reward_model/accuracy_low, reward_model/accuracy_high: its 95 % interval.
    reward_model/pairs: how many it rests on.
    reward_model/loss: log loss, nats; higher is bad.
    reward_model/margin: mean score of winner minus loser.
    reward_model/spread: see `spread`.
    reward_model/expected_calibration_error: higher is bad.
    reward_model/temperature: far from 1 is bad.
    reward_model/length_pearson, reward_model/length_spearman,
      reward_model/length_gap: far from 0 is bad.
    reward_model/accuracy_shorter_won, reward_model/accuracy_longer_won,
      reward_model/accuracy_longer_wins: see `length_bias`.
    reward_model/length_flag: 1.0 where `length_bias` flags.

  Args:
    scores: [P, 2].
    labels: [P] probability that the first wins.
    lengths: [P, 2] tokens.

  Raises:
    ValueError: as in `length_bias`, or there is no pair.
  """
  delta, label = _checked_pairs(scores, labels)
  if not delta.size:
    raise UserError("0 pairs: nothing to diagnose. Hold out some comparisons.")
  rate = accuracy(delta, label)
  length = length_bias(scores, labels, lengths)
  decided = label != 0.5
  towards_winner = delta * np.sign(label - 0.5)
  loss = np.logaddexp(0.0, -delta) * label
  loss += np.logaddexp(0.0, delta) * (1.0 - label)
  margin = math.nan
  if decided.any():
    margin = float(np.mean(towards_winner[decided]))
  return {
    "reward_model/accuracy": rate.value,
    "reward_model/accuracy_low": rate.low,
    "reward_model/accuracy_high": rate.high,
    "reward_model/pairs": float(rate.count),
    "reward_model/loss": float(np.mean(loss)),
    "reward_model/margin": margin,
    "reward_model/spread": spread(scores),
    "reward_model/expected_calibration_error": calibration(delta, label)["ece"],
    "reward_model/temperature": temperature(delta, label),
    "reward_model/length_pearson": length["pearson"],
    "reward_model/length_spearman": length["spearman"],
    "reward_model/length_gap": length["gap"],
    "reward_model/accuracy_shorter_won": length["shorter_won"].value,
    "reward_model/accuracy_longer_won": length["longer_won"].value,
    "reward_model/accuracy_longer_wins": length["longer_wins"].value,
    "reward_model/length_flag": float(
      length["correlation_flag"] or length["gap_flag"]
    ),
  }


def guard(
  diagnosis: Mapping[str, float], comparisons: int, epochs: float
) -> list[tuple[str, str]]:
  """Returns what speaks against training a policy on this reward model.

  Args:
    diagnosis: what `diagnose` returned.
    comparisons: pairs it was trained on.
    epochs: passes over them.

  Returns:
    (level, message) with level "refuse" (stop unless forced), "warn" or
    "note"; a message names value, rule and remedy. Empty when all is well.
  """
  d = diagnosis
  rate = d["reward_model/accuracy"]
  seen = (
    f"reward_model/accuracy={rate:.3f} (95 % interval "
    f"{d['reward_model/accuracy_low']:.3f} to "
    f"{d['reward_model/accuracy_high']:.3f}, "
    f"{d['reward_model/pairs']:.0f} pairs)"
  )
  at_chance = not rate >= COLLAPSED_ACCURACY  # NaN, no decided pair, is one
  rules = [
    (
      at_chance,
      "refuse",
      f"{seen}: below {COLLAPSED_ACCURACY} the scores are near chance and PPO "
      "would follow noise. Check label order and pooling, train on more "
      "comparisons, or set force=True of the run that it judges, if you mean "
      "it.",
    ),
    (
      not at_chance and rate < GOOD_ACCURACY,
      "warn",
      f"{seen}: below {GOOD_ACCURACY:.2f}, where 0.70 to 0.75 is usual on "
      "held-out human labels. Add comparisons, clean labels, or check the "
      "agreement of annotators first.",
    ),
    (
      comparisons < FEW_COMPARISONS,
      "warn",
      f"comparisons={comparisons}: fewer than {FEW_COMPARISONS} rarely carry a "
      "reward model through PPO. Collect more, or use DPO or SFT.",
    ),
    (
      FEW_COMPARISONS <= comparisons < MANY_COMPARISONS,
      "note",
      f"comparisons={comparisons}: with fewer than {MANY_COMPARISONS} "
      "over-optimisation comes early. Collect more, or keep the KL target low.",
    ),
    (
      epochs > MAX_EPOCHS,
      "warn",
      f"epochs={epochs}: more than {MAX_EPOCHS} passes over-fit a reward "
      "model. Train for 1 epoch, or compare training and held-out accuracy.",
    ),
    (
      1 < epochs <= MAX_EPOCHS,
      "note",
      f"epochs={epochs}: 1 is usual for reward models. Compare training and "
      "held-out accuracy.",
    ),
    (
      bool(d["reward_model/length_flag"]),
      "warn",
      "length bias: reward_model/length_pearson="
      f"{d['reward_model/length_pearson']:.2f}, reward_model/length_spearman="
      f"{d['reward_model/length_spearman']:.2f} (rule: within "
      f"{MAX_LENGTH_CORRELATION}), reward_model/length_gap="
      f"{d['reward_model/length_gap']:.2f} "
      f"(rule: within {MAX_ACCURACY_GAP}). Balance lengths in the pairs, or "
      "watch response length during PPO.",
    ),
    (
      d["reward_model/spread"] < MIN_SPREAD,
      "warn",
      f"reward_model/spread={d['reward_model/spread']:.3f} nats: below "
      f"{MIN_SPREAD} the scores of "
      "one prompt's answers barely differ. Train longer, raise the learning "
      "rate, or weaken the regularisation.",
    ),
  ]
  return [(level, message) for applies, level, message in rules if applies]
