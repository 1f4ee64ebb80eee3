"""Messages of a dialogue: what one is, and the names of who speaks.

A message is a dict of "role" and "content"; what it says besides (a name, tool
calls) a chat template must write (chat.py). The first one may carry the tools
of the dialogue, which are no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.imported import nearest
from rlhf_jax.schema import UserError

Message = dict[str, Any]  # "role", "content", and what a template reads besides

TOOLS = "tools"  # of the first message: JSON schemas of functions
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ALIASES = {
  "human": "user",
  "prompter": "user",
  "gpt": "assistant",
  "bot": "assistant",
  "model": "assistant",
  "chatgpt": "assistant",
}


def check_messages(messages: Sequence[Message]) -> None:
  """Raises UserError unless all have a known role and a text as content.

  The content may be None beside tool calls, or a list of text parts.
  """
  if not messages:
    raise UserError("messages=[]: nothing to render. Give at least one.")
  for n, message in enumerate(messages):
    keys = sorted(message) if isinstance(message, dict) else type(message)
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
      raise UserError(
        f"messages[{n}] has {keys}; a message is a dict with exactly 'role' "
        "and 'content', and what a template writes besides. Name them so."
      )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
      raise UserError(
        f"messages[{n}]: role={role!r}; a role is one word such as 'user'."
      )
    if role not in ROLES:
      other = _ALIASES.get(role.lower(), "")
      hint = f" Did you mean {other!r}?" if other else nearest(role, ROLES)
      raise UserError(
        f"messages[{n}]: role={role!r} is none of {', '.join(ROLES)}.{hint} "
        "Rename it."
      )
    if content is None and message.get("tool_calls"):
      continue
    if not isinstance(content, str) and not _is_parts(content):
      found = "null" if content is None else f"a {type(content).__name__}"
      raise UserError(
        f"messages[{n}]: content is {found}; only strings are rendered, and "
        "lists of text parts in a file. Give it a text, or remove the message."
      )


def _is_parts(content: Any) -> bool:
  """Says whether a content is a list of text parts."""
  return (
    isinstance(content, list)
    and bool(content)
    and all(
      isinstance(part, dict)
      and part.get("type") == "text"
      and isinstance(part.get("text"), str)
      for part in content
    )
  )


def check_plain(messages: Sequence[Message]) -> None:
  """Raises UserError for what only a chat template could write."""
  for n, message in enumerate(messages):
    further = sorted(set(message) - {"role", "content"})
    if further:
      raise UserError(
        f"messages[{n}] has {further}, which plain text cannot say. Set "
        "chat=True with a template that writes them, or remove them."
      )
