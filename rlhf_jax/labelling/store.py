"""The store of a labelling task: items in, who gets what, judgements out.

    store = Store(folder, Task(overlap=2, dimensions=("helpful", "harmless")))
    store.add_items([{"prompt": ..., "answers": [...]}, ...], batch="round 1")
    store.add_annotator("anna")
    turn = store.next_item("anna")       # answers in an order of anna's own
    store.submit("anna", turn.assignment, {"ranks": [0, 1]}, "an id")
    store.records(batch="round 1")       # lines of the format "ranking"

A page and a simulated annotator use it alike. All of it is on the disk when a
call returns; a killed process goes on by opening the folder again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.labelling import (
  answering,
  assignment,
  database,
  items,
  results,
  verdicts,
)
from rlhf_jax.labelling.answering import TakenError as TakenError
from rlhf_jax.labelling.items import Item
from rlhf_jax.labelling.task import NEEDS, Task
from rlhf_jax.schema import FieldError, UserError

BACKUP_EVERY = 100  # judgements
LONGEST_NAME = 80  # characters


@dataclasses.dataclass(frozen=True)
class Turn:
  """What a person is to do now.

  state: "item", or why there is none: "done" (nothing is left for them),
    "paused", "refused" (they did not qualify).
  assignment: id that `submit` wants.
  kind: of items.KINDS, or "check" for an earlier item again. Not for the eyes
    of the person.
  prompt, answers: as they are to be shown, left to right.
  shown: answer that stands at each place.
  pictures: SVG of each answer, left to right; () for none.
  language: of the item, "" where it is not said.
  previous: what the person told before they undid it, by place; or None.
  last: id of their newest judgement, which `undo` takes back; "" for none.
  """

  state: str
  assignment: str = ""
  kind: str = ""
  item: str = ""
  prompt: Any = ""
  answers: tuple[Any, ...] = ()
  shown: tuple[int, ...] = ()
  pictures: tuple[str, ...] = ()
  language: str = ""
  previous: Mapping[str, Any] | None = None
  last: str = ""


class Store:
  """A folder with a labelling task in it; threads and processes may share it.

  Args:
    folder: made where it is not there.
    task: what is asked; None for what the store says, or the defaults.

  Raises:
    UserError: the folder cannot be used.
  """

  def __init__(self, folder: str | Path, task: Task | None = None) -> None:
    self.folder = Path(folder).expanduser()
    self.database = database.Database(self.folder)
    kept = self.database.fact("task")
    if task is None:
      task = Task(**json.loads(kept)) if kept else Task()
    self.set_task(task)

  def __enter__(self) -> Store:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file; nothing is lost without it."""
    self.database.close()

  @property
  def task(self) -> Task:
    """What is asked."""
    return self._task

  def set_task(self, task: Task) -> None:
    """Asks otherwise from now on.

    Raises:
      FieldError: items lack the field that its order reads.
    """
    if task.order in NEEDS:
      field = NEEDS[task.order]
      missing = self.database.rows(
        f"SELECT name FROM items WHERE kind = 'item' AND {field} IS NULL"
      )
      if missing:
        raise FieldError(_lacks(task.order, field, missing[0]["name"]))
    self._task = task
    self.database.set_fact("task", json.dumps(dataclasses.asdict(task)))

  def add_items(
    self, rows: Iterable[Item | Mapping[str, Any]], batch: str = ""
  ) -> int:
    """Puts items before people; returns how many are new.

    An item that is there already, with the same texts, is left; its deviation
    and probability become the new ones. So the call may be repeated.

    Args:
      rows: lines of items (labelling/items.py).
      batch: a name that records, progress and `withdraw` select by.

    Raises:
      UserError: a line that is no item, another text under a known name, a
        missing field that the task's order reads. Nothing is added then.
    """
    found = [
      row if isinstance(row, Item) else items.read(row, f"items[{number}]")
      for number, row in enumerate(rows)
    ]
    return self.add_batches({batch: found})

  def add_batches(self, batches: Mapping[str, Iterable[Item]]) -> int:
    """Does what `add_items` does for several batches: all of them or none."""
    field = NEEDS.get(self.task.order)
    found = [(batch, item) for batch, own in batches.items() for item in own]
    with self.database.change() as db:
      known = {x["name"]: x["body"] for x in db.execute("SELECT * FROM items")}
      count = len(known)
      for batch, item in found:
        if field and item.kind == "item" and getattr(item, field) is None:
          raise FieldError(_lacks(self.task.order, field, item.name))
        body = item.body()
        if known.setdefault(item.name, body) != body:
          raise UserError(
            f"item {item.name!r}: other texts or fields are there under this "
            "name. Give each item a name of its own."
          )
        db.execute(
          "INSERT INTO items (name, batch, kind, body, deviation, probability) "
          "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
          "deviation = COALESCE(excluded.deviation, deviation), "
          "probability = COALESCE(excluded.probability, probability)",
          (
            *(item.name, batch, item.kind, body),
            *(item.deviation, item.probability),
          ),
        )
    return len(known) - count

  def withdraw(self, batch: str) -> None:
    """Gives the items of a batch to nobody any more; judgements stay."""
    with self.database.change() as db:
      db.execute("UPDATE items SET withdrawn = 1 WHERE batch = ?", (batch,))

  def set_guidelines(self, text: str) -> str:
    """Puts guidelines beside the task; returns their version, a hash."""
    version = hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""
    with self.database.change() as db:
      db.execute(
        "INSERT OR IGNORE INTO guidelines VALUES (?, ?, ?)",
        (version, text, database.now()),
      )
      db.execute(
        "INSERT OR REPLACE INTO facts VALUES ('guideline', ?)", (version,)
      )
    return version

  def guidelines(self) -> tuple[str, str]:
    """Returns (version, text) of the guidelines; ("", "") for none."""
    rows = self.database.rows(
      "SELECT hash, text FROM guidelines JOIN facts ON value = hash WHERE "
      "name = 'guideline'"
    )
    return (rows[0]["hash"], rows[0]["text"]) if rows else ("", "")

  def add_annotator(self, name: str, fields: Mapping[str, Any] = {}) -> None:  # noqa: B006 (never changed)
    """Lets a person label; once more changes nothing but their fields.

    Args:
      name: in every record of theirs.
      fields: of the person, such as a language, that records carry.
    """
    check_name(name)
    with self.database.change() as db:
      db.execute(
        "INSERT INTO annotators (name, fields) VALUES (?, ?) ON CONFLICT (name)"
        " DO UPDATE SET fields = excluded.fields WHERE excluded.fields <> '{}'",
        (name, json.dumps(dict(fields), ensure_ascii=False, sort_keys=True)),
      )

  def annotators(self) -> list[str]:
    """Returns the names of all people, in the order they were added."""
    rows = self.database.rows("SELECT name FROM annotators ORDER BY rowid")
    return [row["name"] for row in rows]

  def pause(self, is_paused: bool, annotator: str | None = None) -> None:
    """Stops giving items, to one person or to all; or goes on."""
    if annotator is None:
      self.database.set_fact("paused", str(int(is_paused)))
      return
    with self.database.change() as db:
      done = db.execute(
        "UPDATE annotators SET is_paused = ? WHERE name = ?",
        (int(is_paused), annotator),
      )
      if not done.rowcount:
        raise UserError(f"annotator {annotator!r}: is not known.")

  def is_paused(self) -> bool:
    """Says whether nobody gets items."""
    return self.database.fact("paused") == "1"

  def next_item(self, annotator: str) -> Turn:
    """Returns what a person is to do now; the same until they answer.

    Raises:
      UserError: nobody of this name.
    """
    guideline = self.guidelines()[0]
    is_paused = self.is_paused()
    with self.database.change() as db:
      person = answering.person(db, annotator)
      last = answering.may_undo(db, person)
      if is_paused or person["is_paused"]:
        return Turn("paused", last=last)
      if person["state"] == "refused":
        return Turn("refused")
      assignment.release(db, annotator, self.task)
      row = assignment.open_one(db, annotator)
      if row is None:
        chosen = self._chosen(db, person)
        if chosen is None:
          return Turn("done", last=last)
        body = _body(db, chosen["item"])
        row = assignment.open_new(
          db, annotator, chosen, len(body["answers"]), self.task, guideline
        )
      else:  # the page shows the guidelines of now beside it
        assignment.stand_beside(db, row, guideline)
      return self._turn(db, row, last)

  def _chosen(
    self, db: sqlite3.Connection, person: sqlite3.Row
  ) -> dict[str, Any] | None:
    if person["state"] == "new":
      name = assignment.qualification(db, person["name"])
      if name is not None:
        return {"item": name, "kind": "qualification"}
      answering.qualify(db, person["name"], self.task)  # there is no test
    return assignment.choose(db, person["name"], self.task)

  def _turn(self, db: sqlite3.Connection, row: sqlite3.Row, last: str) -> Turn:
    body, shown = _body(db, row["item"]), json.loads(row["shown"])
    drawn = body.get("pictures", ())
    undone = db.execute(
      "SELECT body FROM judgements WHERE assignment = ? ORDER BY number DESC "
      "LIMIT 1",
      (row["id"],),
    ).fetchone()
    previous = None
    if undone is not None:
      previous = verdicts.by_place(json.loads(undone["body"]), shown)
    return Turn(
      state="item",
      assignment=row["id"],
      kind=row["kind"],
      item=row["item"],
      prompt=body["prompt"],
      answers=tuple(body["answers"][i] for i in shown),
      shown=tuple(shown),
      pictures=tuple(drawn[i] for i in shown) if drawn else (),
      language=str(body["fields"].get("language", "")),
      previous=previous,
      last=last,
    )

  def submit(
    self,
    annotator: str,
    assignment_id: str,
    told: Mapping[str, Any],
    submit_id: str,
  ) -> bool:
    """Keeps a judgement; says whether it is a new one.

    Args:
      annotator: who.
      assignment_id: of the turn.
      told: what was said, by place (verdicts.read).
      submit_id: made once for each answer that a person gives; the same one
        again, after a lost reply or a double click, changes nothing.

    Raises:
      TakenError: this person answered the item already, under another id.
      UserError: what was asked and is not told.
    """
    if not isinstance(submit_id, str) or not 1 <= len(submit_id) <= 100:
      raise UserError("id: must be a text of 1 to 100 characters.")
    with self.database.change() as db:
      is_new = answering.submit(
        db, annotator, assignment_id, told, submit_id, self.task
      )
      count = db.execute("SELECT COUNT(*) FROM judgements").fetchone()[0]
    if is_new and count % BACKUP_EVERY == 0:
      self.database.backup()
    return is_new

  def undo(self, annotator: str, submit_id: str) -> bool:
    """Takes a person's newest judgement back; says whether it did.

    The item comes again, with what was told. Undone twice, as by a double
    click, it is undone once.

    Raises:
      UserError: it is not their newest one, or decided their qualification.
    """
    with self.database.change() as db:
      return answering.undo(db, annotator, submit_id)

  def records(
    self,
    batch: str | None = None,
    kinds: Sequence[str] = ("item",),
    *,
    with_skips: bool = False,
    is_adjudicated: bool = True,
  ) -> list[dict[str, Any]]:
    """Returns judgements that hold, as records of the format "ranking".

    Args:
      batch: only of it; None for all.
      kinds: of "item", "gold", "check", "qualification".
      with_skips: also what people skipped, without ranks.
      is_adjudicated: the decision about a disputed item stands instead of the
        judgements that it decides between.
    """
    return results.records(
      self.database,
      batch,
      kinds,
      with_skips=with_skips,
      is_adjudicated=is_adjudicated,
    )

  def progress(self, batch: str | None = None) -> dict[str, int]:
    """Returns counts: items, begun, closed, judgements, skipped, wanted.

    An item is closed when `overlap` people judged it, or `overlap` people
    skipped it, or some skipped it and nobody is left who has not said
    something of it, or it was withdrawn.
    """
    return results.progress(self.database, self.task, batch)

  def adjudicate(self, item: str, told: Mapping[str, Any]) -> None:
    """Decides an item on which people disagree; the newest decision holds.

    Args:
      item: its name.
      told: as `submit` takes it, with the answers in their own order.

    Raises:
      UserError: there is no such item, or what was asked is not told.
    """
    with self.database.change() as db:
      answering.adjudicate(db, item, told, self.task)

  def export(self, path: str | Path) -> int:
    """Writes every judgement that holds to a .jsonl; returns how many."""
    return results.export(self.database, Path(path))

  def backup(self) -> Path:
    """Writes a copy of the store into its folder of backups."""
    return self.database.backup()


def check_name(name: str) -> None:
  """Raises UserError for what cannot be the name of a person."""
  if name == results.ADJUDICATOR:
    raise UserError(f"annotator {name!r}: is the name of whoever decides.")
  if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
    raise UserError(
      f"annotator {name!r:.100}: must be a name of 1 to {LONGEST_NAME} "
      "characters on one line."
    )


def _lacks(order: str, field: str, name: str) -> str:
  return (
    f"order={order!r}: item {name!r} has no {field!r}, which says what comes "
    "first. Put it into the items, or set order='random'."
  )


def _body(db: sqlite3.Connection, name: str) -> dict[str, Any]:
  row = db.execute("SELECT body FROM items WHERE name = ?", (name,)).fetchone()
  return json.loads(row["body"])
