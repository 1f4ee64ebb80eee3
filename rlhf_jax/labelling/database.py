"""The file that holds a task: SQLite, in WAL mode, synced at each answer.

Nothing is ever overwritten that a person said: what is undone stays, marked.
Several processes may have it open; each change is one transaction.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.schema import UserError

FILE = "labels.sqlite"
BACKUPS = "backups"
KEPT_BACKUPS = 10
FORMAT = "1"
WAIT_SECONDS = 30.0  # for another process that writes

TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS guidelines (
  hash TEXT PRIMARY KEY, text TEXT NOT NULL, time TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
  number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, batch TEXT NOT NULL,
  kind TEXT NOT NULL, body TEXT NOT NULL, deviation REAL, probability REAL,
  chosen_by TEXT NOT NULL DEFAULT '', begun INTEGER NOT NULL DEFAULT 0,
  withdrawn INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS annotators (
  name TEXT PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new',
  is_paused INTEGER NOT NULL DEFAULT 0, turn INTEGER NOT NULL DEFAULT 0,
  fields TEXT NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS assignments (
  id TEXT PRIMARY KEY, annotator TEXT NOT NULL, item TEXT NOT NULL,
  kind TEXT NOT NULL, shown TEXT NOT NULL, guideline TEXT NOT NULL,
  state TEXT NOT NULL, opened REAL NOT NULL, turn INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_item ON assignments (item, state);
CREATE INDEX IF NOT EXISTS by_annotator
  ON assignments (annotator, item, state, kind);
CREATE INDEX IF NOT EXISTS by_state ON assignments (annotator, state, turn);
CREATE TABLE IF NOT EXISTS judgements (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, assignment TEXT NOT NULL,
  body TEXT NOT NULL, time TEXT NOT NULL, undone TEXT);
CREATE INDEX IF NOT EXISTS by_assignment ON judgements (assignment);
CREATE UNIQUE INDEX IF NOT EXISTS one_that_holds
  ON judgements (assignment) WHERE undone IS NULL;
CREATE TABLE IF NOT EXISTS adjudications (
  number INTEGER PRIMARY KEY, item TEXT NOT NULL, body TEXT NOT NULL,
  shown TEXT NOT NULL, time TEXT NOT NULL);
"""


def now() -> str:
  """Returns the time in UTC, ISO 8601, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Database:
  """An open file of tables; threads share it one after the other."""

  def __init__(self, folder: Path) -> None:
    self.path = folder / FILE
    self._lock = threading.RLock()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._db = sqlite3.connect(
        self.path,
        timeout=WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
      )
      self._db.row_factory = sqlite3.Row
      self._db.execute("PRAGMA journal_mode=WAL")
      self._db.execute("PRAGMA synchronous=FULL")
      self._db.executescript(TABLES)
    except (sqlite3.Error, OSError) as error:
      raise UserError(
        f"{self.path}: cannot be opened ({error}). Take a backup from "
        f"{folder / BACKUPS}, or choose another folder."
      ) from error
    with self.change() as change:
      change.execute(
        "INSERT OR IGNORE INTO facts VALUES ('format', ?)", (FORMAT,)
      )
    if self.fact("format") != FORMAT:
      raise UserError(
        f"{self.path}: has format {self.fact('format')}, not {FORMAT}. Open "
        "it with the version that wrote it, and export it there."
      )

  @contextlib.contextmanager
  def change(self) -> Iterator[sqlite3.Connection]:
    """Holds one transaction: all of it is on the disk after, or nothing."""
    with self._lock:
      self._db.execute("BEGIN IMMEDIATE")
      try:
        yield self._db
      except BaseException:
        self._db.execute("ROLLBACK")
        raise
      self._db.execute("COMMIT")

  def rows(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
    """Returns the rows of a query."""
    with self._lock:
      return self._db.execute(query, values).fetchall()

  def fact(self, name: str) -> str | None:
    """Returns a fact of the whole task."""
    found = self.rows("SELECT value FROM facts WHERE name = ?", (name,))
    return found[0]["value"] if found else None

  def set_fact(self, name: str, value: str) -> None:
    """Sets a fact of the whole task."""
    with self.change() as db:
      db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

  def backup(self) -> Path:
    """Writes a copy of the whole file beside it; keeps the newest ten."""
    folder = self.path.parent / BACKUPS
    folder.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")
    target = folder / f"labels-{stamp}.sqlite"
    part = target.with_suffix(".part")
    with contextlib.closing(sqlite3.connect(part)) as copy, self._lock:
      self._db.backup(copy)
    part.rename(target)
    for old in sorted(folder.glob("labels-*.sqlite"))[:-KEPT_BACKUPS]:
      old.unlink(missing_ok=True)
    return target

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._db.close()
