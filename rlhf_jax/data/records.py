"""Typed access to the fields of a record, with errors that name the place.

Every message names file, line, field and what was found, and says when the
keys look like those of another format of rlhf_jax/data/formats.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.data import transcripts
from rlhf_jax.data.messages import TOOLS, Message, check_messages
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import UserError

# Fields that a record of each format must have; others are ignored.
FIELDS = {
  "hh": ("chosen", "rejected"),
  "comparison": ("prompt", "chosen", "rejected"),
  "ranking": ("prompt", "answers"),
  "nectar": ("prompt", "answers"),
  "ultrafeedback": ("instruction", "completions"),
  "helpsteer": (
    *("prompt", "response", "helpfulness", "correctness", "coherence"),
    *("complexity", "verbosity"),
  ),
  "helpsteer2_preference": (
    *("prompt", "response_1", "response_2", "preference_strength"),
  ),
  "helpsteer3": ("context", "response1", "response2", "overall_preference"),
  "best_of": ("query", "sample0", "sample1", "best"),
  "summaries": ("info", "summaries", "choice"),
  "labelled": ("prompt", "response", "label"),
  "demonstration": ("prompt", "response"),
  "messages": ("messages",),
  "prompt": ("prompt",),
  "ratings": ("text", "ratings"),
  "gsm8k": ("question", "answer"),
  "steps": ("prompt", "steps", "labels"),
  "prm800k": ("question", "label"),
  "math_shepherd": ("input", "label"),
  "rated_dialogue": ("messages", "ratings"),
  "rewardbench": ("prompt", "chosen", "rejected", "subset"),
  "llmbar": ("input", "output_1", "output_2", "label"),
  "judgebench": ("question", "response_A", "response_B"),
}


# What else people call these fields.
_OTHER_NAMES = {
  "response": ("completion", "output", "answer"),
  "prompt": ("instruction", "question", "query"),
  "messages": ("conversations", "conversation", "dialogue"),
  "chosen": ("preferred",),
  "rejected": ("dispreferred",),
  "answers": ("responses", "completions", "candidates"),
  "label": ("desirable",),
}


# What people call a judgement that stands beside the answers.
_JUDGEMENT = re.compile(r"scor|rating|rated|margin|reward|rank|strength|label")


def judgements_beside(record: dict, format: str) -> list[str]:
  """Returns the fields of a record that judge answers and are not read."""
  read = {*FIELDS.get(format, record), *_OPTIONAL.get(format, ())}
  for pair in PAIR_SCORES:
    if not record.keys() >= set(pair):  # one score alone compares nothing
      read -= set(pair)
  return [
    name for name in record if name not in read and _JUDGEMENT.search(name)
  ]


class RefusedExample(DataError):
  """A well-formed record that cannot be learned from; `reason` is countable.

  example: what it says all the same, or None.
  """

  def __init__(self, reason: str, message: str, example: Any = None):
    super().__init__(message)
    self.reason, self.example = reason, example


# Scores of both answers of a comparison, as binarised rankings write them.
PAIR_SCORES = (
  ("score_chosen", "score_rejected"),
  ("chosen_score", "rejected_score"),
  ("chosen-rating", "rejected-rating"),
)
_OPTIONAL = {
  "comparison": (
    *("label", "margin", "strength"),
    *(name for pair in PAIR_SCORES for name in pair),
  )
}
# Types of those fields; a transcript is a text of its own kind.
_KINDS = {
  "prompt": (str, list),
  "response": (str, list),
  **dict.fromkeys(("answers", "completions", "context", "summaries"), (list,)),
  **dict.fromkeys(
    (
      *("preference_strength", "overall_preference", "best", "choice"),
      *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    ),
    (int, float),
  ),
  "info": (dict,),
  "label": (bool, int, float),
  "messages": (list,),
  "ratings": (list,),
  "steps": (list,),
  "labels": (list,),
  ("prm800k", "question"): (dict,),
  ("prm800k", "label"): (dict,),
  ("math_shepherd", "label"): (str,),
  ("rated_dialogue", "ratings"): (dict,),
}


def _fits(record: dict, name: str) -> bool:
  """Says whether a record has the fields of a format, with their types."""
  for field_name in FIELDS[name]:
    kinds = _KINDS.get(field_name, (str,))
    kinds = _KINDS.get((name, field_name), kinds)
    is_text = field_name in ("prompt", "subset")
    if name in ("comparison", "rewardbench") and not is_text:
      kinds = (str, list)
    if not isinstance(record.get(field_name), kinds):
      return False
    if field_name == "answers":
      first = next(iter(record[field_name]), None)
      if isinstance(first, dict) != (name == "nectar"):
        return False
    if name == "hh" and not record[field_name].startswith(transcripts.BEGIN):
      return False
  return True


def fitting(record: dict, format: str = "") -> str:
  """Returns the format that a record fits best, "" for none.

  Args:
    record: of a file.
    format: that it was read with, which is not meant. One that reads less is
      none, unless a field of this one is missing.
  """
  own = set(FIELDS.get(format, ()))
  is_whole = own <= set(record)
  found = [
    name
    for name, fields in FIELDS.items()
    if name != format
    and not (is_whole and set(fields) <= own)
    and _fits(record, name)
  ]
  return max(found, key=lambda name: len(FIELDS[name]), default="")


def unpaired(record: dict) -> tuple[str, str] | None:
  """Returns (what a record has, what is missing) of "chosen" and "rejected"."""
  pair = ("chosen", "rejected")
  for has, lacks in (pair, pair[::-1]):
    if record.get(has) is not None and record.get(lacks) is None:
      return has, lacks
  return None


def suggestion(record: dict, format: str) -> str:
  """Returns " Did you mean format=...?" if the record fits another format."""
  best = fitting(record, format)
  if best == "prompt" and unpaired(record):
    return ""  # of a comparison without one answer nobody means prompts
  return f" Did you mean format={best!r}?" if best else ""


def field(record: dict, name: str, kinds: tuple, format: str, where: str):
  """Returns record[name], or raises DataError naming what was found."""
  hint = suggestion(record, format)
  needed = ", ".join(FIELDS.get(format, (name,)))  # (name,): a user's parser
  if name not in record:
    others = [n for n in _OTHER_NAMES.get(name, ()) if n in record]
    if others and hint in ("", " Did you mean format='prompt'?"):
      hint = (
        f" Is {others[0]!r} meant? Set columns='{name}={others[0]}', or rename "
        "it."
      )
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
  """Returns messages, or raises DataError unless they are well formed.

  Text parts are joined, and fields that are null left out: tables write one
  where a message has none.
  """
  try:
    found = [_message(message, n) for n, message in enumerate(messages)]
    check_messages(found)
  except ValueError as error:
    raise DataError(f"{where}: {error}") from error
  return found


def _message(message: Any, n: int) -> Any:
  """Returns a message as chat.py takes it; what is none, as it is."""
  if not isinstance(message, dict):
    return message
  found = {
    key: value
    for key, value in message.items()
    if value not in (None, []) or key in ("role", "content")
  }
  if not isinstance(found.get("content"), list):
    return found
  texts = []
  for part in found["content"]:
    kind = part.get("type") if isinstance(part, dict) else part
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
      raise UserError(
        f"messages[{n}]: content has a part {str(kind)[:40]!r}; only parts of "
        "type 'text' are read. Remove it, or the record."
      )
    texts.append(text)
  return found | {"content": "".join(texts)}


def with_tools(
  messages: str | list[Message], record: dict, where: str
) -> str | list[Message]:
  """Returns a dialogue whose first message carries the record's tools.

  Args:
    messages: of the record; a text is one user message.
    record: its field "tools", if any, is a list of JSON schemas, or that
      written as JSON, which tables hold.
    where: "FILE:LINE".
  """
  tools = record.get("tools")
  if isinstance(tools, str) and tools.strip():
    try:
      tools = strict_json.loads(tools)
    except ValueError as error:
      raise DataError(
        f"{where}: field 'tools' is no JSON ({error}). Correct the record."
      ) from error
  if not tools:
    return messages
  if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
    raise DataError(
      f"{where}: field 'tools' is {str(tools)[:60]}; it is a list of objects, "
      "the JSON schemas of functions. Correct the record."
    )
  if isinstance(messages, str):
    messages = [{"role": "user", "content": messages}]
  first, *rest = messages
  return [{**first, TOOLS: tools}, *rest]


def prompt(record: dict, format: str, where: str) -> str | list[Message]:
  """Returns the record's prompt: text, or a dialogue that wants an answer."""
  value = field(record, "prompt", (str, list), format, where)
  return value if isinstance(value, str) else to_answer(value, where, "prompt")


def to_answer(messages: list, where: str, name: str) -> list[Message]:
  """Returns a dialogue whose last message is not the assistant's.

  Raises:
    DataError: it is: continuing an answer is not implemented.
  """
  found = dialogue(messages, where)
  if found[-1]["role"] == "assistant":
    raise DataError(
      f"{where}: field {name!r} ends with a message of the assistant, so there "
      "is nothing to answer; continuing one is not implemented. Remove it."
    )
  return found


def answered(
  record: dict, names: Sequence[str], format: str, where: str
) -> tuple[str | list[Message], list[str]]:
  """Returns the prompt of a record and its answers.

  Answers are texts, or dialogues whose last message is the answer; what stands
  before it is the prompt, or begins with it. Without a field "prompt" it is
  what they have in common.

  Args:
    record: of a file.
    names: of the fields with answers.
    format: of the record, for messages.
    where: "FILE:LINE".
  """
  values = [field(record, name, (str, list), format, where) for name in names]
  if all(isinstance(value, str) for value in values):
    return prompt(record, format, where), [
      answer(value, name, where)
      for value, name in zip(values, names, strict=True)
    ]
  if any(isinstance(value, str) for value in values):
    raise DataError(
      f"{where}: {' and '.join(names)} are a text and a list of messages. Give "
      "both in the same way."
    )
  before, answers = [], []
  for value, name in zip(values, names, strict=True):
    *head, last = dialogue(value, where)
    if last["role"] != "assistant" or set(last) != {"role", "content"}:
      raise DataError(
        f"{where}: field {name!r} ends with {str(last)[:60]}, not with a plain "
        "message of the assistant. Correct the record."
      )
    before.append(head)
    answers.append(answer(last["content"], name, where))
  if any(head != before[0] for head in before):
    raise RefusedExample(
      "prompts differ",
      f"{where}: {' and '.join(names)} differ before their last message, so "
      "they answer different prompts. Remove the record.",
    )
  return _shared(record, before[0], format, where), answers


def _shared(
  record: dict, head: list[Message], format: str, where: str
) -> list[Message]:
  """Returns the prompt of a record whose answers are dialogues.

  Args:
    record: may have a field "prompt".
    head: what its answers have in common, perhaps nothing.
    format, where: see `answered`.
  """
  if "prompt" not in record and head:
    return to_answer(head, where, "chosen")
  given = prompt(record, format, where)
  asked = given
  if isinstance(given, str):
    asked = [{"role": "user", "content": given}]
    if head and head[-1] == asked[0]:  # after a system message, or more
      return head
  if head in ([], asked):
    return asked
  raise DataError(
    f"{where}: field 'prompt' is not what stands before the answers: "
    f"{str(given)[:60]!r}, {str(head)[:60]!r}. Correct the record."
  )


def transcript(record: dict, name: str, where: str) -> list[Message]:
  """Returns the messages of an HH transcript, the last the assistant's."""
  text = field(record, name, (str,), "hh", where)
  try:
    return transcripts.parse(text)
  except ValueError as error:
    raise DataError(
      f"{where}: field {name!r}: {error}{suggestion(record, 'hh')}"
    ) from error
