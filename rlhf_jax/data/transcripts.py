"""Dialogues as plain text, the way the Anthropic HH data writes them.

  "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ..."   (Bai et al. 2022)

Used to read that data and to give a model without a chat template a dialogue
to answer. Outer whitespace of each turn is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_jax.data.messages import Message, check_plain
from rlhf_jax.schema import UserError

BEGIN = "\n\nHuman:"  # of every transcript
_TURN = re.compile(r"\n\n(Human|Assistant):")
HEADERS = ("Human", "Assistant")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_HEADERS = {role: header for header, role in _ROLES.items()}


def parse(text: str) -> list[Message]:
  """Splits a transcript into messages, the last of them the assistant's.

  Raises:
    ValueError: it does not start with a turn, or ends with another role's.
  """
  head, *turns = _TURN.split(text)
  messages = [
    {"role": _ROLES[role], "content": content.strip()}
    for role, content in zip(turns[::2], turns[1::2], strict=True)
  ]
  if head or not messages or messages[-1]["role"] != "assistant":
    raise UserError(
      f"{text[:60]!r} is no transcript from '\\n\\nHuman:' to a last "
      "'\\n\\nAssistant:' turn. Use another format, or write it as one."
    )
  return messages


def write(messages: Sequence[Message]) -> str:
  """Returns the transcript that ends where the assistant answers.

  An answer follows it after one space. Messages of role and content alone.
  """
  check_plain(messages)
  turns = [
    f"\n\n{_HEADERS.get(m['role'], m['role'].capitalize())}: {m['content']}"
    for m in messages
  ]
  return "".join(turns) + "\n\nAssistant:"
