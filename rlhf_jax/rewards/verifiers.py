"""Verifiable rewards: answers and references in, one score per row out.

VERIFIERS is the whole list. Each is a frozen Config and

  score(texts, references, config) -> [N] float32

and for "code", "math" and "sum" what to log beside the scores, {name: [N]}. A
score may ask for anything else of rewards/functions.py by the name of its
parameter. `bind_parts` fills in the Config, which leaves judge(answers); `bind`
leaves score(texts, references). A reward function of one's own needs no line
here: its import path (my_file.py:score) is as good as a name, within "sum" too.
Lambert et al. 2024 (Tülu 3), arXiv:2411.15124; DeepSeek-R1 2025,
arXiv:2501.12948.

Left out: scaling (Tülu 3 gives 10 for a right answer); a reward's size is set
by the weights of "sum" or by the policy's shaping.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax import imported
from rlhf_jax.rewards import (
  code_tests,
  constraints,
  functions,
  math_answers,
  math_formulas,
  rows,
  text_matches,
)
from rlhf_jax.rewards.ai import direct
from rlhf_jax.rewards.functions import Bound, Parts
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import UserError

Score = Callable[[Sequence[str], Sequence[Any]], np.ndarray]


class Verifier(NamedTuple):
  """One verifier.

  Config: its frozen dataclass.
  score: a reward function with `config`.
  prepare, full_marks: see functions.Bound; prepare gets the config too.
  """

  Config: type
  score: Callable[..., Any]
  prepare: Callable[[Sequence[Any], Any], None] | None = None
  full_marks: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
  """One summand."""

  verifier: str  # a key of VERIFIERS, or an import path
  weight: float  # 0.0 reports the part without rewarding it
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  # The key of each row's reference, a dict, that this part reads; None: all.
  reference: str | None = None


@dataclasses.dataclass(frozen=True)
class SumConfig:
  """R = sum of weight times score, METHODS 9: correct and well formed."""

  parts: tuple[Part, ...]  # summands: verifier, weight, settings, reference
  # Index of a part without which nothing counts (score 0 when it is 0): keeps
  # a policy from living off the format reward. None: no such part.
  gate: int | None = None
  # Of the parts; kept, so that a file that changes during a run changes none.
  judges: tuple[Bound, ...] = dataclasses.field(
    init=False, repr=False, compare=False
  )

  def __post_init__(self):
    parts = tuple(
      Part(**part) if isinstance(part, dict) else part for part in self.parts
    )
    object.__setattr__(self, "parts", parts)
    if not parts:
      raise UserError("parts=(): an empty sum is 0 for all. Give a Part.")
    for part in parts:
      if not math.isfinite(part.weight):
        raise UserError(
          f"weight={part.weight} of {part.verifier!r} is not finite. Give a "
          "number; 0.0 only reports the part."
        )
    judges = tuple(bind_parts(part.verifier, **part.settings) for part in parts)
    object.__setattr__(self, "judges", judges)
    if self.gate is not None and not 0 <= self.gate < len(parts):
      raise UserError(
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


def score_sum(answers: Answers, config: SumConfig) -> Parts:
  """Returns [N] float32: the weighted sum, 0 where the gate is shut; and parts.

  The parts, before their weights, are named by `part_names`; what a part logs
  beside its score has the part's name before its own ("code_timeout").

  Args:
    answers: N; references are dicts where a part names its reference.
    config: the parts.

  Raises:
    ValueError: a row lacks a part's reference, or two values to log have one
      name.
  """
  logged, total = {}, np.zeros(len(answers), np.float32)
  names = part_names(config)
  for name, part, judge in zip(names, config.parts, config.judges, strict=True):
    references = _part_references(part, answers.references)
    scores, beside = judge(dataclasses.replace(answers, references=references))
    total = total + np.float32(part.weight) * scores
    found = {f"{name}_{key}": values for key, values in beside.items()}
    for key, values in {name: scores, **found}.items():
      if key in logged:
        raise UserError(
          f"parts: two values to log are named {key!r}. Rename the function "
          f"of {part.verifier!r}, or what it logs."
        )
      logged[key] = values
  if config.gate is not None:
    is_open = logged[names[config.gate]] > 0
    total = np.where(is_open, total, np.float32(0.0))
  return total, logged


def prepare_sum(references: Sequence[Any], config: SumConfig) -> None:
  """Prepares each part, of the references that it reads."""
  for part, judge in zip(config.parts, config.judges, strict=True):
    if judge.prepare is not None:
      judge.prepare(_part_references(part, references))


def _bind_sum(bound: Bound, config: SumConfig) -> Bound:
  """Returns the bound sum, with what its parts read and what they can give."""
  needs = {name for judge in config.judges for name in judge.needs}
  if any(part.reference is not None for part in config.parts):
    needs.add("references")
  best: float | None = 0.0
  for part, judge in zip(config.parts, config.judges, strict=True):
    if part.weight > 0.0 and best is not None:
      marks = judge.full_marks
      best = None if marks is None else best + part.weight * marks
  return dataclasses.replace(
    bound,
    takes=frozenset(needs).union(*(judge.takes for judge in config.judges)),
    needs=frozenset(needs),
    full_marks=best,
  )


def label(name: str) -> str:
  """Returns the name under which a verifier's scores are logged.

  Args:
    name: a key of VERIFIERS, which is its own label, or an import path, whose
      label is the name of the function.
  """
  return name.rpartition(":")[2] if imported.is_path(name) else name


def part_names(config: SumConfig) -> list[str]:
  """Returns a name for each part: its verifier, numbered if there before."""
  names: list[str] = []
  for part in config.parts:
    name, count = label(part.verifier), 1
    while name in names:
      count += 1
      name = f"{label(part.verifier)}_{count}"
    names.append(name)
  return names


VERIFIERS: dict[str, Verifier] = {
  "exact": Verifier(text_matches.ExactConfig, text_matches.score_exact),
  "number": Verifier(math_answers.Config, math_answers.score),
  "math": Verifier(math_formulas.Config, math_formulas.score),
  "pattern": Verifier(text_matches.PatternConfig, text_matches.score_pattern),
  "tags": Verifier(text_matches.TagsConfig, text_matches.score_tags),
  "constraints": Verifier(constraints.Config, constraints.score),
  "code": Verifier(code_tests.Config, code_tests.score, code_tests.prepare),
  "ai_judge": Verifier(direct.Config, direct.score, None, None),
  "sum": Verifier(SumConfig, score_sum, prepare_sum),
}


def config_of(name: str) -> type | None:
  """Returns the Config of a verifier, None for an import path."""
  return VERIFIERS[name].Config if name in VERIFIERS else None


def bind_parts(name: str, /, **settings: Any) -> Bound:
  """Returns judge(answers) -> [N] scores, {name: [N]} to log.

  Args:
    name: a key of VERIFIERS, or the import path of a reward function (see
      rewards/functions.py).
    **settings: fields of its Config, or parameters of the function.

  Raises:
    ValueError: unknown name or setting, a value out of range, or a function
      that cannot be called.
  """
  if imported.is_path(name):
    function = imported.load(name, "verifier")
    return functions.bind(function, settings, "verifier", name)
  if name not in VERIFIERS:
    raise UserError(
      f"verifier={name!r} is unknown. Choose one of {', '.join(VERIFIERS)}, or "
      "give the import path of a function (my_file.py:score)."
    )
  verifier = VERIFIERS[name]
  config = _config(name, verifier.Config, settings)
  bound = functions.bind(
    verifier.score, {"config": config}, "verifier", name, wraps_errors=False
  )
  if verifier.prepare is not None:
    prepare = functools.partial(verifier.prepare, config=config)
    bound = dataclasses.replace(bound, prepare=prepare)
  if isinstance(config, SumConfig):
    return _bind_sum(bound, config)
  return dataclasses.replace(bound, full_marks=verifier.full_marks)


def _config(name: str, kind: type, settings: dict[str, Any]) -> Any:
  """Returns the Config of a verifier, or says which setting is wrong."""
  fields = [field.name for field in dataclasses.fields(kind) if field.init]
  for setting in settings:
    if setting not in fields:
      raise UserError(
        f"{name}.{setting} is no setting.{imported.nearest(setting, fields)} "
        f"It has {', '.join(fields)}."
      )
  try:
    return kind(**settings)
  except TypeError as error:
    raise UserError(
      f"{name}: {error}. Give every field without a default: "
      f"{', '.join(fields)}."
    ) from None


def bind(name: str, /, **settings: Any) -> Score:
  """Returns score(texts, references) -> [N] float32 with its settings set.

  For people: what else a run gives a reward function, `bind_parts` takes.

  Args, Raises: as `bind_parts`.
  """
  judge = bind_parts(name, **settings)

  def score(texts: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    rows.check(texts, references)
    return judge(Answers(list(texts), list(references)))[0]

  return score
