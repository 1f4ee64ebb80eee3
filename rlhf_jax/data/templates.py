"""Jinja templates of models, rendered within limits of time and memory.

A process of its own (template_process.py) renders all templates of a run. It
is started once, and again after a template has run into a limit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rlhf_jax.schema import UserError

WORKER = Path(__file__).with_name("template_process.py")
CPU_SECONDS = 10  # of one rendering
WALL_SECONDS = 50  # of one rendering, on a machine that is busy
MEMORY_BYTES = 1 << 30  # of the whole process
_LONGEST = 64 << 20  # bytes of a rendering and what is around it


class _Process:
  """One child process, an open resource."""

  def __init__(self) -> None:
    self.owner = os.getpid()
    self.child = subprocess.Popen(
      [sys.executable, "-P", str(WORKER), str(MEMORY_BYTES)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is the trainer's
    )
    self._selector = selectors.DefaultSelector()
    self._selector.register(self.child.stdout, selectors.EVENT_READ)

  def ask(self, request: dict[str, Any]) -> list[dict[str, str]] | None:
    """Returns the replies, None where the process ended instead."""
    try:
      self.child.stdin.write(json.dumps(request).encode() + b"\n")
      self.child.stdin.flush()
    except BrokenPipeError:
      return None
    line = self._line()
    return None if line is None else json.loads(line)

  def _line(self) -> bytes | None:
    """Returns the line that it writes, None if it ends or is late."""
    parts: list[bytes] = []
    size, ends = 0, time.monotonic() + WALL_SECONDS
    while size < _LONGEST:
      if not self._selector.select(max(ends - time.monotonic(), 0.0)):
        return None
      part = os.read(self.child.stdout.fileno(), 1 << 16)
      if not part:
        return None
      parts.append(part)
      size += len(part)
      if part.endswith(b"\n"):
        return b"".join(parts)
    return None

  def close(self) -> None:
    """Ends the process, whatever it does."""
    self._selector.close()
    self.child.kill()
    self.child.wait()
    for stream in (self.child.stdin, self.child.stdout):
      with contextlib.suppress(OSError):
        stream.close()


_kept: list[_Process] = []
_lock = threading.Lock()


def render(
  template: str, name: str, dialogues: list[dict[str, Any]]
) -> list[str | UserError]:
  """Returns the text that a template writes of each dialogue, or its error.

  Args:
    template: Jinja source; {% generation %} stands for two variables.
    name: of its tokenizer, for messages.
    dialogues: variables of each rendering, plain data.

  Returns:
    a text; or a UserError: the template is not Jinja, refuses the messages,
    fails, or needs more than CPU_SECONDS or MEMORY_BYTES for all of them.
  """
  request = {
    "template": template,
    "dialogues": dialogues,
    "cpu_seconds": CPU_SECONDS,
  }
  with _lock:
    replies = _asked(request)
  return [
    reply["text"] if "text" in reply else _complaint(name, reply, variables)
    for reply, variables in zip(replies, dialogues, strict=True)
  ]


def _complaint(
  name: str, reply: dict[str, str], variables: dict[str, Any]
) -> UserError:
  """Returns what is wrong with a template."""
  if reply["kind"] == "syntax":
    return UserError(
      f"the chat template of {name} is not valid Jinja ({reply['error']}). "
      "Correct it."
    )
  roles = [m.get("role") for m in variables.get("messages", [])]
  what, remedy = "refused", "Change the messages to what it accepts."
  if reply["kind"] != "refused":
    what, remedy = "failed on", "Correct the template, or the messages."
  if "strftime_now" in reply["error"]:
    remedy = (
      "It writes the day of the run, and rows must not depend on it: give a "
      "copy with a fixed day as model.chat_template."
    )
  return UserError(
    f"the chat template of {name} {what} roles {roles}: {reply['error']}. "
    f"{remedy}"
  )


def _asked(request: dict[str, Any]) -> list[dict[str, str]]:
  """Returns the replies of the process that is kept, or of a new one."""
  if _kept and _kept[0].owner != os.getpid():  # of the process we came from
    _kept.clear()
  if not _kept:
    _kept.append(_Process())
  replies = _kept[0].ask(request)
  if replies is not None:
    return replies
  _close()
  reply = {
    "error": f"it took more than {CPU_SECONDS} s of processor time, "
    f"{MEMORY_BYTES >> 20} MiB of memory, or {_LONGEST >> 20} MiB of text",
    "kind": "broken",
  }
  return [reply] * len(request["dialogues"])


@atexit.register
def _close() -> None:
  while _kept:
    process = _kept.pop()
    if process.owner == os.getpid():
      process.close()
