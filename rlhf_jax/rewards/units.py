"""Units after a number, told apart from variables.

A letter is no unit: 2x, 3i, 5n and 2k are products. A unit is a symbol of the
table (5cm, 3 kg, 9.8 m/s^2), a word (18 dollars per day, 2 eggs), or one of a
few letters that stands apart (5 m, 3 s).

Left out: conversion between units, prefixes that the table lacks.
"""

from __future__ import annotations

import re
import unicodedata

SYMBOLS = frozenset(
  "mm cm dm km nm um μm in ft yd mi sq cu ha mg kg lb lbs oz ml mL cl dl dL kL "
  "hr hrs min mins sec secs ms μs ns yr yrs wk wks Hz kHz MHz GHz kW kWh MW "
  "Pa kPa MPa kJ cal kcal mol rad deg eV keV MeV kN kV mA mph kph kmh rpm psi "
  "atm am pm a.m p.m AM PM A.M P.M USD EUR GBP cc pt qt gal Nm KB MB GB TB kB "
  "bps Mbps Ω kΩ".split()
)
LETTERS = frozenset(
  "m s g h l L N J W V A K C F".split()
)  # when they stand apart
_JOINING = frozenset(
  "a an the of per each on by for with in every total".split()
)
# Words that show a list, a range or a doubt instead of one answer.
_HEDGES = frozenset(
  "or and to not but maybe either through if than about around approximately "
  "almost nearly roughly perhaps possibly probably vs versus except unless "
  "unknown".split()
)
_FUNCTIONS = (
  "arcsin arccos arctan sin cos tan cot sec csc sinh cosh tanh log ln"
)
_FUNCTIONS += " exp sqrt root"
# Words that change a value, or are a value.
_MATHEMATICS = frozenset(
  "alpha beta gamma delta epsilon theta lambda sigma omega phi psi tau "
  "infinity inf nan pi mod modulo plus minus times over squared cubed "
  "factorial choose power halves half thirds fourths fifths sixths sevenths "
  "eighths ninths tenths hundredths thousandths equals undefined".split()
)
_APPLIED = re.compile(
  rf"(?:{'|'.join(_FUNCTIONS.split())})(?:[a-cntuvx-z]|theta|alpha)?"
)


def is_word(letters: str) -> bool:
  """Returns whether letters read as a word, not as a product of variables."""
  if is_other_script(letters):
    return True
  lower = _base_letters(letters.lower())
  if len(lower) < 3 or not lower.isalpha() or not re.search("[aeiou]", lower):
    return False
  codes = [ord(letter) for letter in lower]
  if all(b - a == 1 for a, b in zip(codes, codes[1:], strict=False)):
    return False  # pqr
  if set(lower) <= set("abcxyz"):
    return False
  return not _APPLIED.fullmatch(lower) and lower not in _MATHEMATICS


def is_other_script(letters: str) -> bool:
  """Returns whether all are letters, none Latin or Greek: names no variable."""
  return letters.isalpha() and not any(
    c < "\u0250" or "\u0370" <= c < "\u0400" for c in letters
  )


def _base_letters(letters: str) -> str:
  """Returns letters without their accents."""
  decomposed = unicodedata.normalize("NFKD", letters)
  return "".join(c for c in decomposed if not unicodedata.combining(c))


def singular(words: list[str]) -> str:
  """Returns the name of a unit, words in lower case and in the singular."""
  return " ".join(map(_singular, words))


def are_halves(one: str, other: str) -> bool:
  """Returns whether one is before noon and the other after: a value each."""
  return {one, other} == {"am", "pm"}


def _singular(word: str) -> str:
  half = word.replace(".", "").lower()
  if half in ("am", "pm"):
    return half
  if word.strip(".") in SYMBOLS | LETTERS or not word.isalpha():
    return word.strip(".")
  word = word.lower()
  if word == "feet":
    return "foot"
  ending = re.search(r"(?<=[cs]h)es$|(?<=x)es$|(?<=\w\w)s$", word)
  return word[: ending.start()] if ending else word


def _is_piece(piece: str) -> bool:
  base = re.sub(r"\^?\{?-?[1-3]\}?$", "", piece)
  return base in SYMBOLS or base in LETTERS or is_word(base)


def words_of(text: str, *, is_attached: bool) -> list[str] | None:
  """Returns the words of a unit, [] for an empty text, None for no unit.

  Args:
    text: what follows a number, without LaTeX.
    is_attached: no space parts it from the number.
  """
  words = re.sub(r"\s+\^", "^", text.strip(" .")).split()
  if len(words) > 4 or _HEDGES.intersection(word.lower() for word in words):
    return None
  for i, word in enumerate(words):
    word = word.strip(".,()").replace("'", "")
    pieces = re.split(r"[/·*-]", word)
    is_compound = len(pieces) > 1 and all(map(_is_piece, pieces))
    if i == 0 and is_attached:
      is_known = pieces[0] in SYMBOLS or (
        is_word(pieces[0]) and (len(word) > 3 or is_other_script(word))
      )
      has_power = pieces[0].rstrip("^123") in SYMBOLS
      if not (is_known or has_power or (is_compound and "/" in word)):
        return None
    elif i > 0 and word.lower() in _JOINING:
      continue
    if not is_compound and not _is_piece(word):
      return None
  return words
