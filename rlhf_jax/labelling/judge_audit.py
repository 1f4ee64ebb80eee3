"""What is wrong with a judge: position, length, itself, and people's labels.

  z1, z2   logits of "A" over "B", the first answer shown as A, and as B
  flip     it names the same letter in both orders: sign z1 = sign z2
  b        mean of (z1 + z2) / 2, nats: what a position is worth to it
  length   slope of s = (z1 - z2) / 2 on the difference of lengths, in its own
           standard deviations, with people's label beside it in the regression:
           what length is worth that people do not see in it
  itself   mean label of its own answers against others, less people's label

Kappa is Cohen's (1960), agreement beyond what two judges with these shares of
choices have by chance. Ties, of either, are left out of agreement and counted.
METHODS 8.4; Zheng et al. 2023, arXiv:2306.05685.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.evaluation import win_rate
from rlhf_jax.labelling import agreement as annotators

SHOWN = (
  *("label_mass", "label_entropy", "flip_rate", "first_share"),
  *("position_bias", "longer_share", "gold_longer_share", "length_slope"),
  *("gold_labels", "gold_ties", "ties", "agreement", "kappa"),
  *("own_pairs", "self_preference"),
)
LEAST = 3  # pairs that a slope is told of


def positions(first: np.ndarray, swapped: np.ndarray) -> dict[str, float]:
  """Returns what a position is worth to a judge.

  flip_rate, with flip_rate_low and flip_rate_high, a Wilson interval of 95 %:
  share of pairs of which both orders name one letter. first_share: questions
  whose answer is "A". position_bias, with its standard error: b, where there
  are logits.

  Args:
    first, swapped: [N] logits of "A"; +-inf for votes.
  """
  if not len(first):
    return {}
  is_flip = np.sign(first) * np.sign(swapped) > 0
  share = win_rate.proportion(is_flip)
  both = np.concatenate([first, swapped])
  found = {
    "flip_rate": share.value,
    "flip_rate_low": share.low,
    "flip_rate_high": share.high,
    "first_share": float(np.mean(0.5 * (1.0 + np.sign(both)))),
  }
  if np.all(np.isfinite(both)) and len(first) > 1:
    bias = win_rate.mean_with_error(0.5 * (first + swapped))
    found["position_bias"] = bias.value
    found["position_bias_standard_error"] = bias.standard_error
  return found


def agreement(labels: np.ndarray, gold: np.ndarray) -> dict[str, float]:
  """Returns how a judge agrees with people.

  agreement, with its interval; kappa; gold_ties, ties: pairs that people, and
  that the judge, leave undecided.

  Args:
    labels: [N] of the judge, that the first answer is better.
    gold: [N] of people; NaN where there is none.
  """
  is_known = np.isfinite(gold)
  labels, gold = labels[is_known], gold[is_known]
  if not len(gold):
    return {}
  is_tie, is_gold_tie = labels == 0.5, gold == 0.5
  found = {
    "gold_labels": len(gold),
    "gold_ties": int(np.sum(is_gold_tie)),
    "ties": int(np.sum(is_tie)),
  }
  decided = ~is_tie & ~is_gold_tie
  ours, theirs = labels[decided] > 0.5, gold[decided] > 0.5
  if len(ours):
    share = win_rate.proportion(ours == theirs)
    found |= {
      "agreement": share.value,
      "agreement_low": share.low,
      "agreement_high": share.high,
    }
    beyond = annotators.cohen_kappa(ours * 1.0, theirs * 1.0)
    if math.isfinite(beyond):  # else chance alone agrees always
      found["kappa"] = beyond
  return found


def lengths(
  s: np.ndarray, longer: np.ndarray, gold: np.ndarray
) -> dict[str, float]:
  """Returns what length is worth to a judge.

  longer_share: decided pairs of different lengths whose longer answer it
  prefers; gold_longer_share: that people prefer. length_slope, with its
  standard error: nats for a standard deviation of the difference; not of votes.

  Args:
    s: [N] logits that the first answer is better; +-inf for votes.
    longer: [N] characters of the first answer above the second.
    gold: [N] labels of people, NaN for none.
  """
  found = {}
  for name, sided in (("", np.sign(s)), ("gold_", np.sign(gold - 0.5))):
    is_told = (longer != 0) & np.isfinite(sided) & (sided != 0)
    if np.any(is_told):
      agrees = sided[is_told] == np.sign(longer[is_told])
      found[f"{name}longer_share"] = float(np.mean(agrees))
  if not np.all(np.isfinite(s)):  # votes have no size
    return found
  columns = [np.ones(len(s)), longer.astype(np.float64)]
  if np.all(np.isfinite(gold)) and np.std(gold) > 0.0:
    columns.append(gold - 0.5)
  rows, deviation = len(columns[0]), float(np.std(columns[1]))
  if rows < max(LEAST, len(columns) + 1) or not deviation:
    return found
  columns[1] = columns[1] / deviation
  x = np.stack(columns, axis=1)
  if np.linalg.matrix_rank(x) < x.shape[1]:
    return found
  solved = np.linalg.lstsq(x, s, rcond=None)[0]
  rest = s - x @ solved
  variance = float(rest @ rest) / (rows - x.shape[1])
  error = np.sqrt(variance * np.linalg.inv(x.T @ x)[1, 1])
  return found | {
    "length_slope": float(solved[1]),
    "length_slope_standard_error": float(error),
  }


def self_preference(
  labels: np.ndarray, gold: np.ndarray, is_own: np.ndarray
) -> dict[str, float]:
  """Returns what a judge's own answers gain that others do not see.

  own_pairs: pairs of which one answer is its own. self_preference, with its
  standard error: mean of the label of its own answer less people's label, or
  less 1/2 where people said nothing.

  Args:
    labels: [N] that the first answer is better.
    gold: [N] of people, NaN for none.
    is_own: [N, 2] bool, which answers are the judge's own.
  """
  is_one = is_own[:, 0] != is_own[:, 1]
  if np.sum(is_one) < 2:
    return {"own_pairs": int(np.sum(is_one))} if np.any(is_own) else {}
  first = is_own[is_one, 0]
  mine = np.where(first, labels[is_one], 1.0 - labels[is_one])
  theirs = gold[is_one]
  theirs = np.where(first, theirs, 1.0 - theirs)
  theirs = np.where(np.isfinite(theirs), theirs, 0.5)
  gain = win_rate.mean_with_error(mine - theirs)
  return {
    "own_pairs": int(np.sum(is_one)),
    "self_preference": gain.value,
    "self_preference_standard_error": gain.standard_error,
  }


def table(
  facts: Mapping[str, Any], before: Sequence[str] = ()
) -> list[list[str]]:
  """Returns rows of (name, value, how sure) of the numbers that are known.

  Args:
    facts: numbers by name.
    before: names that come before those of SHOWN.
  """
  rows = []
  for name in (*before, *SHOWN):
    if name not in facts:
      continue
    sure = ""
    if f"{name}_low" in facts:
      sides = (facts[f"{name}_{side}"] for side in ("low", "high"))
      sure = " to ".join(terminal.decimal(x, 3) for x in sides)
    elif f"{name}_standard_error" in facts:
      sure = f"+- {terminal.decimal(facts[f'{name}_standard_error'], 3)}"
    value = facts[name]
    is_count = isinstance(value, int)
    shown = f"{value:,}" if is_count else terminal.decimal(value, 3)
    rows.append([name.replace("_", " "), shown, sure])
  return rows
