"""Questions of fact, each with a right answer and a plausible wrong one.

One JSON object a line: {"question", "right", "wrong", "topic"}; `right` may be
a list of spellings. "ours" is a file of this package: a hundred or so facts
that a small model may know. Its even lines are for training ("ours:train") and
its odd ones for measuring ("ours:test"), so that nothing is measured that was
trained. "misconceptions" is another one: what many believe, and is wrong.

Whether a text gives an answer is decided by its words: right where it has a
spelling of the right answer and not the wrong one, wrong where it is the other
way round, and neither where it has both or none. That is a proxy: "not Lyon"
has the word Lyon.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data import files
from rlhf_jax.data.files import DataError
from rlhf_jax.schema import FieldError, absence

OURS, MISCONCEPTIONS = "ours", "misconceptions"
SHIPPED = {OURS: "facts.jsonl", MISCONCEPTIONS: "misconceptions.jsonl"}
PARTS = {"": slice(None), "train": slice(0, None, 2), "test": slice(1, None, 2)}
_WORD = re.compile(r"\w+")
_ACCENT = re.compile("[\u0300-\u036f]")
_ARTICLES = ("the", "a", "an")


@dataclasses.dataclass(frozen=True)
class Fact:
  """A question and two answers.

  where: file:line.
  question: as it is asked.
  right: spellings of the right answer, the first of which is told.
  wrong: an answer that is not right.
  topic: "" where the record has none.
  """

  where: str
  question: str
  right: tuple[str, ...]
  wrong: str
  topic: str = ""


def read(source: str, field: str = "facts") -> list[Fact]:
  """Returns the facts of a name, such as "ours:test", or of a file.

  Args:
    source: of SHIPPED, or a path; with ":train" or ":test" half of it.
    field: that gave it, for messages.

  Raises:
    FieldError: no such file or part.
    DataError: a record that is no fact, with file and line.
  """
  name, found = located(source, field)
  chosen = PARTS[name]
  return [of_record(record, where) for where, record in found[chosen]]


def located(source: str, field: str) -> tuple[str, list[tuple[str, dict]]]:
  """Returns the part that is named, and (where, record) of the whole file."""
  path, part = place(source, field)
  found = files.read(path)
  name = source.partition(":")[0]
  if name in SHIPPED:
    found = [(f"{name}:{n}", record) for n, (_, record) in enumerate(found, 1)]
  return part, found


def place(source: str, field: str = "facts") -> tuple[Path, str]:
  """Returns the file of a source, and its part.

  Raises:
    FieldError: no such file or part.
  """
  name, _, part = source.partition(":")
  if part not in PARTS:
    raise FieldError(
      f"{field}={source!r}: has the parts train and test. Write "
      f"{name + ':test'!r}."
    )
  if name in SHIPPED:
    return Path(__file__).with_name(SHIPPED[name]), part
  path = Path(name).expanduser()
  if not path.is_file():
    raise FieldError(
      f"{field}={source!r}: {absence(path)}. Name a file of facts "
      f"({{'question', 'right', 'wrong'}} a line), or {OURS!r}."
    )
  return path, part


def of_record(record: dict, where: str) -> Fact:
  """Returns the fact of a record.

  Raises:
    DataError: it is none, or its answers are not told apart.
  """
  right = record.get("right")
  right = [right] if isinstance(right, str) else right
  is_list = isinstance(right, list) and right
  texts = [record.get("question"), record.get("wrong"), record.get("topic", "")]
  texts += right if is_list else [None]
  if not is_list or not all(isinstance(text, str) for text in texts):
    raise DataError(
      f"{where}: the record has {sorted(record)}. A fact has texts 'question', "
      "'wrong', and 'right', a text or a list of spellings. Correct it."
    )
  fact = Fact(where, texts[0], tuple(right), texts[1], texts[2])
  both = [text for text in fact.right if said(text, fact) != 1.0]
  if both or said(fact.wrong, fact) != 0.0:
    raise DataError(
      f"{where}: right={right!r} and wrong={fact.wrong!r} are not told apart "
      "by their words. Give others."
    )
  return fact


def words(text: str) -> list[str]:
  """Returns the words of a text in small letters, without articles.

  Accents are dropped, and subscripts are plain digits: "Brasília" is
  "brasilia", and "H₂O" is "h2o".
  """
  plain = _ACCENT.sub("", unicodedata.normalize("NFKD", text))
  found = _WORD.findall(unicodedata.normalize("NFC", plain).lower())
  return [word for word in found if word not in _ARTICLES]


def has(text: str, answer: str) -> bool:
  """Says whether the words of an answer stand in a text, in a row."""
  inside, wanted = words(text), words(answer)
  count = len(wanted)
  return bool(wanted) and any(
    inside[n : n + count] == wanted for n in range(len(inside) - count + 1)
  )


def said(text: str, fact: Fact) -> float | None:
  """Returns 1.0 for the right answer, 0.0 for the wrong one, None for neither.

  Args:
    text: what was said.
    fact: what was asked.
  """
  is_right = any(has(text, answer) for answer in fact.right)
  is_wrong = has(text, fact.wrong)
  return None if is_right == is_wrong else float(is_right)


def topics(found: Sequence[Fact]) -> list[str]:
  """Returns the topic of each fact."""
  return [fact.topic for fact in found]
