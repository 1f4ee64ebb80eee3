"""Instruction constraints that a program can check (after IFEval).

The reference of a row is the list of what its prompt asked for:

  [{"kind": "words", "at_least": 50, "at_most": 100},
   {"kind": "forbidden", "words": ["very"]}]

CHECKS names every kind; its keyword arguments are the settings. Counts ignore
what only looks like content: words and bullets need a letter or digit, and
invisible characters are removed before words are looked for.

Zhou et al. 2023, arXiv:2311.07911. Left out: response language, two answers in
one, repeating the prompt; letters of other scripts that look Latin are not
recognised, and a sentence ends at every ". ", abbreviations included.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_jax.rewards import rows
from rlhf_jax.rewards.latex import visible
from rlhf_jax.schema import UserError


@dataclass(frozen=True)
class Config:
  """How constraints add up."""

  # "all": 1 only where every constraint holds (IFEval, prompt level); "share":
  # the share that holds (instruction level).
  credit: Literal["all", "share"] = "all"

  def __post_init__(self):
    if self.credit not in ("all", "share"):
      raise UserError(
        f"credit={self.credit!r} is unknown. Choose 'all' or 'share'."
      )


class BadConstraint(ValueError):
  """A constraint that cannot be checked, whatever the response."""


def within(count: int, at_least: int | None, at_most: int | None) -> bool:
  """Returns at_least <= count <= at_most; a bound of None is open.

  Raises:
    BadConstraint: both are None, one is no number, or none can fit.
  """
  bounds = [bound for bound in (at_least, at_most) if bound is not None]
  if not bounds:
    raise BadConstraint("neither 'at_least' nor 'at_most' is given; set one")
  for bound in bounds:
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
      raise BadConstraint(f"bound {bound!r} is no number; give a number")
  if len(bounds) == 2 and bounds[0] > bounds[1]:
    raise BadConstraint(f"at_least={at_least} > at_most={at_most}; swap them")
  return all(
    [
      at_least is None or count >= at_least,
      at_most is None or count <= at_most,
    ]
  )


def count_words(text: str) -> int:
  """Returns how many space-separated parts hold a letter or digit."""
  return sum(any(c.isalnum() for c in part) for part in text.split())


def count_sentences(text: str) -> int:
  """Returns how many parts between . ! ? and white space hold a word."""
  return sum(
    count_words(part) > 0 for part in re.split(r"[.!?]+(?:\s|$)", text)
  )


def count_paragraphs(text: str) -> int:
  """Returns how many blocks between empty lines hold a word."""
  return sum(count_words(part) > 0 for part in re.split(r"\n[ \t]*\n", text))


def _count_lines(text: str, mark: str) -> int:
  lines = [re.match(mark, line) for line in text.splitlines()]
  return sum(
    found is not None and count_words(found.string[found.end() :]) > 0
    for found in lines
  )


def count_bullets(text: str) -> int:
  """Returns how many lines start with - * or • and then hold a word."""
  return _count_lines(text, r"[ \t]*[-*•][ \t]+")


def count_occurrences(text: str, word: str) -> int:
  """Returns how often a word or phrase stands alone, in any case."""
  if not isinstance(word, str) or not visible(word).strip():
    raise BadConstraint(f"word {word!r} is no text; give a word")
  inner = r"\s+".join(map(re.escape, visible(word).casefold().split()))
  return len(re.findall(rf"(?<!\w){inner}(?!\w)", text.casefold()))


def _counted(count: Callable[[str], int]) -> Callable[..., bool]:
  def check(text, *, at_least=None, at_most=None) -> bool:
    return within(count(text), at_least, at_most)

  return check


def _word_list(words: Any) -> list[str]:
  if not isinstance(words, (list, tuple)) or not words:
    raise BadConstraint(f"words={words!r} is no list; give a list of words")
  return list(words)


def _keywords(text, *, words, at_least=1) -> bool:
  """Each word occurs at least that often."""
  return all(
    [
      within(count_occurrences(text, word), at_least, None)
      for word in _word_list(words)
    ]
  )


def _forbidden(text, *, words) -> bool:
  """No word occurs."""
  return not any([count_occurrences(text, word) for word in _word_list(words)])


def _occurrences(text, *, word, at_least=None, at_most=None) -> bool:
  """A word or phrase occurs so often."""
  return within(count_occurrences(text, word), at_least, at_most)


def _letters(text, *, letter, at_least=None, at_most=None) -> bool:
  """A letter (or comma) occurs so often, in any case."""
  if not isinstance(letter, str) or len(letter) != 1:
    raise BadConstraint(f"letter={letter!r} is not one character; give one")
  wanted = _phrase(letter, "letter").casefold()
  return within(text.casefold().count(wanted), at_least, at_most)


def _phrase(setting: object, name: str = "phrase") -> str:
  """Returns a setting as `visible` shows texts; raises BadConstraint."""
  shown = visible(setting).strip() if isinstance(setting, str) else ""
  if not shown:
    raise BadConstraint(f"{name}={setting!r} is no text to look for; give one")
  return shown


def _starts_with(text, *, phrase) -> bool:
  return text.strip().startswith(_phrase(phrase))


def _ends_with(text, *, phrase) -> bool:
  return text.strip().endswith(_phrase(phrase))


def _is_json(text) -> bool:
  """The whole response, but for a code fence around it, is JSON."""
  fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text.strip(), re.DOTALL)
  try:
    value = json.loads(text if fenced is None else fenced[1])
  except (ValueError, RecursionError):
    return False
  return isinstance(value, (dict, list))


def _is_cased(text: str, change: Callable[[str], str]) -> bool:
  return any(c.isalpha() for c in text) and change(text) == text


CHECKS: dict[str, Callable[..., bool]] = {
  "characters": _counted(lambda text: len(text.strip())),
  "words": _counted(count_words),
  "different_words": _counted(
    lambda text: len(set(re.findall(r"\w+", text.casefold())))
  ),
  "sentences": _counted(count_sentences),
  "paragraphs": _counted(count_paragraphs),
  "bullets": _counted(count_bullets),
  "numbered": _counted(
    lambda text: _count_lines(text, r"[ \t]*[0-9]{1,3}[.)][ \t]+")
  ),
  "headings": _counted(lambda text: _count_lines(text, r"#{1,6}[ \t]+")),
  "placeholders": _counted(
    lambda text: len(re.findall(r"\[\w[^\[\]]*\]", text))
  ),
  "capital_words": _counted(
    lambda text: sum(
      len(word) > 1 and word.isupper()
      for word in re.findall(r"\b[^\W\d_]+\b", text)
    )
  ),
  "keywords": _keywords,
  "forbidden": _forbidden,
  "occurrences": _occurrences,
  "letters": _letters,
  "starts_with": _starts_with,
  "ends_with": _ends_with,
  "json": _is_json,
  "title": lambda text: any(
    map(count_words, re.findall(r"<<([^<>\n]+)>>", text))
  ),
  "quoted": lambda text: (
    len(text.strip()) > 2 and text.strip()[0] == text.strip()[-1] == '"'
  ),
  "lower_case": lambda text: _is_cased(text, str.lower),
  "upper_case": lambda text: _is_cased(text, str.upper),
}


def holds(text: str, constraint: dict[str, Any]) -> bool:
  """Returns whether a response meets one constraint.

  Args:
    text: the response; an empty one meets nothing.
    constraint: {"kind": a key of CHECKS, and its settings}.

  Raises:
    BadConstraint: unknown kind or setting, or a setting that cannot be.
  """
  if not isinstance(constraint, dict) or constraint.get("kind") not in CHECKS:
    raise BadConstraint(
      f"{constraint!r} has no known 'kind'; choose one of {', '.join(CHECKS)}"
    )
  settings = {name: v for name, v in constraint.items() if name != "kind"}
  check = CHECKS[constraint["kind"]]
  try:
    inspect.signature(check).bind("", **settings)
  except TypeError as error:
    raise BadConstraint(
      f"{constraint!r}: {error}; see CHECKS for the settings of this kind"
    ) from None
  satisfied = check(visible(text), **settings)
  return satisfied and count_words(visible(text)) > 0


def score(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> np.ndarray:
  """Returns [N] float32: how far each response meets its constraints.

  Args:
    texts: N responses.
    references: N non-empty lists of constraints; see the module's docstring.
    config: whether all must hold or the share counts.

  Raises:
    ValueError: lengths differ, or a constraint cannot be checked.
  """
  rows.check(texts, references)
  scores = np.zeros(len(texts), np.float32)
  for row, (text, wanted) in enumerate(zip(texts, references, strict=True)):
    if not isinstance(wanted, (list, tuple)) or not wanted:
      raise rows.bad_reference(
        row,
        wanted,
        "it is not a list of constraints, or empty: any response would do",
        "Give a list such as [{'kind': 'words', 'at_most': 50}].",
      )
    try:
      met = [holds(text, constraint) for constraint in wanted]
    except BadConstraint as error:
      raise UserError(f"references[{row}]: {error}.") from None
    scores[row] = all(met) if config.credit == "all" else np.mean(met)
  return scores
