"""Jinja templates of models, rendered within limits of time and memory.

A process of its own (template_process.py) renders all templates of a run. It
is started once, and again after a template has run into a limit.
"""

from __future__ import annotations

import atexit
import datetime
import json
import threading
from pathlib import Path
from typing import Any

from rlhf_jax.child_process import Child
from rlhf_jax.schema import FieldError, UserError

WORKER = Path(__file__).with_name("template_process.py")
DAY = "template_day"  # the variable that names strftime_now's day to WORKER
CPU_SECONDS = 10  # of one rendering
WALL_SECONDS = 50  # of one rendering, on a machine that is busy
MEMORY_BYTES = 1 << 30  # of the whole process
_LONGEST = 64 << 20  # bytes of a rendering and what is around it


_kept: list[Child] = []
_lock = threading.Lock()


def check_day(day: str) -> None:
  """Raises FieldError unless a template_day is empty or an ISO date."""
  try:
    if day:
      datetime.datetime.fromisoformat(day)
  except ValueError as error:
    raise FieldError(
      f"template_day={day!r}: {error}. Give a date as YYYY-MM-DD, or '' where "
      "the template asks for none."
    ) from error


def variables(text: str) -> dict[str, Any]:
  """Returns the variables that a JSON object names, {} of an empty text.

  Raises:
    FieldError: it is none.
  """
  try:
    found = json.loads(text or "{}")
  except ValueError as error:
    found = str(error)
  if not isinstance(found, dict):
    raise FieldError(
      f"template_variables={text!r}: {str(found)[:60]} is no JSON object. Give "
      "one, such as '{\"enable_thinking\": false}', or '' for none."
    )
  return found


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
      "It writes the day of the run, and rows must not depend on it: set "
      "model.template_day='2025-01-31', say, or give a copy with a fixed day "
      "as model.chat_template."
    )
  return UserError(
    f"the chat template of {name} {what} roles {roles}: {reply['error']}. "
    f"{remedy}"
  )


def _asked(request: dict[str, Any]) -> list[dict[str, str]]:
  """Returns the replies of the process that is kept, or of a new one."""
  if _kept and not _kept[0].is_ours:
    _kept.clear()
  if not _kept:
    _kept.append(Child(WORKER, MEMORY_BYTES, _LONGEST))
  line = _kept[0].ask(request, WALL_SECONDS)
  if line is not None:
    return json.loads(line)
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
    if process.is_ours:
      process.close()
