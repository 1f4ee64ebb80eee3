"""What a person answers, and takes back: inside one transaction each."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from rlhf_jax.labelling import assignment, database, verdicts
from rlhf_jax.labelling.task import Task
from rlhf_jax.schema import UserError

LONGEST_ID = 100  # characters
_LIVE = """
  SELECT judgements.id, judgements.assignment, assignments.kind
  FROM judgements JOIN assignments ON assignments.id = judgements.assignment
  WHERE annotator = ? AND undone IS NULL ORDER BY judgements.number DESC
  LIMIT 1"""


class TakenError(UserError):
  """The item has an answer of this person already, given elsewhere."""


def person(db: sqlite3.Connection, annotator: str) -> sqlite3.Row:
  """Returns the row of a person.

  Raises:
    UserError: nobody of this name.
  """
  row = db.execute(
    "SELECT * FROM annotators WHERE name = ?", (annotator,)
  ).fetchone()
  if row is None:
    raise UserError(f"annotator {annotator!r}: is not known. Add them first.")
  return row


def may_undo(db: sqlite3.Connection, row: sqlite3.Row) -> str:
  """Returns the id of the judgement that a person may take back, or ""."""
  live = db.execute(_LIVE, (row["name"],)).fetchone()
  if live is None:
    return ""
  is_over = live["kind"] == "qualification" and row["state"] != "new"
  return "" if is_over else live["id"]


def submit(
  db: sqlite3.Connection,
  annotator: str,
  assignment_id: str,
  told: Mapping[str, Any],
  submit_id: str,
  task: Task,
) -> bool:
  """Does what Store.submit says."""
  if not isinstance(submit_id, str) or not 1 <= len(submit_id) <= LONGEST_ID:
    raise UserError(f"id: must be a text of 1 to {LONGEST_ID} characters.")
  row = db.execute(
    "SELECT * FROM assignments WHERE id = ? AND annotator = ?",
    (assignment_id, annotator),
  ).fetchone()
  if row is None:
    raise UserError("assignment: is not yours.")
  known = db.execute(
    "SELECT assignment FROM judgements WHERE id = ?", (submit_id,)
  ).fetchone()
  if known is not None:
    if known["assignment"] != assignment_id:
      raise UserError("id: is that of another judgement.")
    return False
  if row["state"] in ("done", "skipped"):
    raise TakenError("You answered this item already, perhaps elsewhere.")
  found = verdicts.read(told, json.loads(row["shown"]), task)
  db.execute(
    "INSERT INTO judgements (id, assignment, body, time) VALUES (?, ?, ?, ?)",
    (
      *(submit_id, assignment_id),
      *(json.dumps(found, ensure_ascii=False), database.now()),
    ),
  )
  state = "skipped" if found.get("skipped") else "done"
  db.execute(
    "UPDATE assignments SET state = ? WHERE id = ?", (state, assignment_id)
  )
  if row["kind"] == "qualification":
    if assignment.is_qualification_over(db, annotator):
      qualify(db, annotator, task)
  return True


def undo(db: sqlite3.Connection, annotator: str, submit_id: str) -> bool:
  """Does what Store.undo says."""
  row = person(db, annotator)
  live = db.execute(_LIVE, (annotator,)).fetchone()
  if live is None or live["id"] != submit_id:
    undone = db.execute(
      "SELECT 1 FROM judgements JOIN assignments ON assignments.id = "
      "assignment WHERE judgements.id = ? AND annotator = ? AND undone IS "
      "NOT NULL",
      (submit_id, annotator),
    ).fetchone()
    if undone is not None:
      return False
    raise UserError("id: only the newest judgement can be undone.")
  if not may_undo(db, row):
    raise UserError("The qualification is over; it cannot be undone.")
  db.execute(
    "UPDATE judgements SET undone = ? WHERE id = ?", (database.now(), submit_id)
  )
  db.execute(
    "UPDATE assignments SET state = 'open', turn = ?, opened = ? WHERE id = ?",
    (assignment.next_turn(db, annotator), time.time(), live["assignment"]),
  )
  return True


def qualify(db: sqlite3.Connection, annotator: str, task: Task) -> None:
  """Decides whether a person labels, once all of the test is answered.

  A skipped item of it is wrong.
  """
  rows = db.execute(
    "SELECT judgements.body AS said, items.body FROM judgements JOIN "
    "assignments ON assignments.id = assignment JOIN items ON items.name = "
    "item WHERE annotator = ? AND undone IS NULL AND assignments.kind = "
    "'qualification'",
    (annotator,),
  ).fetchall()
  right = [
    verdicts.is_right(json.loads(x["said"]), json.loads(x["body"])["ranks"])
    for x in rows
  ]
  share = sum(right) / len(right) if right else 1.0
  state = "qualified" if share >= task.qualification_pass else "refused"
  db.execute(
    "UPDATE annotators SET state = ? WHERE name = ?", (state, annotator)
  )


def adjudicate(
  db: sqlite3.Connection, item: str, told: Mapping[str, Any], task: Task
) -> None:
  """Does what Store.adjudicate says."""
  row = db.execute("SELECT body FROM items WHERE name = ?", (item,)).fetchone()
  if row is None:
    raise UserError(f"item {item!r}: is not known.")
  order = list(range(len(json.loads(row["body"])["answers"])))
  found = verdicts.read(told, order, task)
  if found.get("skipped"):
    raise UserError("item: a decision cannot be skipped.")
  db.execute(
    "INSERT INTO adjudications (item, body, shown, time) VALUES (?, ?, ?, ?)",
    (
      *(item, json.dumps(found, ensure_ascii=False)),
      *(json.dumps(order), database.now()),
    ),
  )
