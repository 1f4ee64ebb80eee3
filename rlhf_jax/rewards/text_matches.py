"""Texts against texts: exact match, regular expressions, tagged sections.

Exact match compares whole normalised answers, never "contains": a response
that lists every candidate contains the right one. Patterns come from the
configuration; a reference enters one only escaped, and the policy's text never
becomes a pattern. Tagged sections are the format reward of DeepSeek-R1 (2025,
arXiv:2501.12948): <think>..</think><answer>..</answer>, each once, in order,
with nothing around them.

Left out: fuzzy and semantic matches. Python's `re` has no time limit, so a
pattern must not backtrack without bound: prefer (?>...) and x++ (3.11).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_jax.rewards import math_answers, rows
from rlhf_jax.schema import UserError

REFERENCE = "{reference}"  # stands for the escaped reference in a pattern


@dataclass(frozen=True)
class ExactConfig:
  """What two texts may differ in and still be equal."""

  # Markers of the final answer (math_answers.FORMATS), () compares all of the
  # text. Differing marked answers, or none, score 0.
  formats: tuple[str, ...] = ()
  is_case_sensitive: bool = False  # False: "Paris" equals "paris"
  keeps_punctuation: bool = False  # False: "Paris." equals "paris"

  def __post_init__(self):
    unknown = [f for f in self.formats if f not in math_answers.FORMATS]
    if unknown:
      raise UserError(
        f"formats={self.formats!r}: {unknown[0]!r} is unknown. Choose from "
        f"{', '.join(math_answers.FORMATS)}."
      )


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


def visible(text: str) -> str:
  """Returns NFKC text without invisible format characters (zero width...)."""
  return "".join(
    c
    for c in unicodedata.normalize("NFKC", text)
    if unicodedata.category(c) != "Cf"
  )


def normalise(text: str, config: ExactConfig) -> str:
  """Returns a text with spacing, and case and punctuation, taken out.

  Args:
    text: an answer.
    config: is_case_sensitive, keeps_punctuation.
  """
  text = visible(text)
  if not config.is_case_sensitive:
    text = text.casefold()
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
      answers = math_answers.marked_answers(text, config.formats)
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
    contents = [math_answers.tagged(text, tag) for tag in config.tags]
    if any(content is None or not content.strip() for content in contents):
      continue
    rebuilt = "".join(
      f"<{tag}>{content}</{tag}>"
      for tag, content in zip(config.tags, contents, strict=True)
    )
    # Space between the sections is free; anything else is not.
    scores[row] = "".join(rebuilt.split()) == "".join(text.split())
  return scores
