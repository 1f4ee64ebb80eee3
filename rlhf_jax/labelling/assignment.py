"""Who labels what next.

A person gets, in this order: what they opened and did not answer; the items of
the qualification; now and then an item with a known answer, or an earlier one
in reversed order; what others began and that wants more people; the next one of
the task's order. Draws are made of the seed, so a restart changes none.

Items that others began come first so that all judgements of an item are there
early: agreement is known while people still work.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from typing import Any

from rlhf_jax.labelling.task import Task, draw, shuffled

CHECK_DISTANCE = 5  # judgements between an item and its repetition
# Of each item: how many people have it or judged it, and how many skipped it.
# A person counts once.
COUNTS = """
  SELECT item,
    COUNT(DISTINCT CASE WHEN state = 'done' OR (state = 'open'
      AND opened > :stale) THEN annotator END) AS taken,
    COUNT(DISTINCT CASE WHEN state = 'done' THEN annotator END) AS done,
    COUNT(DISTINCT CASE WHEN state = 'skipped' THEN annotator END) AS skipped
  FROM assignments WHERE kind = 'item' GROUP BY item"""
_FREE = f"""
  SELECT items.name, items.number, items.begun, items.probability,
    items.deviation
  FROM items LEFT JOIN ({COUNTS}) AS counts ON counts.item = items.name
  WHERE items.kind = 'item' AND items.withdrawn = 0
    AND COALESCE(counts.taken, 0) < :overlap
    AND COALESCE(counts.skipped, 0) < :overlap
    AND NOT EXISTS (SELECT 1 FROM assignments AS mine
      WHERE mine.item = items.name AND mine.annotator = :annotator
      AND mine.kind = 'item' AND mine.state IN ('done', 'skipped'))"""
_UNSEEN = """
  SELECT name FROM items WHERE kind = ? AND NOT EXISTS (
    SELECT 1 FROM assignments AS mine
    WHERE mine.item = items.name AND mine.annotator = ?)
  ORDER BY number"""


def stale_before(task: Task) -> float:
  """Returns the time before which an open item waits for nobody."""
  return time.time() - 60.0 * task.claim_minutes


def open_one(db: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
  """Returns what a person has open, the one that was undone last first."""
  return db.execute(
    "SELECT * FROM assignments WHERE annotator = ? AND state = 'open' "
    "ORDER BY turn DESC LIMIT 1",
    (annotator,),
  ).fetchone()


def release(db: sqlite3.Connection, annotator: str, task: Task) -> None:
  """Gives back what a person opened long ago and others judged meanwhile."""
  db.execute(
    f"""UPDATE assignments SET state = 'released'
    WHERE annotator = :annotator AND state = 'open' AND kind = 'item'
    AND opened <= :stale AND (
      item IN (SELECT item FROM ({COUNTS}) WHERE done >= :overlap)
      OR item IN (SELECT name FROM items WHERE withdrawn))""",
    {
      "annotator": annotator,
      "stale": stale_before(task),
      "overlap": task.overlap,
    },
  )


def choose(
  db: sqlite3.Connection, annotator: str, task: Task
) -> dict[str, Any] | None:
  """Returns the next item of a person: its name, kind, order; None if none.

  Args:
    db: in a transaction.
    annotator: who is qualified.
    task: of the store.
  """
  done = db.execute(
    "SELECT COUNT(*) FROM assignments WHERE annotator = ? AND kind <> "
    "'qualification'",
    (annotator,),
  ).fetchone()[0]
  chance = draw(task.seed, annotator, "extra", done)
  if chance < task.gold_share:
    unseen = db.execute(_UNSEEN, ("gold", annotator)).fetchall()
    if unseen:
      at = int(draw(task.seed, annotator, "gold", done) * len(unseen))
      return {"item": unseen[at]["name"], "kind": "gold"}
  elif chance < task.gold_share + task.check_share:
    earlier = _earlier(db, annotator)
    if earlier:
      at = int(draw(task.seed, annotator, "check", done) * len(earlier))
      shown = json.loads(earlier[at]["shown"])[::-1]
      return {"item": earlier[at]["item"], "kind": "check", "shown": shown}
  values = {
    "annotator": annotator,
    "overlap": task.overlap,
    "stale": stale_before(task),
  }
  free = db.execute(_FREE, values).fetchall()
  if not free:
    return None
  begun = [row for row in free if row["begun"]]
  if begun:
    first = min(begun, key=lambda row: row["begun"])
    return {"item": first["name"], "kind": "item"}
  return _first(db, free, task)


def qualification(db: sqlite3.Connection, annotator: str) -> str | None:
  """Returns the next item of a person's qualification, None after the last."""
  row = db.execute(_UNSEEN, ("qualification", annotator)).fetchone()
  return row["name"] if row else None


def is_qualification_over(db: sqlite3.Connection, annotator: str) -> bool:
  """Says whether a person answered every item of their qualification."""
  row = db.execute(
    "SELECT COUNT(*) FROM items WHERE kind = 'qualification' AND NOT EXISTS ("
    "SELECT 1 FROM assignments AS mine WHERE mine.item = items.name AND "
    "mine.annotator = ? AND mine.state IN ('done', 'skipped'))",
    (annotator,),
  ).fetchone()
  return row[0] == 0


def _earlier(db: sqlite3.Connection, annotator: str) -> list[sqlite3.Row]:
  """Returns what a person judged a while ago and has not seen twice."""
  rows = db.execute(
    "SELECT * FROM assignments WHERE annotator = ? AND kind = 'item' AND "
    "state = 'done' ORDER BY turn",
    (annotator,),
  ).fetchall()[:-CHECK_DISTANCE]
  twice = db.execute(
    "SELECT item FROM assignments WHERE annotator = ? AND kind = 'check'",
    (annotator,),
  ).fetchall()
  seen = {row["item"] for row in twice}
  return [row for row in rows if row["item"] not in seen]


def _first(
  db: sqlite3.Connection, free: list[sqlite3.Row], task: Task
) -> dict[str, Any]:
  """Returns the first of some items that nobody began, and which rule said."""
  begun = db.execute("SELECT MAX(begun) FROM items").fetchone()[0]
  is_drawn = draw(task.seed, "baseline", begun) < task.random_share
  rule = "random" if is_drawn else task.order
  keys = {
    "random": lambda row: draw(task.seed, "order", row["name"]),
    "given": lambda row: row["number"],
    "uncertainty": lambda row: abs(row["probability"] - 0.5),
    "disagreement": lambda row: -row["deviation"],
  }
  first = min(free, key=lambda row: (keys[rule](row), row["number"]))
  db.execute(
    "UPDATE items SET begun = ?, chosen_by = ? WHERE name = ?",
    (begun + 1, rule, first["name"]),
  )
  return {"item": first["name"], "kind": "item"}


def open_new(
  db: sqlite3.Connection,
  annotator: str,
  chosen: dict[str, Any],
  count: int,
  task: Task,
  guideline: str,
) -> sqlite3.Row:
  """Writes down who got which item in which order; returns the row.

  Args:
    db: in a transaction.
    annotator: who.
    chosen: of `choose`.
    count: K, answers of the item.
    task: of the store.
    guideline: hash of what stands beside the item.
  """
  order = shuffled(count, task.seed, annotator, chosen["item"], chosen["kind"])
  turn = next_turn(db, annotator)
  identity = secrets.token_hex(8)
  db.execute(
    "INSERT INTO assignments VALUES (?, ?, ?, ?, ?, ?, 'open', ?, ?)",
    (
      *(identity, annotator, chosen["item"], chosen["kind"]),
      *(json.dumps(chosen.get("shown", order)), guideline, time.time(), turn),
    ),
  )
  return db.execute(
    "SELECT * FROM assignments WHERE id = ?", (identity,)
  ).fetchone()


def stand_beside(
  db: sqlite3.Connection, row: sqlite3.Row, guideline: str
) -> None:
  """Writes down which guidelines stand beside an item that is still open."""
  if row["guideline"] != guideline:
    db.execute(
      "UPDATE assignments SET guideline = ? WHERE id = ?",
      (guideline, row["id"]),
    )


def next_turn(db: sqlite3.Connection, annotator: str) -> int:
  """Returns the next number of what a person opens; counts on."""
  db.execute(
    "UPDATE annotators SET turn = turn + 1 WHERE name = ?", (annotator,)
  )
  row = db.execute("SELECT turn FROM annotators WHERE name = ?", (annotator,))
  return row.fetchone()[0]
