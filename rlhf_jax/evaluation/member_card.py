"""Outputs of one reward model beside each other: members, or objectives.

Of an ensemble: is each as good as they are together, and do they disagree where
they err (Coste et al. 2023, arXiv:2310.02743)? Of several objectives: how well
does each output predict the judgements by its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.evaluation.card_items import Item, Pairs, pairs_of
from rlhf_jax.evaluation.win_rate import proportion


def error_by_deviation(pairs: Pairs, deviation: np.ndarray) -> dict[str, Any]:
  """Returns whether members of an ensemble disagree where it errs.

  Args:
    pairs: of the combined scores.
    deviation: [P] over members, of their score differences.

  Returns:
    auc: the probability that a wrong pair has the larger deviation (0.5: it
      says nothing); right, wrong: mean deviations.
  """
  hit = pairs.difference * (pairs.labels - 0.5) > 0
  decided = pairs.labels != 0.5
  right, wrong = deviation[decided & hit], deviation[decided & ~hit]
  if not len(right) or not len(wrong):
    return {"auc": math.nan, "right": math.nan, "wrong": math.nan}
  order = np.sort(right)
  below = np.searchsorted(order, wrong, "left")
  at = np.searchsorted(order, wrong, "right") - below
  auc = float(np.mean((below + 0.5 * at) / len(order)))
  means = float(np.mean(right)), float(np.mean(wrong))
  return {"auc": auc, "right": means[0], "wrong": means[1]}


def members(
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  lengths: Sequence[np.ndarray],
  outputs: Sequence[np.ndarray],
  names: Sequence[str],
  usual: float | None = None,
) -> dict[str, Any]:
  """Returns a row for each output of a reward model that has several.

  Args:
    items, lengths: of `measure`.
    scores: combined.
    outputs: of each item, [K, M].
    names: [M].
    usual: mean deviation over members on the reference samples, if known.
  """
  rows = {}
  differences = []
  for m, name in enumerate(names):
    own = [x[:, m] for x in outputs]
    pairs = pairs_of(items, own, lengths)
    differences.append(pairs.difference)
    by_objective = pairs_of(
      items, own, lengths, lambda x, n=name: x.objectives.get(n, ())
    )
    row = {
      "accuracy": diagnostics.accuracy(pairs.difference, pairs.labels),
      "temperature": diagnostics.temperature(pairs.difference, pairs.labels),
      "own_objective": proportion(np.zeros(0)),
    }
    if len(by_objective.labels):
      row["own_objective"] = diagnostics.accuracy(
        by_objective.difference, by_objective.labels
      )
    rows[name] = row
  together = pairs_of(items, scores, lengths)
  deviation = np.std(np.stack(differences), axis=0)
  here = float(np.mean([np.std(x, axis=1).mean() for x in outputs]))
  return {
    "rows": rows,
    "deviation": error_by_deviation(together, deviation),
    "times_usual": here / usual if usual else math.nan,
  }
