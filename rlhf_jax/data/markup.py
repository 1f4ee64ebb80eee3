"""Records whose plain text is markup: rendered already, by another program.

A prompt that says "<|im_start|>user" or "[INST]" was put through a chat
template before. Here it stays plain text, so that no text can end a turn, and a
template would be put around it a second time. That is seldom meant, so it is
counted and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_jax.data import chat, transcripts
from rlhf_jax.data.tokenizers import Tokenizer

LEAST = 3  # characters of a mark; shorter ones stand in ordinary text
PROBE = "question"


def marks(tokenizer: Tokenizer, is_chat: bool) -> tuple[str, ...]:
  """Returns texts that only a template or a transcript writes.

  They are special tokens, and what the chat template writes around a message
  where that looks like a tag; where a template is used, headers of transcripts.
  """
  found = list(getattr(tokenizer, "special_tokens", {}))
  message = {"role": "user", "content": PROBE}
  try:
    text = chat.render([message], tokenizer, add_generation_prompt=True).text
  except ValueError:
    text = PROBE
  for line in text.replace(PROBE, "\n").split("\n"):
    is_tag = line.strip()[:1] in ("[", "<", "#", "|")
    found += [line.strip()] if is_tag else []
  if is_chat:
    found += [f"\n\n{header}:" for header in transcripts.HEADERS]
  found = [mark for mark in found if len(mark) >= LEAST]
  return tuple(sorted(dict.fromkeys(found), key=len, reverse=True))


def _texts(record: Any) -> Iterator[str]:
  for name in ("prompt", "response", "chosen", "rejected", "text"):
    value = getattr(record, name, "")
    if isinstance(value, str):
      yield value
  for name in ("prompt", "messages"):
    messages = getattr(record, name, None)
    for message in messages if isinstance(messages, list) else ():
      if isinstance(message.get("content"), str):
        yield message["content"]


def mark_in(record: Any, known: Sequence[str]) -> str | None:
  """Returns the first of `marks` that a record's text holds, or None."""
  text = "\0".join(_texts(record))
  return next((mark for mark in known if mark in text), None)


def find(
  found: Sequence[Any], tokenizer: Tokenizer, is_chat: bool
) -> list[tuple[str, str]]:
  """Returns (place, mark) of records whose text holds markup."""
  known = marks(tokenizer, is_chat)
  pairs = []
  for record in found:
    mark = mark_in(record, known)
    if mark is not None:
      pairs.append((record.where, mark))
  return pairs


def describe(pairs: Sequence[tuple[str, str]]) -> str:
  """Returns why they are named, after their number."""
  where, mark = pairs[0]
  return (
    f"WARNING: with markup in plain text ({mark!r} at {where}): rendered "
    "already? It stays text; give messages, and chat=True renders them"
  )
