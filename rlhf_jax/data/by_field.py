"""Records by the value of a field, such as their language.

What is told of each value by itself: counts, shares of the data, held-out
losses, scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import mixture
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError


def value_of(record: Any, field: str) -> str:
  """Returns the value of a record's field, as text.

  Raises:
    DataError: the record has no such field.
  """
  fields = getattr(record, "fields", {})
  if field not in fields:
    raise DataError(
      f"{record.where}: no field {field!r}, which data.by or data.only asks "
      "for. Add it to each record, or set by='' and only=''."
    )
  return str(fields[field])


def grouped(found: Sequence[Any], field: str) -> dict[str, list]:
  """Returns value of a field -> records, values in alphabetical order."""
  groups: dict[str, list] = {}
  for record in found:
    groups.setdefault(value_of(record, field), []).append(record)
  return dict(sorted(groups.items()))


def only(parts: list[list], data: Data, dropped: Counter) -> list[list]:
  """Returns the parts with the records that data.only asks for, and counts."""
  field, _, value = data.only.partition("=")
  kept = [[r for r in part if value_of(r, field) == value] for part in parts]
  count = sum(map(len, parts)) - sum(map(len, kept))
  if count:
    dropped[f"without {data.only}"] += count
  return kept


def by_value(parts: list[list], data: Data) -> tuple[list[str], list[list]]:
  """Returns the values of data.by that have shares, and their records.

  Raises:
    DataError: a value without a share.
  """
  given = data.weights if data.weights else data.repeats
  found: dict[str, list] = {name: [] for name in mixture.named(given)}
  for record in (record for part in parts for record in part):
    value = value_of(record, data.by)
    if value not in found:
      raise DataError(
        f"{record.where}: {data.by}={value!r} has no share in {given!r}. Add "
        f"{value}:1, or leave these records out with data.only."
      )
    found[value].append(record)
  return list(found), list(found.values())
