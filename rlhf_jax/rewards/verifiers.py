"""Verifiable rewards: texts and references in, one score per row out.

VERIFIERS is the whole list. Each is a frozen Config and

  score(texts, references, config) -> [N] float32

`bind` fills in the Config, which leaves score(texts, references). Verifiers
read the response only, never the prompt. Lambert et al. 2024 (Tülu 3),
arXiv:2411.15124; DeepSeek-R1 2025, arXiv:2501.12948.

Left out: scaling (Tülu 3 gives 10 for a right answer); a reward's size is set
by the weights of "sum" or by the policy's shaping.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.rewards import (
  code_tests,
  constraints,
  math_answers,
  rows,
  text_matches,
)


class Verifier(NamedTuple):
  """Config: its frozen dataclass. score: (texts, references, config)."""

  Config: type
  score: Callable[[Sequence[str], Sequence[Any], Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
  """One summand."""

  verifier: str  # a key of VERIFIERS
  weight: float  # 0.0 reports the part without rewarding it
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  # The key of each row's reference, a dict, that this part reads; None: all.
  reference: str | None = None


@dataclasses.dataclass(frozen=True)
class SumConfig:
  """R = sum of weight times score, METHODS 9: correct and well formed."""

  parts: tuple[Part, ...]
  # Index of a part without which nothing counts (score 0 when it is 0): keeps
  # a policy from living off the format reward. None: no such part.
  gate: int | None = None

  def __post_init__(self):
    parts = tuple(
      Part(**part) if isinstance(part, dict) else part for part in self.parts
    )
    object.__setattr__(self, "parts", parts)
    if not parts:
      raise ValueError("parts=(): an empty sum is 0 for all. Give a Part.")
    for part in parts:
      if not math.isfinite(part.weight):
        raise ValueError(
          f"weight={part.weight} of {part.verifier!r} is not finite. Give a "
          "number; 0.0 only reports the part."
        )
      bind(part.verifier, **part.settings)
    if self.gate is not None and not 0 <= self.gate < len(parts):
      raise ValueError(
        f"gate={self.gate}, {len(parts)} parts: it is the index of a part. Set "
        f"0 <= gate < {len(parts)}, or None."
      )


def score_parts(
  texts: Sequence[str], references: Sequence[Any], config: SumConfig
) -> np.ndarray:
  """Returns [N, parts] float32, unweighted; for reward/component metrics.

  Args:
    texts: N responses.
    references: N; dicts where a part names its reference.
    config: the parts.

  Raises:
    ValueError: lengths differ, or a row lacks a part's reference.
  """
  rows.check(texts, references)
  columns = []
  for part in config.parts:
    chosen = list(references)
    if part.reference is not None:
      for row, reference in enumerate(references):
        if not isinstance(reference, dict) or part.reference not in reference:
          raise rows.bad_reference(
            row,
            reference,
            f"it has no field {part.reference!r} for {part.verifier!r} to read",
            "Add the field, or set the part's reference=None.",
          )
        chosen[row] = reference[part.reference]
    columns.append(bind(part.verifier, **part.settings)(texts, chosen))
  return np.stack(columns, axis=1)


def score_sum(
  texts: Sequence[str], references: Sequence[Any], config: SumConfig
) -> np.ndarray:
  """Returns [N] float32: the weighted sum, 0 where the gate is shut.

  Args, Raises: as `score_parts`.
  """
  return total(score_parts(texts, references, config), config)


def total(parts: np.ndarray, config: SumConfig) -> np.ndarray:
  """Returns [N] float32: the weighted sum, 0 where the gate is shut.

  Args:
    parts: [N, parts] from `score_parts`.
    config: weights and gate.
  """
  weights = np.array([part.weight for part in config.parts], np.float32)
  weighted = parts @ weights
  if config.gate is None:
    return weighted
  return np.where(parts[:, config.gate] > 0, weighted, np.float32(0.0))


def part_names(config: SumConfig) -> list[str]:
  """Returns a name for each part: its verifier, numbered if there before."""
  names: list[str] = []
  for part in config.parts:
    count = sum(name.partition("_")[0] == part.verifier for name in names)
    names.append(f"{part.verifier}_{count + 1}" if count else part.verifier)
  return names


def full_marks(name: str, settings: dict[str, Any]) -> float:
  """Returns the score of an answer that is right in everything.

  Args:
    name: a key of VERIFIERS.
    settings: fields of its Config.
  """
  if name != "sum":
    return 1.0
  return sum(max(part.weight, 0.0) for part in SumConfig(**settings).parts)


VERIFIERS: dict[str, Verifier] = {
  "exact": Verifier(text_matches.ExactConfig, text_matches.score_exact),
  "number": Verifier(math_answers.Config, math_answers.score),
  "pattern": Verifier(text_matches.PatternConfig, text_matches.score_pattern),
  "tags": Verifier(text_matches.TagsConfig, text_matches.score_tags),
  "constraints": Verifier(constraints.Config, constraints.score),
  "code": Verifier(code_tests.Config, code_tests.score),
  "sum": Verifier(SumConfig, score_sum),
}


def bind(
  name: str, **settings: Any
) -> Callable[[Sequence[str], Sequence[Any]], np.ndarray]:
  """Returns score(texts, references) -> [N] float32 with its settings set.

  Args:
    name: a key of VERIFIERS.
    **settings: fields of its Config.

  Raises:
    ValueError: unknown name or field, or a value out of range.
  """
  if name not in VERIFIERS:
    raise ValueError(
      f"verifier={name!r} is unknown. Choose one of {', '.join(VERIFIERS)}."
    )
  verifier = VERIFIERS[name]
  fields = [field.name for field in dataclasses.fields(verifier.Config)]
  for setting in settings:
    if setting not in fields:
      close = difflib.get_close_matches(setting, fields, 1)
      hint = f" Did you mean {close[0]!r}?" if close else ""
      raise ValueError(
        f"{name}.{setting} is no setting.{hint} It has {', '.join(fields)}."
      )
  try:
    config = verifier.Config(**settings)
  except TypeError as error:
    raise ValueError(
      f"{name}: {error}. Give every field without a default: "
      f"{', '.join(fields)}."
    ) from None

  def score(texts: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    return verifier.score(texts, references, config)

  return score
