"""Verifiable rewards: texts and references in, one score per row out.

VERIFIERS is the whole list. Each is a frozen Config and

  score(texts, references, config) -> [N] float32

and for "code" and "sum" what to log beside the scores, {name: [N]}. `bind`
fills in the Config, which leaves score(texts, references); `bind_parts` also
returns what to log. Verifiers read the response only, never the prompt.
Lambert et al. 2024 (Tülu 3), arXiv:2411.15124; DeepSeek-R1 2025,
arXiv:2501.12948.

Left out: scaling (Tülu 3 gives 10 for a right answer); a reward's size is set
by the weights of "sum" or by the policy's shaping.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
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

Parts = tuple[np.ndarray, dict[str, np.ndarray]]
Judge = Callable[[Sequence[str], Sequence[Any], Any], Parts]


class Verifier(NamedTuple):
  """Config: its frozen dataclass. judge: (texts, references, config).

  It returns [N] scores and {name: [N]} to log.
  """

  Config: type
  judge: Judge


def _alone(score: Callable[..., np.ndarray]) -> Judge:
  """Returns a judge that logs nothing beside its scores."""

  @functools.wraps(score)
  def judge(
    texts: Sequence[str], references: Sequence[Any], config: Any
  ) -> Parts:
    return score(texts, references, config), {}

  return judge


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


def _part_references(part: Part, references: Sequence[Any]) -> list[Any]:
  """Returns what one part reads of each row's reference."""
  if part.reference is None:
    return list(references)
  for row, reference in enumerate(references):
    if not isinstance(reference, dict) or part.reference not in reference:
      raise rows.bad_reference(
        row,
        reference,
        f"it has no field {part.reference!r} for {part.verifier!r} to read",
        "Add the field, or set the part's reference=None.",
      )
  return [reference[part.reference] for reference in references]


def score_sum(
  texts: Sequence[str], references: Sequence[Any], config: SumConfig
) -> Parts:
  """Returns [N] float32, the weighted sum, 0 where the gate is shut; and parts.

  The parts, before their weights, are named by `part_names`; what a part logs
  beside its score has the part's name before its own ("code_timeout").

  Args:
    texts: N responses.
    references: N; dicts where a part names its reference.
    config: the parts.

  Raises:
    ValueError: lengths differ, or a row lacks a part's reference.
  """
  rows.check(texts, references)
  logged, total = {}, np.zeros(len(texts), np.float32)
  names = part_names(config)
  for name, part in zip(names, config.parts, strict=True):
    judge = bind_parts(part.verifier, **part.settings)
    logged[name], beside = judge(texts, _part_references(part, references))
    total = total + np.float32(part.weight) * logged[name]
    logged |= {f"{name}_{key}": values for key, values in beside.items()}
  if config.gate is not None:
    is_open = logged[names[config.gate]] > 0
    total = np.where(is_open, total, np.float32(0.0))
  return total, logged


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
  "exact": Verifier(text_matches.ExactConfig, _alone(text_matches.score_exact)),
  "number": Verifier(math_answers.Config, _alone(math_answers.score)),
  "pattern": Verifier(
    text_matches.PatternConfig, _alone(text_matches.score_pattern)
  ),
  "tags": Verifier(text_matches.TagsConfig, _alone(text_matches.score_tags)),
  "constraints": Verifier(constraints.Config, _alone(constraints.score)),
  "code": Verifier(code_tests.Config, code_tests.score),
  "sum": Verifier(SumConfig, score_sum),
}


def bind_parts(
  name: str, **settings: Any
) -> Callable[[Sequence[str], Sequence[Any]], Parts]:
  """Returns judge(texts, references) -> [N] scores, {name: [N]} to log.

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

  return functools.partial(verifier.judge, config=config)


def bind(
  name: str, **settings: Any
) -> Callable[[Sequence[str], Sequence[Any]], np.ndarray]:
  """Returns score(texts, references) -> [N] float32 with its settings set.

  Args, Raises: as `bind_parts`.
  """
  judge = bind_parts(name, **settings)
  return lambda texts, references: judge(texts, references)[0]
