"""Typed access to the fields of a record, with errors that name the place.

Every message names file, line, field and what was found, and says when the
keys look like those of another format of rlhf_jax/data/formats.py.
"""

from __future__ import annotations

from rlhf_jax.data import chat, transcripts
from rlhf_jax.data.chat import Message
from rlhf_jax.data.sources import DataError

# Fields that a record of each format must have; others are ignored.
FIELDS = {
  "hh": ("chosen", "rejected"),
  "comparison": ("prompt", "chosen", "rejected"),
  "labelled": ("prompt", "response", "label"),
  "demonstration": ("prompt", "response"),
  "messages": ("messages",),
  "prompt": ("prompt",),
  "ratings": ("text", "ratings"),
  "gsm8k": ("question", "answer"),
}


class RefusedExample(DataError):
  """A well-formed record that cannot be learned from; `reason` is countable."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


# Types of those fields; a transcript is a text of its own kind.
_KINDS = {
  "prompt": (str, list),
  "label": (bool, int, float),
  "messages": (list,),
  "ratings": (list,),
}


def _fits(record: dict, name: str) -> bool:
  """Says whether a record has the fields of a format, with their types."""
  for field_name in FIELDS[name]:
    if not isinstance(record.get(field_name), _KINDS.get(field_name, (str,))):
      return False
    if name == "hh" and not record[field_name].startswith(transcripts.BEGIN):
      return False
  return True


def suggestion(record: dict, format: str) -> str:
  """Returns " Did you mean format=...?" if the record fits another format.

  One that reads less is none, unless a field of this one is missing.
  """
  own = set(FIELDS.get(format, ()))
  is_whole = own <= set(record)
  fitting = [
    name
    for name, fields in FIELDS.items()
    if name != format
    and not (is_whole and set(fields) <= own)
    and _fits(record, name)
  ]
  if not fitting:
    return ""
  best = max(fitting, key=lambda name: len(FIELDS[name]))
  return f" Did you mean format={best!r}?"


def field(record: dict, name: str, kinds: tuple, format: str, where: str):
  """Returns record[name], or raises DataError naming what was found."""
  hint = suggestion(record, format)
  needed = ", ".join(FIELDS.get(format, (name,)))  # (name,): a user's parser
  if name not in record:
    raise DataError(
      f"{where}: field {name!r} is missing; the record has "
      f"{sorted(record)}. format={format!r} needs {needed}.{hint}"
    )
  value = record[name]
  if isinstance(value, bool) or not isinstance(value, kinds):
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise DataError(
      f"{where}: field {name!r} is a {type(value).__name__} "
      f"({str(value)[:60]!r}); format={format!r} needs {expected}. Correct the "
      f"record.{hint}"
    )
  return value


def answer(text: str, name: str, where: str) -> str:
  """Returns text, or raises RefusedExample if it is blank."""
  if not text.strip():
    raise RefusedExample(
      "empty response",
      f"{where}: field {name!r} holds an empty response ({text!r}): nothing to "
      "learn from. Remove the record.",
    )
  return text


def dialogue(messages: list, where: str) -> list[Message]:
  """Returns messages, or raises DataError unless they are well formed."""
  try:
    chat.check_messages(messages)
  except ValueError as error:
    raise DataError(f"{where}: {error}") from error
  return messages


def prompt(record: dict, format: str, where: str) -> str | list[Message]:
  """Returns the record's prompt: text, or a well-formed dialogue."""
  value = field(record, "prompt", (str, list), format, where)
  return value if isinstance(value, str) else dialogue(value, where)


def transcript(record: dict, name: str, where: str) -> list[Message]:
  """Returns the messages of an HH transcript, the last the assistant's."""
  text = field(record, name, (str,), "hh", where)
  try:
    return transcripts.parse(text)
  except ValueError as error:
    raise DataError(
      f"{where}: field {name!r}: {error}{suggestion(record, 'hh')}"
    ) from error
