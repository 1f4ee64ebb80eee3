"""What of a summary is not as it should be: (level, message), with a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.win_rate import Proportion
from rlhf_jax.labelling.agreement import MIN_AGREEMENT
from rlhf_jax.labelling.judgements import Judgement

MIN_GOLD = 10  # judgements of gold items that say something of an annotator
MIN_POSITION_P = 0.01
MAX_GAP = 0.10  # agreement among themselves above that across groups
MIN_PAIRS = 50  # of votes across groups, that say something
MAX_INTRANSITIVE = 0.10
FAST = 1 / 3  # of the median time of all


def warnings(
  facts: Mapping[str, Any], given: Sequence[Judgement]
) -> list[tuple[str, str]]:
  """Returns (level, message) of what is not as it should be.

  Args:
    facts: of `summarise`.
    given: judgements by annotators.
  """
  found: list[tuple[str, str]] = []
  for name, row in facts["objectives"].items():
    found += _of_objective(name, row)
  if not any(x.shown for x in given):
    found.append(
      (
        "note",
        "no record has a field 'shown', the order in which answers stood: a "
        "bias to the first one cannot be seen, and agreement may be made of "
        "it. Show answers in a random order and write it down.",
      )
    )
  for count, position in facts["position"].items():
    if position.p_value < MIN_POSITION_P:
      found.append(
        (
          "warn",
          f"position bias: of {count} answers the one that stood first was "
          f"called the best in {position.share.value:.1%} of "
          f"{position.share.count} (expected {position.expected:.1%}, "
          f"p={position.p_value:.2g}). Show answers in a random order.",
        )
      )
  for row in facts["by_annotator"]:
    found += _of_annotator(row, _median(facts["by_annotator"]))
  for field, rows in facts["groups"].items():
    for row in rows:
      gap = min(row["within"], row["others"]) - row["between"]
      if gap > MAX_GAP and row["pairs"] >= MIN_PAIRS:
        found.append(
          (
            "warn",
            f"{field}={row['value']}: these annotators agree among themselves "
            f"in {row['within']:.1%} and others among themselves in "
            f"{row['others']:.1%}, but only in {row['between']:.1%} across: "
            "they want different things. Train and report by group.",
          )
        )
  is_gold = any(x.is_gold for x in given)
  if is_gold and not facts["gold"]:
    found.append(
      (
        "note",
        "there are judgements of gold items, and nothing says what is right. "
        "Give records with 'gold': true and no annotator, or --gold=FILE.",
      )
    )
  return found


def _median(rows: Sequence[Mapping[str, Any]]) -> float:
  seconds = [x["seconds"] for x in rows if not math.isnan(x["seconds"])]
  return float(np.median(seconds)) if seconds else math.nan


def _of_objective(name: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
  if not row["shared_units"]:
    return [
      (
        "warn",
        f"{name}: no two annotators judged the same two answers, so nothing "
        "is known of their agreement. Let several people judge some items.",
      )
    ]
  found = []
  raw = row["raw"]
  if raw.value < MIN_AGREEMENT:
    found.append(
      (
        "warn",
        f"{name}: two annotators agree in {raw.value:.1%} of "
        f"{raw.count} pairs of answers, below {MIN_AGREEMENT:.0%}. A reward "
        "model cannot be surer than they are: sharpen the guidelines, train "
        "the annotators, or drop the items that divide them.",
      )
    )
  elif row["alpha"].value < 0.4 and raw.value >= 0.8:
    found.append(
      (
        "note",
        f"{name}: agreement is {raw.value:.1%} and alpha "
        f"{row['alpha'].value:.2f}: nearly all votes are the same, so most of "
        "it is chance.",
      )
    )
  if row["intransitive"] > MAX_INTRANSITIVE:
    found.append(
      (
        "warn",
        f"{name}: {row['intransitive']:.1%} of {row['triads']} triads of "
        "single annotators run in a circle (25% by chance). Look at who.",
      )
    )
  return found


def _of_annotator(
  row: Mapping[str, Any], median: float
) -> list[tuple[str, str]]:
  found = []
  gold: Proportion = row["gold"]
  if gold.count >= MIN_GOLD and gold.value < MIN_AGREEMENT:
    found.append(
      (
        "warn",
        f"{row['name']}: {gold.value:.1%} of {gold.count} votes on gold items "
        f"are right, below {MIN_AGREEMENT:.0%}. Talk to this annotator.",
      )
    )
  if row["first"].count >= MIN_GOLD and row["first_p"] < MIN_POSITION_P:
    found.append(
      (
        "note",
        f"{row['name']}: prefers what stands first in "
        f"{row['first'].value:.1%} of {row['first'].count} "
        f"(p={row['first_p']:.2g}).",
      )
    )
  if row["seconds"] < FAST * median:
    found.append(
      (
        "note",
        f"{row['name']}: takes {row['seconds']:.0f} s for an item, where the "
        f"median annotator takes {median:.0f} s.",
      )
    )
  return found
