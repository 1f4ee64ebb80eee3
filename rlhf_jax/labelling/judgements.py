"""Records of judgements -> votes: which of two answers each annotator prefers.

A record is one JSON object a line (docs/agreement.md): a prompt, answers, and
ranks, a choice or scores by one annotator. Every pair of answers that it orders
is a vote, +1, 0 or -1, on a unit: the prompt with these two answers, in an
order that does not depend on how they were shown. So annotators who saw the
answers in other orders, or among other answers, vote on the same unit.

Left out: answers that are equal, which nobody can order (they are counted).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import formats, ranking_parsers, sources
from rlhf_jax.data.records import RefusedExample
from rlhf_jax.data.sources import DataError

OVERALL = "overall"  # the objective of ranks that name none
GOLD = "gold"  # annotator of the answers that are known to be right
# Touvron et al. 2023, section 3.2.1: how much better the better answer is.
STRENGTHS = {"significantly": 3, "better": 2, "slightly": 1, "negligibly": 0}
Order = Sequence[tuple[int, int, int]]  # (i, j, vote) of two answers


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What one annotator said of the answers to one prompt.

  where: FILE:LINE.
  annotator: who.
  prompt: the same for equal prompts.
  answers: [K] texts.
  orders: objective -> (i, j, vote) of pairs: +1 where i is better than j.
  scores: objective -> [K] numbers, NaN where there is none.
  strength: 0 to 3, or the annotator's own scale; NaN where not said.
  shown: indices of the answers as they stood, left to right; () if unknown.
  seconds: that it took, or NaN.
  is_gold: the right answer is known, and hidden among others.
  is_bad: none of the answers is acceptable.
  fields: the whole record.
  """

  where: str
  annotator: str
  prompt: str
  answers: tuple[str, ...]
  orders: Mapping[str, Order]
  scores: Mapping[str, Sequence[float]]
  strength: float
  shown: tuple[int, ...]
  seconds: float
  is_gold: bool
  is_bad: bool
  fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Votes:
  """Votes in long form, one of each annotator on a unit.

  units: [U] (prompt, first answer, second answer).
  annotators: [R] names.
  unit, annotator: [V] int.
  value: [V] in -1, 0, 1: +1 where the first answer is preferred.
  strength: [V], 0 to 3, NaN where not said.
  judgement: [V] int, its place in what was read.
  repeats: (first value, later value) of an annotator who voted twice.
  """

  units: Sequence[tuple[str, str, str]]
  annotators: Sequence[str]
  unit: np.ndarray
  annotator: np.ndarray
  value: np.ndarray
  strength: np.ndarray
  judgement: np.ndarray
  repeats: Sequence[tuple[int, int]]

  @property
  def table(self) -> np.ndarray:
    """Votes [R, U], NaN where there is none."""
    return self.placed(self.value)

  @property
  def strong_table(self) -> np.ndarray:
    """Votes times strength [R, U], NaN where either is not there."""
    return self.placed(self.value * self.strength)

  @property
  def prompts(self) -> np.ndarray:
    """The number of the prompt [U] of each unit."""
    numbers: dict[str, int] = {}
    return np.asarray(
      [numbers.setdefault(unit[0], len(numbers)) for unit in self.units], int
    )

  def placed(self, values: np.ndarray) -> np.ndarray:
    """Returns values [V] as a table [R, U]."""
    found = np.full((len(self.annotators), len(self.units)), np.nan)
    found[self.annotator, self.unit] = values
    return found


def read(source: str | Path) -> tuple[list[Judgement], Counter]:
  """Returns the judgements of a source, and what was left out of it.

  Args:
    source: files of records, see rlhf_jax/data/sources.py.

  Raises:
    DataError: a record of another shape, with file and line.
  """
  return of_records(sources.each(source))


def of_records(
  records: Iterable[tuple[str, Mapping[str, Any]]],
) -> tuple[list[Judgement], Counter]:
  """Returns the judgements of records, and what was left out of them.

  Those of the qualification before labelling are left out; a decision about
  what annotators disagreed on says what is right.

  Args:
    records: (FILE:LINE, record).
  """
  found, left_out = [], Counter()
  for where, record in records:
    if record.get("skipped"):
      left_out["skipped by the annotator"] += 1
    elif record.get("qualification"):
      left_out["of the qualification"] += 1
    elif record.get("adjudicated"):
      right = parse({**record, "annotator": None, "gold": True}, where)
      found.append(dataclasses.replace(right, fields=record))
    else:
      try:
        found.append(parse(record, where))
      except RefusedExample as error:
        left_out[error.reason] += 1
  return found, left_out


def read_gold(source: str | Path) -> list[Judgement]:
  """Returns judgements that are right, whoever gave them."""
  return [
    parse({**record, "annotator": GOLD, "gold": True}, where)
    for where, record in sources.each(source)
  ]


def parse(record: Mapping[str, Any], where: str) -> Judgement:
  """Returns the judgement of a record.

  Args:
    record: see docs/agreement.md.
    where: FILE:LINE.

  Raises:
    DataError: value, rule and remedy.
  """
  example = ranking_parsers.parse_ranking(dict(record), where)
  scores = {
    name or OVERALL: [math.nan if x is None else x for x in values]
    for name, values in example.scores.items()
  }
  orders = {
    name: _of_ranks(ranks) for name, ranks in example.objectives.items()
  }
  if "choice" in record and record.get("ranks") is None:
    orders[OVERALL] = _of_choice(record["choice"], len(example.answers))
  elif example.ranks is not None:
    orders[OVERALL] = _of_ranks(example.ranks)
  for name, values in scores.items():
    orders.setdefault(name, _of_scores(values))
  annotator, is_gold = record.get("annotator"), bool(record.get("gold"))
  if annotator in (None, ""):
    if not is_gold:
      raise DataError(
        f"{where}: field 'annotator' is missing, and agreement is between "
        "annotators. Add who judged, or 'gold': true for an answer that is "
        "known to be right."
      )
    annotator = GOLD
  acceptable, shown = example.acceptable, record.get("shown")
  return Judgement(
    where=where,
    annotator=str(annotator),
    prompt=formats.prompt_key(example),
    answers=example.answers,
    orders=orders,
    scores=scores,
    strength=_strength(example.strength),
    shown=() if shown is None else tuple(map(int, shown)),
    seconds=_seconds(record, where),
    is_gold=is_gold,
    is_bad=acceptable is not None
    and all(entry is False for entry in acceptable),
    fields=record,
  )


def _of_ranks(ranks: Sequence[float | None]) -> Order:
  return _of_scores([math.nan if x is None else -x for x in ranks])


def _of_scores(values: Sequence[float]) -> Order:
  """Returns (i, j, vote) of all pairs of which both have a number."""
  return [
    (i, j, int(np.sign(values[i] - values[j])))
    for i in range(len(values))
    for j in range(i + 1, len(values))
    if not (math.isnan(values[i]) or math.isnan(values[j]))
  ]


def _of_choice(choice: int | None, count: int) -> Order:
  """Returns the pairs that a choice among K orders; none is good: all tie."""
  if choice is None:
    return [(i, j, 0) for i in range(count) for j in range(i + 1, count)]
  return [(choice, other, 1) for other in range(count) if other != choice]


def _strength(given: str | float | None) -> float:
  if given is None:
    return math.nan
  return float(STRENGTHS[given] if isinstance(given, str) else given)


def _seconds(record: Mapping[str, Any], where: str) -> float:
  given = record.get("seconds")
  if given is None:
    return math.nan
  is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
  if not is_number or not given >= 0:
    raise DataError(
      f"{where}: field 'seconds' is {given!r}; it is a number >= 0. Correct "
      "the record."
    )
  return float(given)


def said(judgement: Judgement, field: str) -> Any:
  """Returns a field of a record, or of its annotator_fields; None for none."""
  own = judgement.fields
  if field in own:
    return own[field]
  return (own.get("annotator_fields") or {}).get(field)


def objectives(found: Iterable[Judgement]) -> list[str]:
  """Returns the objectives that somebody judged, the overall one first."""
  counts = Counter(name for judgement in found for name in judgement.orders)
  return sorted(counts, key=lambda name: (name != OVERALL, -counts[name], name))


def scored_objectives(found: Iterable[Judgement]) -> list[str]:
  """Returns the objectives with scores for each answer."""
  return sorted({name for judgement in found for name in judgement.scores})


def _pair(judgement: Judgement, i: int, j: int) -> tuple[Any, int]:
  """Returns the unit of two answers, and -1 where it turns them round."""
  first, second = judgement.answers[i], judgement.answers[j]
  if first <= second:
    return (judgement.prompt, first, second), 1
  return (judgement.prompt, second, first), -1


def votes(found: Sequence[Judgement], objective: str = OVERALL) -> Votes:
  """Returns the votes of judgements on one objective.

  The first vote of an annotator on a unit counts; later ones say how far an
  annotator agrees with himself.

  Args:
    found: judgements.
    objective: of `objectives`.
  """
  units: dict[Any, int] = {}
  names: dict[str, int] = {}
  first: dict[tuple[int, int], int] = {}
  rows: list[tuple] = []
  repeats = []
  for number, judgement in enumerate(found):
    order = judgement.orders.get(objective, ())
    for i, j, vote in order:
      key, turn = _pair(judgement, i, j)
      if key[1] == key[2]:
        continue
      who = names.setdefault(judgement.annotator, len(names))
      unit = units.setdefault(key, len(units))
      value = vote * turn
      if (who, unit) in first:
        repeats.append((first[who, unit], value))
        continue
      first[who, unit] = value
      is_pair = len(judgement.answers) == 2
      strength = judgement.strength if is_pair else math.nan
      rows.append((unit, who, value, strength, number))
  columns = np.array(rows, np.float64).reshape(-1, 5).T
  unit, who, value, strength, number = columns
  return Votes(
    units=list(units),
    annotators=list(names),
    unit=unit.astype(int),
    annotator=who.astype(int),
    value=value.astype(int),
    strength=strength,
    judgement=number.astype(int),
    repeats=repeats,
  )


def ratings(found: Sequence[Judgement], objective: str) -> np.ndarray:
  """Returns the scores [R, U] that annotators gave answers, NaN for none.

  Args:
    found: judgements.
    objective: of `scored_objectives`.
  """
  names: dict[str, int] = {}
  units: dict[tuple[str, str], int] = {}
  cells: dict[tuple[int, int], float] = {}
  for judgement in found:
    for answer, score in zip(
      judgement.answers, judgement.scores.get(objective, ()), strict=False
    ):
      if not math.isnan(score):
        who = names.setdefault(judgement.annotator, len(names))
        unit = units.setdefault((judgement.prompt, answer), len(units))
        cells.setdefault((who, unit), score)
  table = np.full((len(names), len(units)), np.nan)
  for place, score in cells.items():
    table[place] = score
  return table


def equal_answers(found: Iterable[Judgement]) -> int:
  """Returns how many pairs were judged whose answers are the same text."""
  return sum(
    judgement.answers[i] == judgement.answers[j]
    for judgement in found
    for order in judgement.orders.values()
    for i, j, _ in order
  )
