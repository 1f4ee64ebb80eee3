"""What a judge of texts did, in numbers: counts, and its audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.algorithms import judgements
from rlhf_jax.labelling import judge_audit
from rlhf_jax.programs.judged_items import Item
from rlhf_jax.rewards.ai.judging import BOTH, Mark, Verdict
from rlhf_jax.rewards.ai.voices import FAILURES


def counts(told: list[Verdict | Mark]) -> dict[str, int]:
  """Returns how many items were judged, and why others were not."""
  found = {"items": len(told)}
  found["labelled"] = sum(not x.failure for x in told)
  return found | {
    name: sum(x.failure == name for x in told) for name in FAILURES
  }


def audit(
  items: Sequence[Item],
  rows: Sequence[dict[str, Any]],
  told: Sequence[Verdict | Mark],
  *,
  orders: str,
  own: str,
) -> dict[str, float]:
  """Returns what is known of a judge, over what it labelled.

  label_mass: the mean probability of the labels. label_entropy: nats. The
  others are those of labelling/judge_audit.py.

  Args:
    items: that were judged.
    rows: their records.
    told: what was said of each.
    orders: in which pairs were shown.
    own: what items call the judge, "" for nobody.
  """
  masses = [x.mass for x in told if not x.failure]
  if not masses:
    return {}
  found = {"label_mass": float(np.mean(masses))}
  pairs = [
    (item, row, x)
    for item, row, x in zip(items, rows, told, strict=True)
    if not x.failure and len(item.answers) == 2
  ]
  gold = np.array(
    [math.nan if i.label is None else i.label for i, _, _ in pairs], np.float64
  )
  if not pairs:
    return found
  sizes = np.array([[len(x) for x in i.answers] for i, _, _ in pairs])
  longer = sizes @ np.array([1, -1])
  if isinstance(pairs[0][2], Mark):
    scores = np.array([row["scores"] for _, row, _ in pairs]).reshape(-1, 2)
    votes = np.sign(scores[:, 0] - scores[:, 1])
    found |= judge_audit.agreement(0.5 * (1.0 + votes), gold)
    s = np.where(votes == 0.0, 0.0, np.copysign(np.inf, votes))
    return found | judge_audit.lengths(s, longer, gold)
  labels = np.array([x.label for _, _, x in pairs])
  first, swapped = (
    np.array([x.logit(n) for _, _, x in pairs]) for n in range(2)
  )
  s, _ = judgements.unswapped(first, swapped)
  found["label_entropy"] = float(np.mean(judgements.entropies(labels)))
  if orders == BOTH:
    found |= judge_audit.positions(first, swapped)
  found |= judge_audit.agreement(labels, gold)
  found |= judge_audit.lengths(s, longer, gold)
  if own:
    is_own = np.array(
      [[name == own for name in (i.policies or ("", ""))] for i, _, _ in pairs]
    )
    found |= judge_audit.self_preference(labels, gold, is_own)
  return found
