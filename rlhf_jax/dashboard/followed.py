"""Files that another process writes while they are read here.

A JSON lines file grows by whole lines, but a reader may see half of the last
one; a run that resumes replaces the file by a shorter one. So only what ends in
a newline is read, each line once, and a file that is another one is read anew.
Nothing here writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TAIL_BYTES = 256  # before the end of what was read: are they still there?
MOST_BYTES = 64 * 2**20  # read at once; the rest comes with the next call


class Followed:
  """The rows of a JSON lines file, as they come.

  damaged: lines that were no JSON object; they are counted and left out.
  """

  def __init__(self, path: Path) -> None:
    self.path = path
    self.damaged = 0
    self._file: tuple[int, int] | None = None
    self._offset = 0
    self._tail = b""

  def poll(self) -> tuple[bool, list[dict[str, Any]]]:
    """Returns (is_new, rows): whether it began anew, and what came since.

    A file that is not there has no rows.
    """
    try:
      with self.path.open("rb") as file:
        return self._read(file)
    except OSError:  # not there yet, or not any more
      had_rows = self._file is not None
      self._restart(None)
      return had_rows, []

  def _restart(self, file: tuple[int, int] | None) -> None:
    self._file, self._offset, self._tail, self.damaged = file, 0, b"", 0

  def _read(self, file: Any) -> tuple[bool, list[dict[str, Any]]]:
    state = os.fstat(file.fileno())
    is_new = self._is_another(file, state)
    if is_new:
      self._restart((state.st_dev, state.st_ino))
    file.seek(self._offset)
    content = file.read(MOST_BYTES)
    whole = content[: content.rfind(b"\n") + 1]
    self._offset += len(whole)
    self._tail = (self._tail + whole)[-TAIL_BYTES:]
    rows = []
    for line in whole.split(b"\n"):
      row = _object(line)
      if row is not None:
        rows.append(row)
      elif line.strip():
        self.damaged += 1
    return is_new, rows

  def _is_another(self, file: Any, state: os.stat_result) -> bool:
    if self._file != (state.st_dev, state.st_ino):
      return True
    if state.st_size < self._offset:
      return True
    file.seek(self._offset - len(self._tail))
    return file.read(len(self._tail)) != self._tail


class Document:
  """A JSON object in a file that is replaced as a whole, read when it changes.

  is_damaged: the file is there and holds none.
  """

  def __init__(self, path: Path) -> None:
    self.path = path
    self.is_damaged = False
    self._state: tuple[int, int, int] | None = None
    self._value: dict[str, Any] = {}

  def read(self) -> dict[str, Any]:
    """Returns the object; {} where there is none."""
    try:
      found = os.stat(self.path)
      state = found.st_ino, found.st_size, found.st_mtime_ns
      if state != self._state:
        value = _object(self.path.read_bytes())
        self.is_damaged = value is None
        self._value = {} if value is None else value
        self._state = state
    except OSError:
      self._value, self._state, self.is_damaged = {}, None, False
    return self._value


def _object(content: bytes) -> dict[str, Any] | None:
  """Returns the JSON object of a text, or None."""
  try:
    value = json.loads(content)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None
