r"""Numeric answers: find THE final answer of a text, compare it as a number.

  score = 1 if |answer - reference| <= tolerance, else 0

Where the final answer stands is rewards/marked.py, its spelling
rewards/latex.py, its units rewards/units.py. Markers are read strictly, because
a policy under reward finds every gap: a marked answer must be ONE number (sign,
currency, 1,234.5, 3/4, 1 1/2, \frac{3}{4}, 25%, 1.5e3, 0.\overline{3}, 18
dollars, x = 5), and two marked answers that differ are no answer. Values are
exact fractions; whole numbers never use the tolerance.

Left out: formulas, intervals, tuples, matrices, roots (the verifier "math",
rewards/math_formulas.py), conversion between units, number words ("forty-two").
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_jax.rewards import latex, marked, rows, units
from rlhf_jax.schema import UserError

REFERENCE_FORMATS = ("gsm8k", "boxed")  # of a marked solution
MAX_CHARACTERS = 100  # of one answer; a number needs far fewer


@dataclass(frozen=True)
class Config:
  """How a numeric answer is found and compared."""

  # Markers, in order: the first that occurs in a text decides. "last_number"
  # marks nothing; it suits base models, and a policy learns to end in a guess.
  formats: tuple[str, ...] = ("gsm8k", "boxed")
  # Differing marked answers: "refuse" scores 0 (no spraying), "last" takes the
  # last one.
  several: Literal["refuse", "last"] = "refuse"
  # Read only what stands between <tag> and </tag>, once each; None: all.
  inside_tag: str | None = None
  # What stands in <tag> is no answer, also where the prompt's template opened
  # it; None: it is read as well.
  thought_tag: str | None = "think"
  # 25% is 25 ("drop", GSM8K writes its answers so) or 0.25 ("divide").
  percent: Literal["drop", "divide"] = "drop"
  # "ignore" what follows the number, or "match" it when the reference has one.
  units: Literal["ignore", "match"] = "ignore"
  relative_tolerance: float = 1e-6  # of the reference; not for whole numbers
  absolute_tolerance: float = 0.0  # not for whole numbers

  def __post_init__(self):
    unknown = [n for n in self.formats if n not in marked.FORMATS]
    if unknown or not self.formats:
      raise UserError(
        f"formats={self.formats!r}: at least one known marker is needed. "
        f"Choose from {', '.join(marked.FORMATS)}."
      )
    choices = {
      "several": ("refuse", "last"),
      "percent": ("drop", "divide"),
      "units": ("ignore", "match"),
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise UserError(
          f"{name}={getattr(self, name)!r} is unknown. Choose one of "
          f"{', '.join(allowed)}."
        )
    for name in ("inside_tag", "thought_tag"):
      marked.check_tag(name, getattr(self, name))
    if not 0.0 <= self.relative_tolerance < 0.1:
      raise UserError(
        f"relative_tolerance={self.relative_tolerance}: a tenth and more "
        "rewards guesses. Set 0 <= relative_tolerance < 0.1."
      )
    if not 0.0 <= self.absolute_tolerance < math.inf:
      raise UserError(
        f"absolute_tolerance={self.absolute_tolerance}: a distance. Set it "
        ">= 0 and finite."
      )


class Quantity(NamedTuple):
  """A number as written.

  value: exact.
  unit: singular, "" when none.
  name: of the variable that it is the value of, "" when none.
  """

  value: Fraction
  unit: str
  name: str = ""


_CURRENCIES = {
  "$": "dollar",
  "€": "euro",
  "£": "pound",
  "¥": "yen",
  "₹": "rupee",
  "₩": "won",
  "₽": "ruble",
  "₱": "peso",
  "₺": "lira",
  "₪": "shekel",
  "₫": "dong",
  "฿": "baht",
  "¢": "cent",
}
_CODES = {
  **{"USD": "dollar", "EUR": "euro", "GBP": "pound", "INR": "rupee"},
  **{"Rs": "rupee", "Rs.": "rupee", "JPY": "yen", "CNY": "yuan"},
}
_MONEY = "".join(_CURRENCIES)[:-1]  # what may stand before a number
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_OPERAND = rf"(?:{_DECIMAL})|\([+-]?(?:{_DECIMAL})\)"
_TEN = r"(?:\s*(?:[×·*]|\bx\b|(?<=[0-9])x)\s*)10\s*\^"
_CODE = rf"(?-i:(?:{'|'.join(_CODES)})(?=\s))"
_QUANTITY = re.compile(
  rf"(?P<sign>[+-]?)\s*(?P<currency>(?:US)?[{_MONEY}]|{_CODE}|)\s*(?P<inner>[+-]?)\s*"
  rf"(?:(?:(?P<whole>[0-9]+)\s+)?(?P<top>{_OPERAND})\s*/\s*(?P<under>{_OPERAND})"
  rf"|(?P<fixed>[0-9]*\.[0-9]*)(?:\\overline\{{(?P<line>[0-9]+)\}}"
  r"|\((?P<cycle>[0-9]+)\))"
  rf"|10\^(?P<power>[+-]?[0-9]{{1,3}})(?![0-9])"
  rf"|(?P<number>{_DECIMAL})"
  rf"(?:e(?P<e>[+-]?[0-9]{{1,3}})|{_TEN}\(?(?P<ten>[+-]?[0-9]{{1,3}})\)?)?)"
  rf"(?P<gap>\s*)(?P<percent>%?)(?P<after>[{_MONEY}¢]?)"
  r"\s*(?P<unit>[^\W\d_].{0,40})?",
  re.IGNORECASE,
)
_NAME = re.compile(
  r"(?P<name>m?\s*[∠△]?\s*\|?[^\W\d_]+'*(?:_\{?\w+\}?)?(?:\(\w+(?:,\w+)*\))?\|?)"
  r"\s*[=≈]\s*"
)
_SCALES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
  "dozen": 12,
}


def parse_quantity(
  text: str, percent: Literal["drop", "divide"] = "drop"
) -> Quantity | None:
  """Returns the one number that a text is, or None when it is anything else.

  Args:
    text: such as "$1,234.50", "-3/4", "1 1/2 cups", "25%", "2 dozen", "x = 5".
    percent: whether 25% is 25 or 0.25.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  text = latex.ungrouped(latex.plain(text).strip("*").strip())
  name = _NAME.match(text)
  if name is not None:
    text = latex.unwrapped(text[name.end() :])
  text, is_negated = _without_parentheses(text.lstrip("≈= "))
  found = _QUANTITY.fullmatch(latex.ungrouped(text))
  if found is None or (found["sign"] and found["inner"]):
    return None
  value = _value(found)
  read = _unit(found)
  if value is None or read is None:
    return None
  scale, unit = read
  if unit == "%" and percent == "divide":
    value /= 100
  value *= -scale if is_negated else scale
  return Quantity(value, unit, "" if name is None else _variable(name["name"]))


def _without_parentheses(text: str) -> tuple[str, bool]:
  """Returns what -(...) or (...) holds, and whether a minus stood before."""
  is_negated = False
  while found := re.match(r"([+-]?)\s*\(", text):
    if latex.balanced(text, found.end() - 1) != len(text):
      break
    inner = text[found.end() : -1].strip()
    if "," in inner:
      break  # (1,234) may be a pair
    if found[1] and inner[:1] in ("+", "-", "("):
      break  # two signs
    is_negated ^= found[1] == "-"
    text = inner
  return text, is_negated


def _variable(name: str) -> str:
  """Returns the name of a variable, "" for a word such as "total"."""
  return "" if units.is_word(name) else re.sub(r"[\s{}]", "", name)


def _unit(found: re.Match) -> tuple[int, str] | None:
  """Returns the scale and unit of a match of _QUANTITY, None for no unit."""
  written = found["unit"] or ""
  is_attached = not (found["gap"] or found["percent"] or found["after"])
  words = units.words_of(written, is_attached=is_attached)
  if words is None:
    return None
  scale = 1
  if words and words[0].lower() in _SCALES:
    scale = _SCALES[words[0].lower()]
    words = words[1:]
  unit = units.singular(words)
  currency = found["currency"] or found["after"]
  if found["currency"] and found["after"]:
    return None
  if currency:
    unit = _CODES.get(currency) or _CURRENCIES[currency[-1]]
  if found["percent"] or unit == "percent":
    unit = "%"
  return scale, unit


def _value(found: re.Match) -> Fraction | None:
  """Returns the signed exact value of a match of _QUANTITY."""

  def number(name: str) -> Fraction:
    return Fraction(found[name].strip("()").replace(",", "").rstrip(".") or "0")

  cycle = found["line"] or found["cycle"]
  if found["top"] is not None:
    if number("under") == 0:
      return None
    value = number("top") / number("under")
    if found["whole"] is not None:
      if not 0 < value < 1:
        return None  # 1 5/2 is no mixed number
      value += int(found["whole"])
  elif cycle is not None:
    digits = len(found["fixed"].partition(".")[2])
    value = number("fixed") + Fraction(
      int(cycle), (10 ** len(cycle) - 1) * 10**digits
    )
  elif found["power"] is not None:
    value = Fraction(10) ** int(found["power"])
  else:
    exponent = found["e"] if found["ten"] is None else found["ten"]
    value = number("number")
    if exponent is not None:
      value *= Fraction(10) ** int(exponent)
  return -value if "-" in (found["sign"], found["inner"]) else value


def final_answer(text: str, config: Config) -> Quantity | None:
  """Returns the number that a response commits to, or None."""
  contents = marked.committed(
    text, config.formats, config.inside_tag, config.thought_tag
  )
  if not contents:
    return None
  answers = [parse_quantity(content, config.percent) for content in contents]
  values = {None if a is None else a.value for a in answers}
  names = {a.name for a in answers if a is not None and a.name}
  if config.several == "refuse" and max(len(values), len(names)) > 1:
    return None
  return answers[-1]


def reference_answer(reference: Any, row: int, config: Config) -> Quantity:
  """Returns the number of a reference: a number, "42", or a marked solution.

  Raises:
    ValueError: it holds no single number.
  """
  text = str(reference)
  contents = marked.answers(text, REFERENCE_FORMATS)
  answer = parse_quantity(contents[-1] if contents else text, config.percent)
  if answer is None or isinstance(reference, bool):
    raise rows.bad_reference(
      row,
      reference,
      "it is not a single number, nor a solution that ends in '#### NUMBER' or "
      "\\boxed{NUMBER}",
      "Correct the record, or compare formulas with the verifier 'math' and "
      "texts with 'exact'.",
    )
  return answer


def equal(answer: Quantity, reference: Quantity, config: Config) -> bool:
  """Returns whether two quantities agree; whole numbers only exactly."""
  if answer.name and reference.name and answer.name != reference.name:
    return False
  if units.are_halves(answer.unit, reference.unit):
    return False
  if config.units == "match" and reference.unit not in ("", answer.unit):
    return False
  if answer.value.denominator == reference.value.denominator == 1:
    return answer.value == reference.value
  tolerance = Fraction(config.absolute_tolerance) + abs(
    reference.value
  ) * Fraction(config.relative_tolerance)
  return abs(answer.value - reference.value) <= tolerance


def score(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> np.ndarray:
  """Returns [N] float32: 1 where the final answer equals the reference.

  Args:
    texts: N responses.
    references: N numbers, number texts or marked solutions.
    config: how to read and compare them.

  Raises:
    ValueError: lengths differ, or a reference is no single number.
  """
  rows.check(texts, references)
  scores = np.zeros(len(texts), np.float32)
  for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
    wanted = reference_answer(reference, row, config)
    answer = final_answer(text, config)
    scores[row] = answer is not None and equal(answer, wanted, config)
  return scores
