"""Texts against texts: exact match, regular expressions, tagged sections.

Exact match compares whole normalised answers, never "contains": a response
that lists every candidate contains the right one. Patterns come from the
configuration; a reference enters one only escaped, and the policy's text never
becomes a pattern. Tagged sections are the format reward of DeepSeek-R1 (2025,
arXiv:2501.12948): <think>..</think><answer>..</answer>, each once, in order,
with nothing around them, or thoughts and then free text.

An answer is read in one spelling of its LaTeX (rewards/latex.py), and the signs
of a formula count: x+y is not x-y, √2 not 2, (1,2) not [1,2].

Left out: fuzzy and semantic matches. Python's `re` has no time limit, so a
pattern must not backtrack without bound: prefer (?>...) and x++ (3.11).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_jax.rewards import latex, marked, rows
from rlhf_jax.rewards.latex import visible
from rlhf_jax.schema import UserError

REFERENCE = "{reference}"  # stands for the escaped reference in a pattern


@dataclass(frozen=True)
class ExactConfig:
  """What two texts may differ in and still be equal."""

  # Markers of the final answer (marked.FORMATS), () compares all of the
  # text. Differing marked answers, or none, score 0.
  formats: tuple[str, ...] = ()
  # With markers: what stands in <tag> is no answer; None: it is read as well.
  thought_tag: str | None = "think"
  is_case_sensitive: bool = False  # False: "Paris" equals "paris"
  # False: "Paris." equals "paris". Signs of a formula are no punctuation.
  keeps_punctuation: bool = False

  def __post_init__(self):
    unknown = [f for f in self.formats if f not in marked.FORMATS]
    if unknown:
      raise UserError(
        f"formats={self.formats!r}: {unknown[0]!r} is unknown. Choose from "
        f"{', '.join(marked.FORMATS)}."
      )
    marked.check_tag("thought_tag", self.thought_tag)


@dataclass(frozen=True)
class PatternConfig:
  """A regular expression that a response must match."""

  pattern: str  # Python's re; {reference} inserts the escaped reference
  mode: Literal["fullmatch", "search"] = "fullmatch"  # search invites stuffing
  is_case_sensitive: bool = True  # whether "A" of the pattern is not "a"
  spans_lines: bool = False  # whether "." matches a line break
  max_characters: int = 20_000  # a longer response scores 0: bounds the time

  def __post_init__(self):
    if self.mode not in ("fullmatch", "search"):
      raise UserError(
        f"mode={self.mode!r} is unknown. Choose 'fullmatch' or 'search'."
      )
    if self.max_characters < 1:
      raise UserError(
        f"max_characters={self.max_characters}: every response would score 0. "
        "Set it >= 1."
      )
    try:
      re.compile(self.pattern.replace(REFERENCE, "x"))
    except re.error as error:
      raise UserError(
        f"pattern={self.pattern!r} does not compile: {error}. Correct it "
        "(Python's re syntax)."
      ) from None


@dataclass(frozen=True)
class TagsConfig:
  """Sections that a response must consist of."""

  tags: tuple[str, ...] = ("think", "answer")  # DeepSeek-R1
  # The prompt's template ends in the first opening tag, so that a response
  # begins inside that section and must not open it again.
  is_opened_by_prompt: bool = False
  # After the last section stands free text, which must not be empty: with
  # tags=("think",) thoughts and then the answer.
  has_free_end: bool = False

  def __post_init__(self):
    if not self.tags or len(set(self.tags)) < len(self.tags):
      raise UserError(
        f"tags={self.tags!r}: each section has its own name. Name at least "
        "one, none twice."
      )
    if not all(re.fullmatch(r"\w+", tag) for tag in self.tags):
      raise UserError(
        f"tags={self.tags!r}: a name is made of letters, digits and _. Drop "
        "the brackets."
      )


# What only a formula has, so that its brackets and signs are no punctuation.
_FORMULA = re.compile(
  r"[\\^=<>|±∓×·√∞∈∅∪∩∖≤≥≠≈{}]|[_*+]|(?<![^\W\d_])(?:sqrt|root)\("
  r"|(?:[\d)]|\b\w)!|\b\w'(?!\w)|-\s*[-(]\s*-?[\d.]"
  r"|(?<![\w.])-\s*[^\W\d]|(?<!\w\w)(?<=[\w)])\s*-\s*(?=\w(?!\w)|[\d(])"
  r"|\)\s*/|/\s*\(|[^\W\d]\s*/\s*\d|\d\s*/\s*[^\W\d]|^[(\[].*\d.*[)\]]$"
  r"|\d\.?\(|\d\s*:\s*\d"
)


def normalise(text: str, config: ExactConfig) -> str:
  """Returns a text in one spelling, spacing, case and punctuation taken out.

  Args:
    text: an answer; LaTeX is read, see rewards/latex.py.
    config: is_case_sensitive, keeps_punctuation.
  """
  if len(text) <= marked.MAX_CHARACTERS:
    text = latex.ungrouped(latex.plain(text))
  text = visible(text)
  if not config.is_case_sensitive:
    text = text.casefold()
  if _FORMULA.search(text) and len(text) <= marked.MAX_CHARACTERS:
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))
  if not config.keeps_punctuation:
    # Signs between digits are part of a number: 3.5, -1, 1/2, 25%.
    text = re.sub(
      r"[^\w\s.,/%+-]|[.,/+-](?![0-9])|(?<=[^\W\d])[-/.,]", " ", text
    )
  return " ".join(text.split())


def _alternatives(reference: Any, row: int) -> list[str]:
  texts = reference if isinstance(reference, (list, tuple)) else [reference]
  if not texts or not all(isinstance(text, str) for text in texts):
    raise rows.bad_reference(
      row,
      reference,
      "it is neither a text nor a list of accepted texts",
      "Give a string or a non-empty list of strings.",
    )
  return list(texts)


def score_exact(
  texts: Sequence[str], references: Sequence[Any], config: ExactConfig
) -> np.ndarray:
  """Returns [N] float32: 1 where a response equals an accepted answer.

  Args:
    texts: N responses.
    references: N texts, or lists of accepted texts.
    config: what may differ.

  Raises:
    ValueError: lengths differ, or a reference is no text or empty.
  """
  rows.check(texts, references)
  scores = np.zeros(len(texts), np.float32)
  for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
    accepted = {
      normalise(option, config) for option in _alternatives(reference, row)
    }
    if "" in accepted:
      raise rows.bad_reference(
        row,
        reference,
        "nothing is left of it after normalisation, so silence would be right",
        "Correct the record, or set keeps_punctuation=True.",
      )
    answers = [text]
    if config.formats:
      said = marked.spoken(text, config.thought_tag)
      answers = marked.answers(said, config.formats)
    found = {normalise(answer, config) for answer in answers}
    scores[row] = len(found) == 1 and found <= accepted
  return scores


def score_pattern(
  texts: Sequence[str], references: Sequence[Any], config: PatternConfig
) -> np.ndarray:
  """Returns [N] float32: 1 where a response matches the pattern.

  Args:
    texts: N responses.
    references: N; texts that replace "{reference}", read as plain text, or
      anything where the pattern has none.
    config: the pattern.

  Raises:
    ValueError: lengths differ, or the pattern needs a text and gets none.
  """
  rows.check(texts, references)
  flags = (0 if config.is_case_sensitive else re.IGNORECASE) | (
    re.DOTALL if config.spans_lines else 0
  )
  scores = np.zeros(len(texts), np.float32)
  for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
    pattern = config.pattern
    if REFERENCE in pattern:
      if not isinstance(reference, str) or not reference:
        raise rows.bad_reference(
          row,
          reference,
          "the pattern holds {reference}, and this is not a non-empty text",
          "Give a string.",
        )
      pattern = pattern.replace(REFERENCE, re.escape(reference))
    if len(text) <= config.max_characters:
      match = getattr(re.compile(pattern, flags), config.mode)(text)
      scores[row] = match is not None
  return scores


def score_tags(
  texts: Sequence[str], references: Sequence[Any], config: TagsConfig
) -> np.ndarray:
  """Returns [N] float32: 1 where a response is exactly the tagged sections.

  Args:
    texts: N responses.
    references: N, not read.
    config: the sections.

  Raises:
    ValueError: lengths differ.
  """
  rows.check(texts, references)
  scores = np.zeros(len(texts), np.float32)
  for row, text in enumerate(texts):
    scores[row] = _has_form(text, config)
  return scores


def _has_form(text: str, config: TagsConfig) -> bool:
  """Returns whether a text is the sections, each once and none empty."""
  if config.is_opened_by_prompt:
    text = f"<{config.tags[0]}>{text}"
  for tag in config.tags:
    if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
      return False
  form = r"\s*".join(f"<{tag}>(.*?)</{tag}>" for tag in config.tags)
  form += "(.*)" if config.has_free_end else r"\s*"
  found = re.fullmatch(r"\s*" + form, text, re.DOTALL)
  return found is not None and all(
    visible(part).strip() for part in found.groups()
  )
