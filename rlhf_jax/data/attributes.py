"""What an answer can be told to be from now on, and whether it is.

  starts, ends   with a word
  mentions       a thing ("You love tennis, and mention it in every answer.")
  short          at most so many words
  capitals       only capital letters
  language       by common words of it: a proxy for a sentence or more

An attribute is an instruction, a short form of it, and a check by the text
alone; those of Ghost Attention (Touvron et al. 2023, arXiv:2307.09288, section
3.3) are hobbies, languages and persons to act as. A person cannot be checked by
words, and is left out here. A file of one's own has {"instruction", "kind",
"value"} a line, and "short" if it likes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.data import facts, sources
from rlhf_jax.data.files import DataError

OURS = "ours"
_LETTER = re.compile(r"[^\W\d_]")
# Words that stand in most sentences; those that several languages have ("la",
# "in") are in the list of each.
_COMMON = {
  name: frozenset(words.split())
  for name, words in {
    "English": (
      "the of is and to it you that are in on a for with was this not have "
      "we they be as at from can your i me no so an"
    ),
    "French": (
      "le la les est et des une vous je de un en que qui dans pour pas ce sur "
      "il elle nous du au aux avec sont on a se me tu son plus cette y es "
      "sa ses ont peut fait aussi"
    ),
    "German": (
      "der die das ist und nicht ein ich sie es in zu den von mit auf im wir "
      "dem eine einen was man so an er sind für auch wie zum du des "
      "hat kann bei aus oder"
    ),
    "Spanish": (
      "el la los las es y que una por muy de un en con para no se lo del al "
      "su a me tu son les como más está hay pero "
      "este esta tiene puede también sus"
    ),
  }.items()
}
_OF_WORDS = ("starts", "ends", "mentions")


def _starts(text: str, value: str) -> bool:
  wanted = facts.words(value)
  return bool(wanted) and facts.words(text)[: len(wanted)] == wanted


def _ends(text: str, value: str) -> bool:
  wanted = facts.words(value)
  return bool(wanted) and facts.words(text)[-len(wanted) :] == wanted


def _short(text: str, value: str) -> bool:
  return 0 < len(text.split()) <= int(value)


def _capitals(text: str, value: str) -> bool:
  del value
  letters = _LETTER.findall(text)
  return bool(letters) and all(x == x.upper() for x in letters)


def _language(text: str, value: str) -> bool:
  inside = re.findall(r"\w+", text.lower())
  counts = {
    name: sum(word in common for word in inside)
    for name, common in _COMMON.items()
  }
  best = max(counts.values())
  return counts[value] == best > 0 and list(counts.values()).count(best) == 1


CHECKS: dict[str, Callable[[str, str], bool]] = {
  "starts": _starts,
  "ends": _ends,
  "mentions": facts.has,
  "short": _short,
  "capitals": _capitals,
  "language": _language,
}


@dataclasses.dataclass(frozen=True)
class Attribute:
  """One thing that answers are to be.

  instruction: as a user says it.
  kind, value: of CHECKS, and what it is checked against.
  short: the instruction in few words; "" for none.
  """

  instruction: str
  kind: str
  value: str
  short: str = ""

  def __post_init__(self) -> None:
    is_number = self.kind != "short" or (
      self.value.isdecimal() and int(self.value) > 0
    )
    is_known = self.kind != "language" or self.value in _COMMON
    if self.kind not in CHECKS or not is_number or not is_known:
      raise DataError(
        f"kind={self.kind!r}, value={self.value!r}: must be one of "
        f"{', '.join(CHECKS)}; short has a number, language one of "
        f"{', '.join(_COMMON)}."
      )
    if self.kind in _OF_WORDS and not facts.words(self.value):
      raise DataError(
        f"kind={self.kind!r}, value={self.value!r}: no word is left to look "
        "for, as articles and signs do not count. Give another word."
      )

  def holds(self, text: str) -> bool:
    """Says whether an answer is so."""
    return CHECKS[self.kind](text, self.value)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Attributes that are asked for together. text: as it is said."""

  attributes: tuple[Attribute, ...]
  text: str

  def holds(self, text: str) -> float:
    """Returns the share of the attributes that an answer has."""
    found = [attribute.holds(text) for attribute in self.attributes]
    return sum(found) / len(found)


def ours() -> list[Attribute]:
  """Returns the attributes of this package."""
  found = [
    Attribute(
      f"Always begin your answers with the word {word}.",
      "starts",
      word,
      f"First word: {word}.",
    )
    for word in ("Ahoy", "Well", "Listen", "Indeed")
  ]
  found += [
    Attribute(
      f"Always end your answers with the word {word}.",
      "ends",
      word,
      f"Last word: {word}.",
    )
    for word in ("cheers", "over", "amen", "bananas")
  ]
  found += [
    Attribute(
      f"You love {thing}, and mention {thing} in every answer.",
      "mentions",
      thing,
      f"Hobby: {thing}.",
    )
    for thing in ("tennis", "chess", "cooking", "sailing", "gardening")
  ]
  found += [
    Attribute(
      f"Never answer with more than {count} words.",
      "short",
      str(count),
      f"At most {count} words.",
    )
    for count in (5, 10)
  ]
  found += [
    Attribute(
      f"Always answer in {name}.", "language", name, f"Language: {name}."
    )
    for name in ("French", "German", "Spanish")
  ]
  return [
    *found,
    Attribute(
      "Answer in capital letters only.", "capitals", "", "CAPITALS ONLY."
    ),
  ]


def read(source: str, field: str = "attributes") -> list[Attribute]:
  """Returns the attributes of files, with commas between, or "ours".

  Args:
    source: those.
    field: that gave it, for messages.

  Raises:
    FieldError: no such file.
    DataError: a record that is none, with file and line.
  """
  if source == OURS:
    return ours()
  sources.check(source, field)
  found = []
  for where, record in sources.read_located(source):
    texts = [record.get(name) for name in ("instruction", "kind", "value")]
    short = record.get("short", "")
    if not all(isinstance(text, str) for text in (*texts, short)):
      raise DataError(
        f"{where}: the record has {sorted(record)}. An attribute has texts "
        "'instruction', 'kind', 'value' and perhaps 'short'. Correct it."
      )
    with sources.at(where):
      found.append(Attribute(*texts, short))
  return found


def drawn(
  known: Sequence[Attribute], count: int, most: int, seed: int
) -> list[Instruction]:
  """Returns so many instructions, each of 1 to `most` attributes.

  Attributes of one kind are not combined; half of the instructions are in
  their short form, as in Llama 2, where all of their attributes have one.

  Args:
    known: the attributes.
    count: instructions.
    most: attributes of each at most.
    seed: of the draw.
  """
  found = []
  for number in range(count):
    rng = np.random.default_rng([seed, number])
    order = [known[i] for i in rng.permutation(len(known))]
    of_kind: dict[str, Attribute] = {}  # the first of each, in their order
    for attribute in order:
      of_kind.setdefault(attribute.kind, attribute)
    chosen = tuple(of_kind.values())[: int(rng.integers(1, most + 1))]
    is_short = rng.random() < 0.5 and all(x.short for x in chosen)
    texts = [x.short if is_short else x.instruction for x in chosen]
    found.append(Instruction(chosen, " ".join(texts)))
  return found


def each(known: Sequence[Attribute]) -> list[Instruction]:
  """Returns an instruction for each attribute alone."""
  return [Instruction((x,), x.instruction) for x in known]
