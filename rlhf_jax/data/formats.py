"""Records -> examples: demonstrations, comparisons, prompts, rated texts.

FORMATS names every accepted layout of a record. A record of the wrong shape
(a field missing, or of the wrong type) stops the reading; a record of the
right shape that teaches nothing (an empty answer, a pair whose prompts
differ) is refused with a reason: `load` raises and counts all of them,
`load_and_count` leaves them out and returns the counts. Nothing disappears
silently.

Comparisons drawn from ratings are in ratings.py. Left out: rankings of more
than two answers, tool calls.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.data import chat, sources
from rlhf_jax.data.chat import Message
from rlhf_jax.data.sources import DataError

Dropped = Counter  # reason -> number of examples left out


class RefusedExample(DataError):
  """A well-formed record that cannot be learned from; `reason` is countable."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclass(frozen=True)
class Demonstration:
  """What a person wrote: a dialogue, or a prompt and its response.

  where: file:line.
  prompt, response: plain text, joined as they are; used if messages is None.
  messages: a dialogue whose assistant turns are learned, or None.
  """

  where: str
  prompt: str = ""
  response: str = ""
  messages: list[Message] | None = None


@dataclass(frozen=True)
class Comparison:
  """Two answers to one prompt, and which of them people preferred.

  where: file:line.
  prompt: text, or the dialogue so far; "" compares texts without a prompt.
  chosen, rejected: the answers.
  label: probability in [0, 1] that `chosen` wins; 0.5 is a tie.
  """

  where: str
  prompt: str | list[Message]
  chosen: str
  rejected: str
  label: float = 1.0


@dataclass(frozen=True)
class Prompt:
  """Something to answer: text, or the dialogue so far. where: file:line."""

  where: str
  prompt: str | list[Message]


@dataclass(frozen=True)
class RatedText:
  """A text with the ratings that several people gave it. where: file:line."""

  where: str
  text: str
  ratings: tuple[float, ...]


Example = Demonstration | Comparison | Prompt | RatedText

# Fields that a record of each format must have; others are ignored.
FIELDS = {
  "hh": ("chosen", "rejected"),
  "comparison": ("prompt", "chosen", "rejected"),
  "demonstration": ("prompt", "response"),
  "messages": ("messages",),
  "prompt": ("prompt",),
  "ratings": ("text", "ratings"),
  "gsm8k": ("question", "answer"),
}


def _suggestion(record: dict, format: str) -> str:
  """Returns " Did you mean format=...?" if the keys match another format."""
  fitting = [
    name
    for name, fields in FIELDS.items()
    if name != format and set(fields) <= set(record)
  ]
  if not fitting:
    return ""
  best = max(fitting, key=lambda name: len(FIELDS[name]))
  return f" Did you mean format={best!r}?"


def _field(record: dict, name: str, kinds: tuple, format: str, where: str):
  """Returns record[name], or raises DataError naming what was found."""
  hint = _suggestion(record, format)
  needed = ", ".join(FIELDS[format])
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


def _answer(text: str, name: str, where: str) -> str:
  if not text.strip():
    raise RefusedExample(
      "empty_response",
      f"{where}: field {name!r} holds an empty response ({text!r}): nothing to "
      "learn from. Remove the record, or load it with load_and_count.",
    )
  return text


def _dialogue(messages: list, where: str) -> list[Message]:
  try:
    chat.check_messages(messages)
  except ValueError as error:
    raise DataError(f"{where}: {error}") from error
  return messages


def _prompt(record: dict, format: str, where: str) -> str | list[Message]:
  value = _field(record, "prompt", (str, list), format, where)
  return value if isinstance(value, str) else _dialogue(value, where)


_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _transcript(text: str, name: str, record: dict, where: str):
  """Splits "\\n\\nHuman: ...\\n\\nAssistant: ..." into stripped messages."""
  head, *turns = _TURN.split(text)
  messages = [
    {"role": _ROLES[role], "content": content.strip()}
    for role, content in zip(turns[::2], turns[1::2], strict=True)
  ]
  if head or not messages or messages[-1]["role"] != "assistant":
    raise DataError(
      f"{where}: field {name!r} is no transcript from '\\n\\nHuman:' to a last "
      f"'\\n\\nAssistant:' turn: {text[:60]!r}. Use another "
      f"format.{_suggestion(record, 'hh')}"
    )
  return messages


def parse_hh(record: dict, where: str) -> Comparison:
  """Anthropic HH: two transcripts that differ in their last answer.

  Outer whitespace of each turn is removed. Bai et al. 2022, arXiv:2204.05862.
  """
  *prompt, chosen = _transcript(
    _field(record, "chosen", (str,), "hh", where), "chosen", record, where
  )
  *other, rejected = _transcript(
    _field(record, "rejected", (str,), "hh", where), "rejected", record, where
  )
  if prompt != other:
    raise RefusedExample(
      "prompts_differ",
      f"{where}: fields 'chosen' and 'rejected' differ before their last "
      "Assistant turn, so they answer different prompts. Remove the record, "
      "or load it with load_and_count.",
    )
  return Comparison(
    where,
    prompt,
    _answer(chosen["content"], "chosen", where),
    _answer(rejected["content"], "rejected", where),
  )


def parse_comparison(record: dict, where: str) -> Comparison:
  """prompt (text or messages), chosen, rejected and an optional label."""
  label = 1.0
  if "label" in record:
    label = _field(record, "label", (int, float), "comparison", where)
    if not 0 <= label <= 1:
      raise DataError(
        f"{where}: field 'label' is {label}; it is the probability that "
        "'chosen' wins. Give a number in [0, 1]."
      )
  prompt = _prompt(record, "comparison", where)
  answers = [
    _answer(_field(record, name, (str,), "comparison", where), name, where)
    for name in ("chosen", "rejected")
  ]
  return Comparison(where, prompt, *answers, label=float(label))


def parse_demonstration(record: dict, where: str) -> Demonstration:
  """prompt and response, joined as they are."""
  prompt = _field(record, "prompt", (str,), "demonstration", where)
  response = _field(record, "response", (str,), "demonstration", where)
  return Demonstration(where, prompt, _answer(response, "response", where))


def parse_messages(record: dict, where: str) -> Demonstration:
  """messages: a dialogue with at least one assistant turn."""
  messages = _field(record, "messages", (list,), "messages", where)
  answers = [
    m["content"] for m in _dialogue(messages, where) if m["role"] == "assistant"
  ]
  if not answers:
    raise RefusedExample(
      "no_assistant_turn",
      f"{where}: no message has the role 'assistant': nothing to learn from. "
      "Remove the record, or load it with load_and_count.",
    )
  for answer in answers:
    _answer(answer, "messages", where)
  return Demonstration(where, messages=messages)


def parse_prompt(record: dict, where: str) -> Prompt:
  """prompt: text or messages."""
  prompt = _prompt(record, "prompt", where)
  if isinstance(prompt, str) and not prompt.strip():
    raise RefusedExample(
      "empty_prompt",
      f"{where}: field 'prompt' is empty: nothing to answer. Remove the "
      "record, or load it with load_and_count.",
    )
  return Prompt(where, prompt)


def parse_ratings(record: dict, where: str) -> RatedText:
  """text and ratings, a list of numbers by different people."""
  text = _field(record, "text", (str,), "ratings", where)
  ratings = _field(record, "ratings", (list,), "ratings", where)
  numbers = [
    r
    for r in ratings
    if isinstance(r, (int, float))
    and not isinstance(r, bool)
    and math.isfinite(r)
  ]
  if not ratings or len(numbers) < len(ratings):
    raise DataError(
      f"{where}: field 'ratings' is {str(ratings)[:60]}; it must hold finite "
      "numbers, at least one. Correct the record."
    )
  return RatedText(
    where, _answer(text, "text", where), tuple(map(float, numbers))
  )


def parse_gsm8k(record: dict, where: str) -> Demonstration:
  """question and answer; a line break joins them (Cobbe et al. 2021)."""
  question = _field(record, "question", (str,), "gsm8k", where)
  answer = _field(record, "answer", (str,), "gsm8k", where)
  return Demonstration(where, question + "\n", _answer(answer, "answer", where))


FORMATS: dict[str, Callable[[dict, str], Example]] = {
  "hh": parse_hh,
  "comparison": parse_comparison,
  "demonstration": parse_demonstration,
  "messages": parse_messages,
  "prompt": parse_prompt,
  "ratings": parse_ratings,
  "gsm8k": parse_gsm8k,
}


def _parse_all(
  source: str | Path, format: str
) -> tuple[list[Example], list[RefusedExample]]:
  if format not in FORMATS:
    raise DataError(
      f"format={format!r} is unknown. Choose one of {', '.join(FORMATS)}."
    )
  kept, refused = [], []
  for number, record in enumerate(sources.read_source(source), 1):
    try:
      kept.append(FORMATS[format](record, f"{source}:{number}"))
    except RefusedExample as error:
      refused.append(error)
  return kept, refused


def load_and_count(
  source: str | Path, format: str
) -> tuple[list[Example], Dropped]:
  """Returns the usable examples of a source, and why others were left out.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: a key of FORMATS.

  Raises:
    DataError: malformed data, an unknown format, or nothing usable at all.
  """
  kept, refused = _parse_all(source, format)
  if not kept:
    raise DataError(f"{source}: every record was refused. {refused[0]}")
  return kept, Dropped(error.reason for error in refused)


def load(source: str | Path, format: str) -> list[Example]:
  """Returns every example of a source, and refuses one that has a bad record.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: a key of FORMATS.

  Raises:
    DataError: names file, line, field and what was found; and how many
      records were refused for which reason.
  """
  kept, refused = _parse_all(source, format)
  if refused:
    counts = dict(Counter(error.reason for error in refused))
    raise DataError(
      f"{refused[0]} ({len(refused)} of {len(kept) + len(refused)} records "
      f"refused: {counts})"
    )
  return kept
