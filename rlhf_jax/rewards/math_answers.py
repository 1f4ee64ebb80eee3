r"""Numeric answers: find THE final answer of a text, compare it as a number.

  score = 1 if |answer - reference| <= tolerance, else 0

The final answer is what a text marks as such: "#### 42" (GSM8K, Cobbe et al.
2021), "\boxed{42}" (MATH, Hendrycks et al. 2021) or "the answer is 42".
Markers are read strictly, because a policy under reward finds every gap: a
marked answer must be ONE number (sign, currency, 1,234.5, 3/4, 1 1/2,
\frac{3}{4}, 25%, 1.5e3, 18 dollars), and two marked answers that differ are no
answer. Values are exact fractions; whole numbers never use the tolerance.

Left out: symbolic equality (x + 1 against 1 + x), intervals, tuples, matrices,
roots, conversion between units, number words ("forty-two").
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_jax.rewards import rows
from rlhf_jax.schema import UserError

FORMATS = ("gsm8k", "boxed", "phrase", "last_number")
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
  # 25% is 25 ("drop", GSM8K writes its answers so) or 0.25 ("divide").
  percent: Literal["drop", "divide"] = "drop"
  # "ignore" what follows the number, or "match" it when the reference has one.
  units: Literal["ignore", "match"] = "ignore"
  relative_tolerance: float = 1e-6  # of the reference; not for whole numbers
  absolute_tolerance: float = 0.0  # not for whole numbers

  def __post_init__(self):
    unknown = [name for name in self.formats if name not in FORMATS]
    if unknown or not self.formats:
      raise UserError(
        f"formats={self.formats!r}: at least one known marker is needed. "
        f"Choose from {', '.join(FORMATS)}."
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
  """A number as written. value: exact; unit: singular, "" when none."""

  value: Fraction
  unit: str


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_POWER = (
  r"(?:e(?P<e>[+-]?[0-9]{1,3})"
  r"|(?:\\times|\\cdot|×|\*)10\^\{?(?P<ten>[+-]?[0-9]{1,3})\}?)"
)
_QUANTITY = re.compile(
  rf"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<inner>[+-]?)\s*"
  rf"(?:(?:(?P<whole>[0-9]+)\s+)?(?P<top>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
  rf"|(?P<number>{_DECIMAL})(?:\s*{_POWER})?)"
  r"\s*(?P<percent>%?)\s*(?P<unit>[^\W\d_][^\d,;:=()]{0,40}(?:\^?[23²³])?)?",
  re.IGNORECASE,
)
_LATEX = (
  (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
  (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])"), r" \1/\2 "),
  (re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}"), r" \1 "),
  (re.compile(r"\\(?:left|right)(?![a-z])|\\[!,;: ]|~"), " "),
  (re.compile(r"\^\{?\\circ\}?|°"), " degrees "),
  (re.compile(r"\{,\}"), ","),
  (re.compile(r"\\([$%])"), r"\1"),
  (re.compile(r"\s*(\\times|\\cdot|×)\s*10\s*\^"), r"\g<1>10^"),
)
_SCALES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
  "dozen": 12,
}
_CURRENCIES = {
  "$": "dollar",
  "€": "euro",
  "£": "pound",
  "¥": "yen",
  "₹": "rupee",
}
# Words that show a list, a range or a doubt instead of one answer.
_HEDGES = {"or", "and", "to", "not", "but", "maybe", "either", "through", "if"}


def _unit(text: str) -> str:
  words = text.lower().strip(" .").split()
  if words == ["feet"]:
    return "foot"
  if words and len(words[0]) > 2 and words[0].endswith("s"):
    words[0] = words[0][:-1]
  return " ".join(words)


def parse_quantity(
  text: str, percent: Literal["drop", "divide"] = "drop"
) -> Quantity | None:
  """Returns the one number that a text is, or None when it is anything else.

  Args:
    text: such as "$1,234.50", "-3/4", "1 1/2 cups", "25%", "2 dozen".
    percent: whether 25% is 25 or 0.25.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  text = text.replace("−", "-").strip()
  for pattern, replacement in _LATEX:
    text = pattern.sub(replacement, text)
  text = text.strip().strip("*").rstrip(".").strip()
  if len(text) > 1 and text[0] == text[-1] == "$":
    text = text[1:-1].strip()
  text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text)
  found = _QUANTITY.fullmatch(text)
  if found is None or (found["sign"] and found["inner"]):
    return None
  words = (found["unit"] or "").lower().split()
  if len(words) > 4 or _HEDGES.intersection(words):
    return None
  value = _value(found)
  if value is None:
    return None
  if words and words[0] in _SCALES:
    value *= _SCALES[words[0]]
    words = words[1:]
  unit = _unit(" ".join(words))
  if found["currency"]:
    unit = _CURRENCIES[found["currency"]]
  if found["percent"]:
    unit = "%"
    value = value / 100 if percent == "divide" else value
  return Quantity(value, unit)


def _value(found: re.Match) -> Fraction | None:
  """Returns the signed exact value of a match of _QUANTITY."""

  def number(name: str) -> Fraction:
    return Fraction(found[name].replace(",", "").rstrip(".") or "0")

  if found["number"] is None:
    if number("under") == 0:
      return None
    value = number("top") / number("under")
    if found["whole"] is not None:
      value += int(found["whole"])
  else:
    exponent = found["e"] if found["ten"] is None else found["ten"]
    value = number("number")
    if exponent is not None:
      value *= Fraction(10) ** int(exponent)
  return -value if "-" in (found["sign"], found["inner"]) else value


def _boxed(text: str) -> list[str]:
  """Returns the contents of every \\boxed{...}, inner braces balanced."""
  contents = []
  for start in re.finditer(r"\\f?boxed\s*\{", text):
    depth, end = 1, start.end()
    limit = min(len(text), start.end() + 4 * MAX_CHARACTERS)
    while end < limit and depth:
      depth += {"{": 1, "}": -1}.get(text[end], 0)
      end += 1
    if depth == 0:
      contents.append(text[start.end() : end - 1])
  return contents


_PHRASE = re.compile(r"answer\s*(?:is|:)[ \t:]*([^\n]+)", re.IGNORECASE)
_LOOSE_NUMBER = re.compile(
  rf"(?<![\w.])-?(?:{_DECIMAL})(?:\s*/\s*[0-9]+)?%?(?!\w)"
)


def marked_answers(text: str, formats: Sequence[str]) -> list[str]:
  """Returns the texts of all final answers, by the first marker that occurs.

  Args:
    text: a response.
    formats: keys of FORMATS, in order of preference.

  Returns:
    contents in order of appearance; [] when nothing is marked.
  """
  for name in formats:
    if name == "gsm8k":
      found = [part.split("\n", 1)[0] for part in text.split("####")[1:]]
    elif name == "boxed":
      found = _boxed(text)
    elif name == "phrase":
      found = [
        re.split(r"\.(?:\s|$)", match[1])[0] for match in _PHRASE.finditer(text)
      ]
    else:
      found = [match[0] for match in _LOOSE_NUMBER.finditer(text)][-1:]
    if found:
      return [content.strip() for content in found]
  return []


def tagged(text: str, tag: str) -> str | None:
  """Returns what stands between <tag> and </tag>, or None unless once each."""
  opening, closing = f"<{tag}>", f"</{tag}>"
  if text.count(opening) != 1 or text.count(closing) != 1:
    return None
  start, end = text.index(opening) + len(opening), text.index(closing)
  return text[start:end] if start <= end else None


def final_answer(text: str, config: Config) -> Quantity | None:
  """Returns the number that a response commits to, or None."""
  if config.inside_tag is not None:
    inside = tagged(text, config.inside_tag)
    if inside is None:
      return None
    text = inside
  contents = marked_answers(text, config.formats)
  if not contents:
    if config.inside_tag is None:
      return None
    contents = [text]
  answers = [parse_quantity(content, config.percent) for content in contents]
  values = {answer if answer is None else answer.value for answer in answers}
  if config.several == "refuse" and len(values) > 1:
    return None
  return answers[-1]


def reference_answer(reference: Any, row: int, config: Config) -> Quantity:
  """Returns the number of a reference: a number, "42", or a marked solution.

  Raises:
    ValueError: it holds no single number.
  """
  text = str(reference)
  contents = marked_answers(text, ("gsm8k", "boxed"))
  answer = parse_quantity(contents[-1] if contents else text, config.percent)
  if answer is None or isinstance(reference, bool):
    raise rows.bad_reference(
      row,
      reference,
      "it is not a single number, nor a solution that ends in '#### NUMBER' or "
      "\\boxed{NUMBER}",
      "Correct the record, or compare texts with the verifier 'exact'.",
    )
  return answer


def equal(answer: Quantity, reference: Quantity, config: Config) -> bool:
  """Returns whether two quantities agree; whole numbers only exactly."""
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
