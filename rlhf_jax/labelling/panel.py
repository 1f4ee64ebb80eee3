"""How far people agree, while they work: the one place that asks for it."""

from __future__ import annotations

import collections
import itertools
from typing import Any

from rlhf_jax.labelling import verdicts
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
  for record in store.records(is_adjudicated=False):
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
    "numbers": [("raw agreement", text)],
    "warnings": warnings,
  }
