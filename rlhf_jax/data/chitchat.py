"""asset:chitchat, conversations of two people that were rated as a whole.

Chit-Chat Challenge (Myers, Etchart and Fulda 2020; MIT): 7,168 conversations,
of which 5,988 have three ratings from 1 to 10, witty, interesting and upbeat.
53 to 57 % of each are exactly 5, and 68 % of the conversations have three equal
ones; the scales correlate by 0.76 to 0.86, and with the number of words by 0.30
to 0.32 (Spearman: 0.48 to 0.56). In 3,150 nobody answered.

The second speaker is the assistant, and the topic the system message. Parts are
drawn by what is said first, so that no conversation is in two of them, nor is
one that begins in the same words: asset:chitchat:train, :other and :test hold
three, one and one fifth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.data.sources import DataError

PARTS = {"train": (0, 1, 2), "other": (3,), "test": (4,)}
TOPIC = "Small talk."  # of conversations without one


def located(path: str | Path, part: str) -> Iterator[tuple[str, dict]]:
  """Yields (where, record) of each conversation.

  Args:
    path: the file that assets.fetch("chitchat") returns.
    part: a key of PARTS, "" for all.

  Yields:
    {"messages", "prompt", "ratings"}: a dialogue, the same up to the last turn
    that is to be answered, and numbers by objective, {} where nobody rated.

  Raises:
    DataError: the file is damaged.
  """
  found = strict_json.read_object(Path(path), "Delete it to fetch it again.")
  for number, conversation in enumerate(found.values(), 1):
    where = f"{path}:{number}"
    try:
      record = _record(conversation)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      raise DataError(
        f"{where}: no conversation ({error!r}). The file is damaged; delete it "
        "to fetch it again."
      ) from error
    if record["messages"][1:] and (not part or _part(record) in PARTS[part]):
      yield where, record


def _record(conversation: dict[str, Any]) -> dict[str, Any]:
  turns = conversation["messages"]
  first = turns[0][0]["sender"] if turns else ""
  topic = conversation.get("prompt") or TOPIC
  messages = [{"role": "system", "content": topic}]
  for turn in turns:
    text = " ".join(said["text"].strip() for said in turn).strip()
    role = "user" if turn[0]["sender"] == first else "assistant"
    messages.append({"role": role, "content": text})
  asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
  ratings = {
    name: float(x) for name, x in conversation.get("ratings", {}).items()
  }
  return {"messages": messages, "prompt": asked, "ratings": ratings}


def _part(record: dict[str, Any]) -> int:
  said = " ".join(m["content"] for m in record["messages"][1:3]).lower()
  return hashlib.sha256(said.encode()).digest()[0] % 5
