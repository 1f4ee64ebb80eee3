"""Replies on disk, so that no question is paid for twice.

One JSON object a line, written as soon as a reply is there; the key is a digest
of all that the reply depends on: who answers, the texts, the labels, how. A
failure of the net is not kept. The last line may be torn by a kill, and is then
taken away. One process writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.rewards.ai.voices import FAILED, Reply
from rlhf_jax.schema import UserError

_REMEDY = "Correct the line, or delete the file to ask again."
_FIELDS = ("failure", "prompt_tokens", "answer_tokens", "has_ended")


def key_of(**parts: Any) -> str:
  """Returns the digest of what a reply depends on, JSON values by name."""
  text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
  """Replies by key."""

  def __init__(self, path: str | Path | None):
    """Reads what is there.

    Args:
      path: of the file, made when there is something to write; None: in
        memory only.

    Raises:
      UserError: a line that is no reply, but for a torn last one.
    """
    self.path = None if path is None else Path(path).expanduser()
    self._replies: dict[str, Reply] = {}
    self._file: Any = None
    if self.path is not None and self.path.is_file():
      self._load()

  def _load(self) -> None:
    content = self.path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
      try:
        row = strict_json.loads(strict_json.decode(line))
        self._replies[row["key"]] = _reply(row)
      except (ValueError, LookupError, TypeError) as error:
        raise UserError(
          f"{self.path}:{number}: no reply of a judge ({error}). {_REMEDY}"
        ) from error
    if len(whole) < len(content):
      with open(self.path, "r+b") as file:
        file.truncate(len(whole))

  def __len__(self) -> int:
    return len(self._replies)

  def __contains__(self, key: str) -> bool:
    return key in self._replies

  def __getitem__(self, key: str) -> Reply:
    return self._replies[key]

  def add(self, key: str, reply: Reply) -> None:
    """Keeps a reply, on disk too unless nobody was there to give it."""
    self._replies[key] = reply
    if self.path is None or reply.failure == FAILED:
      return
    if self._file is None:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self.path, "ab")  # noqa: SIM115
    self._file.write(_line(key, reply))
    self._file.flush()

  def forget(self) -> None:
    """Forgets what is in no file: in a long run nearly all texts are new."""
    if self.path is None:
      self._replies = {}

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()
      self._file = None


def _line(key: str, reply: Reply) -> bytes:
  value = reply.value
  if isinstance(value, list):  # JSON has no infinity
    value = [None if math.isinf(x) else x for x in value]
  row = {"key": key, "value": value}
  row |= {name: getattr(reply, name) for name in _FIELDS}
  return (json.dumps(row) + "\n").encode()


def _reply(row: dict[str, Any]) -> Reply:
  value = row["value"]
  if isinstance(value, list):
    value = [-math.inf if x is None else float(x) for x in value]
  elif not isinstance(value, str) and not (value is None and row["failure"]):
    raise ValueError(f"value={value!r:.40}")
  return Reply(value, *(row[name] for name in _FIELDS))
