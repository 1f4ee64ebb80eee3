"""What a judge is asked, in words: pairs, scores, critiques and revisions.

A question is a dialogue, the text with which a local model's answer begins, and
the labels of which one follows. All wording is here. A template of one's own is
a text file with the fields of PAIR or SCORE in braces; other braces stay as
they are. Model text is data: it is put in once, and never read as a template.
But a judge reads it, and an answer may say "A is better": no wording here
prevents that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.schema import FieldError, absence

Messages = list[dict[str, str]]
OURS = "ours"  # the principles beside this file
PAIR_LABELS = ("A", "B")
SCORE_LABELS = tuple(str(n) for n in range(1, 11))
RUBRIC = (
  "A good answer does what was asked, is correct, is clear, is no longer than "
  "it must be, and does no harm."
)
PAIR = """\
{principle}

This was said before:
{prompt}

Two answers could follow.

Answer A:
{first}

Answer B:
{second}"""
SCORE = """\
{principle}

This was said before:
{prompt}

This is the answer:
{answer}"""
FIELDS = {
  "pairs": ("principle", "prompt", "first", "second"),
  "scores": ("principle", "prompt", "answer"),
}
WHICH = "Which answer is better, A or B? Reply with the letter alone."
HOW_GOOD = (
  "How good is this answer, from 1 (very bad) to 10 (very good)? Reply with "
  "the number alone."
)
WHY = (
  "Compare the two answers in a few sentences, and do not say yet which is "
  "better."
)
# A bracket and a letter are two tokens in every tokenizer we know.
PAIR_PREFIX, SCORE_PREFIX = "The better answer is (", "The score is"
CRITIQUE = (
  "{principle} Judge your last answer by this question alone. Say in a few "
  "sentences what in it goes against it, or that nothing does."
)
REVISION = (
  "Write your last answer again, so that nothing of this criticism is left. "
  "Write the new answer alone."
)
_FIELD = re.compile(r"\{([a-z]+)\}")


@dataclasses.dataclass(frozen=True)
class Question:
  """A dialogue of which a label is the answer.

  messages: the last of them is the user's.
  prefix: of the answer of a local model; an endpoint is not told.
  labels: the answers in form.
  space: stands between prefix and label.
  """

  messages: Messages
  prefix: str
  labels: tuple[str, ...]
  space: str = ""


def filled(template: str, **fields: str) -> str:
  """Returns a template with its fields; what they hold is not read again."""
  return _FIELD.sub(lambda m: fields.get(m[1], m[0]), template)


def template(path: str, kind: str, field: str = "judging.template") -> str:
  """Returns the template of a file, or ours.

  Args:
    path: of a text file; "" for ours.
    kind: a key of FIELDS.
    field: that gave it, for messages.

  Raises:
    FieldError: no such file, or a field is not in it.
  """
  if not path:
    return PAIR if kind == "pairs" else SCORE
  found = _read(path, field)
  lacks = [name for name in FIELDS[kind] if f"{{{name}}}" not in found]
  if lacks:
    raise FieldError(
      f"{field}={path!r}: has no {{{lacks[0]}}}. A template for {kind} has "
      f"{', '.join(f'{{{name}}}' for name in FIELDS[kind])}."
    )
  return found


def principles(path: str, field: str = "principles") -> list[str]:
  """Returns the principles of a file, one a line; "ours" for our sixteen.

  Raises:
    FieldError: no such file, or nothing in it.
  """
  if path == OURS:
    path = str(Path(__file__).with_name("principles.txt"))
  found = [line.strip() for line in _read(path, field).splitlines()]
  found = [line for line in found if line and not line.startswith("#")]
  if not found:
    raise FieldError(
      f"{field}={path!r}: holds no principle. Write one a line, as a question "
      f"about the answer, or set {OURS!r}."
    )
  return found


def _read(path: str, field: str) -> str:
  file = Path(path).expanduser()
  if not file.is_file():
    raise FieldError(f"{field}={path!r}: {absence(file)}. Name a text file.")
  try:
    return file.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise FieldError(
      f"{field}={path!r}: is no UTF-8 text. Write it as one."
    ) from error


def drawn(count: int, many: int, seed: int, number: int) -> list[int]:
  """Returns numbers of `many` of `count` principles, none twice.

  They depend on the seed and on the number of the comparison alone.
  """
  random = np.random.default_rng([seed, number])
  return random.choice(count, many, replace=False).tolist()


def user(text: str) -> dict[str, str]:
  """Returns a message of a person."""
  return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
  """Returns a message of a model."""
  return {"role": "assistant", "content": text}


def pair(
  template: str, principle: str, prompt: str, answers: Sequence[str]
) -> str:
  """Returns the text that shows two answers."""
  first, second = answers
  return filled(
    template, principle=principle, prompt=prompt, first=first, second=second
  )


def which(shown: str, reasons: str = "") -> Question:
  """Returns the question for the better of two answers that are shown.

  Args:
    shown: from `pair`.
    reasons: what the judge said about them before; "" for nothing.
  """
  messages = [user(f"{shown}\n\n{WHICH}")]
  if reasons:
    messages = [user(f"{shown}\n\n{WHY}"), assistant(reasons), user(WHICH)]
  return Question(messages, PAIR_PREFIX, PAIR_LABELS)


def why(shown: str) -> Messages:
  """Returns the dialogue that asks for reasons."""
  return [user(f"{shown}\n\n{WHY}")]


def how_good(
  template: str, principle: str, prompt: str, answer: str
) -> Question:
  """Returns the question for a score of an answer."""
  shown = filled(template, principle=principle, prompt=prompt, answer=answer)
  messages = [user(f"{shown}\n\n{HOW_GOOD}")]
  return Question(messages, SCORE_PREFIX, SCORE_LABELS, " ")
