"""How far people agree, while they work: the one place that asks for it."""

from __future__ import annotations

import collections
import itertools
import math
from typing import Any

from rlhf_jax.labelling import agreement as statistics
from rlhf_jax.labelling import judgements, summary, verdicts
from rlhf_jax.labelling.store import Store

LEAST = 0.70  # raw agreement below it is a warning


def agreement(store: Store) -> dict[str, Any]:
  """Returns what the admin sees of agreement.

  Two people agree on two answers where both prefer the same one, or both call
  them equal.

  Returns:
    raw: share, None where nobody judged the same two answers; pairs: of
    judgements that it rests on; numbers: (name, text) of all that is known;
    warnings: sentences.
  """
  by_item = collections.defaultdict(list)
  records = store.records(is_adjudicated=False)
  for record in records:
    ranks = verdicts.ranks_of(record, len(record["answers"]))
    by_item[record["item"]].append(verdicts.signs(ranks))
  same = [
    one[pair] == other[pair]
    for said in by_item.values()
    for one, other in itertools.combinations(said, 2)
    for pair in one.keys() & other.keys()
  ]
  raw = sum(same) / len(same) if same else None
  text = "nobody judged the same two answers yet"
  if raw is not None:
    text = f"{raw:.1%} of {len(same)} pairs of judgements"
  warnings = []
  if raw is not None and raw < LEAST:
    warnings.append(
      f"People agree in {raw:.1%}, below {LEAST:.0%}: read the disputed items, "
      "and sharpen the guidelines."
    )
  return {
    "raw": raw,
    "pairs": len(same),
    "numbers": [("raw agreement", text), *_further(records)],
    "warnings": warnings,
  }


def _further(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
  """Returns alpha, position and the agreement of each with the others.

  Args:
    records: of judgements that hold.
  """
  found, _ = judgements.of_records(
    (f"judgement {record.get('judgement')}", record) for record in records
  )
  if not found:
    return []
  votes = judgements.votes(found, judgements.objectives(found)[0])
  table = votes.table
  alpha = statistics.krippendorff_alpha(table)
  rows = []
  if not math.isnan(alpha):
    rows.append(("Krippendorff's alpha", f"{alpha:.2f}; 0 is chance"))
  for count, position in summary.positions(found).items():
    share = position.share
    rows.append(
      (
        f"first of {count} called best",
        f"{share.value:.1%} of {share.count}; {position.expected:.0%} without "
        f"a bias, p={position.p_value:.2g}",
      )
    )
  for number, name in enumerate(votes.annotators):
    others = statistics.majority(table, without=number)
    same = statistics.agreement_with(table[number], others)
    if same.count:
      text = f"{same.value:.1%} of {same.count}"
      rows.append((f"{name} with most of the others", text))
  return rows
