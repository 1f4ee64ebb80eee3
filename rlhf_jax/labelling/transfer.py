"""Records of judgements that came from elsewhere, or from another store."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.labelling import database, items, results
from rlhf_jax.labelling.store import Store
from rlhf_jax.schema import UserError, absence

_REMEDY = "Correct the file; nothing was read."


def import_records(store: Store, path: str | Path) -> int:
  """Reads records of the format "ranking"; returns how many are new.

  Items, people and judgements come as they are; what is there already is left,
  so the call may be repeated. A record without an annotator is an item (of gold
  or qualification, if it says so). All of the file is read, or none of it.

  Raises:
    UserError: names the line that is no record.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path}: {absence(path)}.")
  rows = strict_json.read_rows(path, {"answers": list}, _REMEDY)
  read = [_read(row, f"{path}:{n}") for n, row in enumerate(rows, 1)]
  by_batch: dict[str, list[items.Item]] = {}
  for row, item in zip(rows, read, strict=True):
    by_batch.setdefault(str(row.get("batch", "")), []).append(item)
  for batch, some in by_batch.items():
    store.add_items(some, batch)
  for row in rows:
    name = row.get("annotator")
    if name and not row.get("adjudicated"):
      store.add_annotator(name, row.get("annotator_fields", {}))
  with store.database.change() as db:
    return sum(
      _insert(db, row, item)
      for row, item in zip(rows, read, strict=True)
      if row.get("annotator")
    )


def _read(row: Mapping[str, Any], where: str) -> items.Item:
  """Returns the item of a record, checked with what was said of it."""
  if not row.get("annotator"):
    return items.read(row, where)
  count = len(row["answers"])
  for name in ("ranks", "acceptable"):
    told = row.get(name)
    if told is not None and (not isinstance(told, list) or len(told) != count):
      raise UserError(f"{where}: {name!r} must have one entry an answer.")
  if not any(name in row for name in ("ranks", "choice", "skipped")):
    raise UserError(f"{where}: has neither 'ranks' nor 'choice'.")
  shown = row.get("shown", list(range(count)))
  if not isinstance(shown, list) or sorted(map(str, shown)) != sorted(
    map(str, range(count))
  ):
    raise UserError(f"{where}: 'shown' must name each answer once.")
  return items.read(row | {"ranks": row.get("gold_ranks")}, where)


def _insert(db: Any, row: Mapping[str, Any], item: items.Item) -> bool:
  """Writes a judgement, if it is not there; says whether it did."""
  said = {name: row[name] for name in results.SAID if name in row}
  if said.get("skipped"):
    said.pop("ranks", None)
  body = json.dumps(said, ensure_ascii=False)
  shown = json.dumps(row.get("shown", list(range(len(item.answers)))))
  when = str(row.get("time", database.now()))
  if row.get("adjudicated"):
    known = db.execute(
      "SELECT 1 FROM adjudications WHERE item = ? AND time = ? AND body = ?",
      (item.name, when, body),
    ).fetchone()
    if known is None:
      db.execute(
        "INSERT INTO adjudications (item, body, shown, time) VALUES (?,?,?,?)",
        (item.name, body, shown, when),
      )
    return known is None
  text = json.dumps([item.name, row["annotator"], said, row.get("time")])
  identity = row.get("judgement", hashlib.sha256(text.encode()).hexdigest())
  if db.execute(
    "SELECT 1 FROM judgements WHERE id = ?", (identity,)
  ).fetchone():
    return False
  kinds = [kind for kind in results.KINDS[1:] if row.get(kind)]
  assignment = secrets.token_hex(8)
  db.execute(
    "INSERT INTO assignments VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
    (
      *(assignment, row["annotator"], item.name),
      *("check" if "check" in kinds else kinds[0] if kinds else "item", shown),
      *(row.get("guideline", ""), "skipped" if row.get("skipped") else "done"),
    ),
  )
  db.execute(
    "UPDATE items SET chosen_by = ? WHERE name = ? AND chosen_by = ''",
    (row.get("chosen_by", ""), item.name),
  )
  db.execute(
    "INSERT INTO judgements (id, assignment, body, time) VALUES (?, ?, ?, ?)",
    (identity, assignment, body, when),
  )
  return True
