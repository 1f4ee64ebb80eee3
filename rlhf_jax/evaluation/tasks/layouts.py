"""Layouts of task files: a record of a line -> an item.

  mmlu        {"question", "choices", "answer": place or letter, "subject"};
              the letters are the choices (Hendrycks et al. 2021,
              arXiv:2009.03300)
  cloze       the same records; the texts of the choices are compared, which
              small models can do before they know what a letter stands for
  gsm8k       {"question", "answer": "... #### 42"}; the last number of the
              answer (Cobbe et al. 2021, arXiv:2110.14168)
  humaneval   {"prompt", "test", "entry_point"}; the code is run in the sandbox
              (Chen et al. 2021, arXiv:2107.03374)
  exact       {"prompt", "answer"}; the answer's text, but for case and
              punctuation
  text        {"text"}: perplexity of it
  choice      {"prompt", "choices", "answer"}: as they stand

The file may be .jsonl, .json, .csv or .parquet, plain or gzipped. A layout of
one's own is an import path (my_layout.py:NAME) of a `Layout`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.evaluation.tasks.items import (
  CHOICE,
  GENERATE,
  PERPLEXITY,
  Item,
)
from rlhf_jax.schema import UserError

LETTERS = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a file of one kind of task is read.

  parse: (record, where) -> Item.
  scorer, settings, new_tokens, stops: see items.Task.
  said: item -> what a worked example of it answers, for few-shot prompts;
    None where a layout has none.
  """

  parse: Callable[[Mapping[str, Any], str], Item]
  scorer: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  new_tokens: int = 128
  stops: tuple[str, ...] = ()
  said: Callable[[Item], str] | None = None


def _field(record: Mapping[str, Any], name: str, kinds: Any, where: str) -> Any:
  """Returns a field of a record.

  Raises:
    UserError: it is missing, empty, or of another type.
  """
  value = record.get(name)
  if not isinstance(value, kinds) or value in ("", []):
    raise UserError(
      f"{where}: field {name!r} is {value!r:.40}. This layout needs it; the "
      "fields of each are in rlhf_jax/evaluation/tasks/layouts.py."
    )
  return value


def _place(answer: Any, count: int, where: str) -> int:
  """Returns the place of the right choice, of a place or a letter."""
  if isinstance(answer, str):
    letter = answer.strip().upper()
    if len(letter) == 1 and letter in LETTERS[:count]:
      return LETTERS.index(letter)
    if letter.isdigit():
      return int(letter)
  if isinstance(answer, int) and not isinstance(answer, bool):
    return answer
  raise UserError(
    f"{where}: answer={answer!r}: must be the place of the right choice, from "
    f"0, or its letter, A to {LETTERS[count - 1]}."
  )


def _asked(record: Mapping[str, Any], where: str) -> tuple[str, list, int, str]:
  """Returns question, choices, place of the right one and subject."""
  question = _field(record, "question", str, where).strip()
  choices = _field(record, "choices", list, where)
  choices = [str(choice).strip() for choice in choices]
  if len(choices) > len(LETTERS):
    raise UserError(
      f"{where}: {len(choices)} choices: there are letters for "
      f"{len(LETTERS)}. Give fewer."
    )
  place = _place(record.get("answer"), len(choices), where)
  group = str(record.get("subject", record.get("group", "")))
  return question, choices, place, group


def mmlu(record: Mapping[str, Any], where: str) -> Item:
  """Returns a question whose choices are letters."""
  question, choices, place, group = _asked(record, where)
  letters = LETTERS[: len(choices)]
  lines = [f"{a}. {b}" for a, b in zip(letters, choices, strict=True)]
  return Item(
    where=where,
    kind=CHOICE,
    prompt="\n".join([question, *lines, "Answer:"]),
    choices=tuple(f" {letter}" for letter in letters),
    answer=place,
    group=group,
    fields=record,
  )


def cloze(record: Mapping[str, Any], where: str) -> Item:
  """Returns a question whose choices are texts."""
  question, choices, place, group = _asked(record, where)
  return Item(
    where=where,
    kind=CHOICE,
    prompt=f"Question: {question}\nAnswer:",
    choices=tuple(f" {choice}" for choice in choices),
    answer=place,
    group=group,
    fields=record,
  )


def choice(record: Mapping[str, Any], where: str) -> Item:
  """Returns a prompt, text or messages, and choices, as they stand."""
  prompt = _field(record, "prompt", (str, list), where)
  choices = _field(record, "choices", list, where)
  return Item(
    where=where,
    kind=CHOICE,
    prompt=prompt if isinstance(prompt, str) else tuple(prompt),
    choices=tuple(choices),
    answer=_place(record.get("answer"), len(choices), where),
    group=str(record.get("group", "")),
    fields=record,
  )


def gsm8k(record: Mapping[str, Any], where: str) -> Item:
  """Returns a word problem whose answer is a number."""
  question = _field(record, "question", str, where).strip()
  return Item(
    where=where,
    kind=GENERATE,
    prompt=f"Question: {question}\nAnswer:",
    answer=str(_field(record, "answer", (str, int, float), where)),
    group=str(record.get("group", "")),
    fields=record,
  )


def humaneval(record: Mapping[str, Any], where: str) -> Item:
  """Returns the head of a function, whose body is tested."""
  prompt = _field(record, "prompt", str, where)
  name = _field(record, "entry_point", str, where)
  return Item(
    where=where,
    kind=GENERATE,
    prompt=prompt,
    answer={
      "preamble": prompt,
      "setup": _field(record, "test", str, where),
      "tests": [f"check({name})"],
    },
    group=str(record.get("group", "")),
    fields=record,
  )


def exact(record: Mapping[str, Any], where: str) -> Item:
  """Returns a prompt whose answer is one text."""
  prompt = _field(record, "prompt", (str, list), where)
  return Item(
    where=where,
    kind=GENERATE,
    prompt=prompt if isinstance(prompt, str) else tuple(prompt),
    answer=_field(record, "answer", str, where),
    group=str(record.get("group", "")),
    fields=record,
  )


def text(record: Mapping[str, Any], where: str) -> Item:
  """Returns a text that stands alone."""
  return Item(
    where=where,
    kind=PERPLEXITY,
    prompt="",
    answer=_field(record, "text", str, where),
    group=str(record.get("group", "")),
    fields=record,
  )


def _right_choice(item: Item) -> str:
  return item.choices[item.answer]


def _solution(item: Item) -> str:
  """Returns a worked solution; GSM8K's notes of a calculator are left out."""
  return " " + re.sub("<<[^>]*>>", "", str(item.answer)).strip()


LAYOUTS: dict[str, Layout] = {
  "mmlu": Layout(mmlu, said=_right_choice),
  "cloze": Layout(cloze, said=_right_choice),
  "choice": Layout(choice, said=_right_choice),
  "gsm8k": Layout(
    gsm8k,
    scorer="number",
    settings={"formats": ("gsm8k", "boxed", "last_number")},
    new_tokens=256,
    stops=("\nQuestion:", "\n\nQuestion"),
    said=_solution,
  ),
  "humaneval": Layout(
    humaneval,
    scorer="code",
    new_tokens=256,
    stops=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),
  ),
  "exact": Layout(
    exact,
    scorer="exact",
    new_tokens=32,
    stops=("\n",),
    said=lambda item: f" {item.answer}",
  ),
  "text": Layout(text),
}
