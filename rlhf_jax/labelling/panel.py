"""How far people agree, while they work: the one place that asks for it."""

from __future__ import annotations

import collections
import itertools
import math
import time
from typing import Any

from rlhf_jax.labelling import agreement as statistics
from rlhf_jax.labelling import judgements, summary, verdicts
from rlhf_jax.labelling.store import Store
from rlhf_jax.schema import UserError

LEAST = 0.70  # raw agreement below it is a warning
MOST_SHARE = 0.1  # of the time that goes by, spent on keeping it up to date


class Panel:
  """The agreement of a store, computed again when there is more to say.

  It takes long with many judgements, and the page asks every few seconds: an
  answer stands until the time it took is a small share of the time since.
  """

  def __init__(self, store: Store) -> None:
    self._store = store
    self._known: dict[str, Any] | None = None
    self._count, self._at, self._seconds = (0, 0), 0.0, 0.0

  def __call__(self) -> dict[str, Any]:
    """Returns what `agreement` does, perhaps of a moment ago."""
    [row] = self._store.database.rows(
      "SELECT COUNT(*), COUNT(undone) FROM judgements"
    )
    start = time.monotonic()
    is_late = (start - self._at) * MOST_SHARE >= self._seconds
    if self._known is None or (tuple(row) != self._count and is_late):
      self._known, self._count = agreement(self._store), tuple(row)
      self._at = time.monotonic()
      self._seconds = self._at - start
    return self._known


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
  numbers = [("raw agreement", text)]
  try:
    numbers += _further(records)
  except UserError as error:  # the admin still sees the rest
    warnings.append(str(error))
  return {
    "raw": raw,
    "pairs": len(same),
    "numbers": numbers,
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
