"""Records of judgements that came from elsewhere, or from another store."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.data.ranking_parsers import parse_ranking
from rlhf_jax.data.records import RefusedExample
from rlhf_jax.labelling import database, items, results
from rlhf_jax.labelling.store import Store, check_name
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
  found = strict_json.read_rows(path, {"answers": list}, _REMEDY)
  rows = [_row(row, f"{path}:{n}") for n, row in enumerate(found, 1)]
  read = [_item(row, f"{path}:{n}") for n, row in enumerate(rows, 1)]
  by_batch: dict[str, list[items.Item]] = {}
  for row, item in zip(rows, read, strict=True):
    by_batch.setdefault(str(row.get("batch", "")), []).append(item)
  store.add_batches(by_batch)
  for row in rows:
    if row["annotator"] and not row.get("adjudicated"):
      store.add_annotator(row["annotator"], row.get("annotator_fields", {}))
  with store.database.change() as db:
    return sum(
      _insert(db, row, item)
      for row, item in zip(rows, read, strict=True)
      if row["annotator"]
    )


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns a record whose judgement is checked; its annotator is a text.

  "" where nobody judged.
  """
  name = row.get("annotator")
  if name is None or name == "":
    return dict(row) | {"annotator": ""}
  if not isinstance(name, (str, int)) or isinstance(name, bool):
    raise UserError(f"{where}: annotator {name!r}: must be a text.")
  if not isinstance(row.get("annotator_fields", {}), dict):
    raise UserError(f"{where}: 'annotator_fields' must be an object.")
  if not row.get("adjudicated"):
    try:
      check_name(str(name))
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
  _check_said(row, where)
  shown = row.get("shown", range(len(row["answers"])))
  return dict(row) | {"annotator": str(name), "shown": [int(x) for x in shown]}


def _check_said(row: Mapping[str, Any], where: str) -> None:
  """Raises UserError for a judgement that is none of these answers."""
  count = len(row["answers"])
  for name in ("ranks", "acceptable"):
    told = row.get(name)
    if told is not None and (not isinstance(told, list) or len(told) != count):
      raise UserError(f"{where}: {name!r} must have one entry an answer.")
  if not any(name in row for name in ("ranks", "choice", "skipped")):
    raise UserError(f"{where}: has neither 'ranks' nor 'choice'.")
  try:
    parse_ranking(dict(row), where)
  except RefusedExample:
    if not row.get("skipped"):
      raise


def _item(row: Mapping[str, Any], where: str) -> items.Item:
  """Returns the item of a record."""
  if not row["annotator"]:
    return items.read(row, where)
  return items.read(row | {"ranks": row.get("gold_ranks")}, where)


def _insert(db: Any, row: Mapping[str, Any], item: items.Item) -> bool:
  """Writes a judgement, if it is not there; says whether it did."""
  said = {name: row[name] for name in results.SAID if name in row}
  if said.get("skipped"):
    said.pop("ranks", None)
  body = json.dumps(said, ensure_ascii=False)
  shown = json.dumps(row["shown"])
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
