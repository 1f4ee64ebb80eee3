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
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import sources
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
  found, left_out = [], Counter()
  for where, record in sources.each(source):
    if record.get("skipped"):
      left_out["skipped by the annotator"] += 1
      continue
    found.append(parse(record, where))
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
  answers = record.get("answers")
  is_list = isinstance(answers, list) and len(answers) >= 2
  if not is_list or not all(isinstance(text, str) for text in answers):
    raise DataError(
      f"{where}: field 'answers' is {str(answers)[:60]}; it is a list of at "
      "least two texts. Correct the record."
    )
  if not isinstance(record.get("prompt"), (str, list)):
    raise DataError(
      f"{where}: field 'prompt' is missing, or no text or list of messages; "
      f"the record has {sorted(record)}. Add it."
    )
  count = len(answers)
  scores = _scores(record, count, where)
  orders = _orders(record, count, where)
  for name, values in scores.items():
    orders.setdefault(name, _of_scores(values))
  if not orders:
    raise DataError(
      f"{where}: has none of 'ranks', 'choice', 'scores', 'objectives', so it "
      "says nothing of its answers. Add one, or 'skipped': true."
    )
  annotator, is_gold = record.get("annotator"), bool(record.get("gold"))
  if annotator in (None, ""):
    if not is_gold:
      raise DataError(
        f"{where}: field 'annotator' is missing, and agreement is between "
        "annotators. Add who judged, or 'gold': true for an answer that is "
        "known to be right."
      )
    annotator = GOLD
  acceptable = record.get("acceptable")
  return Judgement(
    where=where,
    annotator=str(annotator),
    prompt=json.dumps(record["prompt"], sort_keys=True),
    answers=tuple(answers),
    orders=orders,
    scores=scores,
    strength=_strength(record, where),
    shown=_shown(record, count, where),
    seconds=_seconds(record, where),
    is_gold=is_gold,
    is_bad=isinstance(acceptable, list)
    and bool(acceptable)
    and not any(acceptable),
    fields=record,
  )


def _numbers(values: Any, name: str, count: int, where: str) -> list[float]:
  """Returns one number for each answer, NaN for null."""
  is_right = isinstance(values, list) and len(values) == count
  if not is_right or not all(
    x is None or (isinstance(x, (int, float)) and not isinstance(x, bool))
    for x in values
  ):
    raise DataError(
      f"{where}: field {name!r} is {str(values)[:60]}; it holds a number or "
      f"null for each of {count} answers. Correct the record."
    )
  return [math.nan if x is None else float(x) for x in values]


def _scores(
  record: Mapping[str, Any], count: int, where: str
) -> dict[str, list[float]]:
  given = record.get("scores")
  if given is None:
    return {}
  named = given if isinstance(given, dict) else {OVERALL: given}
  return {
    name: _numbers(values, f"scores.{name}", count, where)
    for name, values in named.items()
  }


def _orders(
  record: Mapping[str, Any], count: int, where: str
) -> dict[str, Order]:
  found: dict[str, Order] = {}
  for name, ranks in (record.get("objectives") or {}).items():
    values = _numbers(ranks, f"objectives.{name}", count, where)
    found[name] = _of_scores([-x for x in values])
  if record.get("ranks") is not None:
    values = _numbers(record["ranks"], "ranks", count, where)
    found[OVERALL] = _of_scores([-x for x in values])
  elif "choice" in record:
    found[OVERALL] = _of_choice(record["choice"], count, where)
  return found


def _of_scores(values: Sequence[float]) -> Order:
  """Returns (i, j, vote) of all pairs of which both have a number."""
  return [
    (i, j, int(np.sign(values[i] - values[j])))
    for i in range(len(values))
    for j in range(i + 1, len(values))
    if not (math.isnan(values[i]) or math.isnan(values[j]))
  ]


def _of_choice(choice: Any, count: int, where: str) -> Order:
  """Returns the pairs that a choice among K orders; none is good: all tie."""
  if choice is None:
    return [(i, j, 0) for i in range(count) for j in range(i + 1, count)]
  is_index = isinstance(choice, int) and not isinstance(choice, bool)
  if not is_index or not 0 <= choice < count:
    raise DataError(
      f"{where}: field 'choice' is {choice!r}; it is the index of the best of "
      f"{count} answers, from 0, or null. Correct the record."
    )
  return [(choice, other, 1) for other in range(count) if other != choice]


def _strength(record: Mapping[str, Any], where: str) -> float:
  given = record.get("strength")
  if given is None:
    return math.nan
  if isinstance(given, str) and given in STRENGTHS:
    return float(STRENGTHS[given])
  is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
  if not is_number or not given >= 0:
    raise DataError(
      f"{where}: field 'strength' is {given!r}; it is one of "
      f"{', '.join(STRENGTHS)}, or a number >= 0. Correct the record."
    )
  return float(given)


def _shown(
  record: Mapping[str, Any], count: int, where: str
) -> tuple[int, ...]:
  given = record.get("shown")
  if given is None:
    return ()
  if not isinstance(given, list) or sorted(map(str, given)) != sorted(
    map(str, range(count))
  ):
    raise DataError(
      f"{where}: field 'shown' is {str(given)[:60]}; it is the indices 0 to "
      f"{count - 1} of the answers, left to right. Correct the record."
    )
  return tuple(map(int, given))


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
