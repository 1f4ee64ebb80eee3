"""Which trials a sweep has: grids, products, one at a time, random search.

A trial is {field: value}, each field by its dotted name, as on the command line
without "--config.". All functions return lists of trials, so that they can be
joined with + and cut like any list.

Random search (Bergstra and Bengio 2012) draws each field of each trial from a
seed of its own: more trials, or a further field, change none of the draws of
before.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_jax.schema import UserError

Settings = dict[str, Any]
DIGITS = 4  # significant ones of a number that is drawn


@dataclasses.dataclass(frozen=True)
class Distribution:
  """Where random search draws a field from.

  at: u in [0, 1), the quantile -> value.
  """

  at: Callable[[float], Any]


def uniform(low: float, high: float) -> Distribution:
  """Returns numbers from low to high, all alike, to four digits."""
  _check_range("uniform", low, high)
  return Distribution(lambda u: _rounded(low + u * (high - low)))


def log_uniform(low: float, high: float) -> Distribution:
  """Returns numbers from low to high whose logarithm is uniform, low > 0."""
  _check_range("log_uniform", low, high)
  if low <= 0:
    raise UserError(
      f"log_uniform({low}, {high}): has no logarithm at {low}. Set low > 0."
    )
  return Distribution(lambda u: _rounded(low * (high / low) ** u))


def whole(low: int, high: int) -> Distribution:
  """Returns whole numbers from low to high, both included, all alike."""
  _check_range("whole", low, high)
  if low != int(low) or high != int(high):
    raise UserError(f"whole({low}, {high}): must be whole numbers.")
  return Distribution(lambda u: int(low) + int(u * (int(high) - int(low) + 1)))


def choice(values: Sequence[Any]) -> Distribution:
  """Returns one of some values, all alike."""
  found = _values("choice", "values", values)
  return Distribution(lambda u: found[int(u * len(found))])


def grid(fields: Mapping[str, Sequence[Any]]) -> list[Settings]:
  """Returns a trial for every combination; the last field changes fastest.

  Args:
    fields: dotted name -> values.

  Raises:
    UserError: no field, or one without values.
  """
  columns = _columns("grid", fields)
  return [
    dict(zip(columns, values, strict=True))
    for values in itertools.product(*columns.values())
  ]


def zipped(fields: Mapping[str, Sequence[Any]]) -> list[Settings]:
  """Returns a trial for each position: fields that change together.

  Args:
    fields: dotted name -> values, as many of each.

  Raises:
    UserError: no field, or other numbers of values.
  """
  columns = _columns("zipped", fields)
  counts = {name: len(values) for name, values in columns.items()}
  if len(set(counts.values())) > 1:
    said = ", ".join(f"{count} of {name}" for name, count in counts.items())
    raise UserError(
      f"zipped: {said}: fields that change together need as many values each."
    )
  return [
    dict(zip(columns, values, strict=True))
    for values in zip(*columns.values(), strict=True)
  ]


def product(*parts: Sequence[Settings]) -> list[Settings]:
  """Returns every trial of one part joined with every one of the others.

  Raises:
    UserError: two parts set one field.
  """
  found = []
  for joined in itertools.product(*parts):
    trial: Settings = {}
    for part in joined:
      twice = trial.keys() & part.keys()
      if twice:
        raise UserError(
          f"product: {min(twice)} stands in two parts. Leave it in one."
        )
      trial |= part
    found.append(trial)
  return found


def one_at_a_time(
  usual: Mapping[str, Any], fields: Mapping[str, Sequence[Any]]
) -> list[Settings]:
  """Returns the usual trial, and one for each other value of each field.

  What a metric does when one field alone moves; the picture of the sweep then
  joins in each panel only the trials that differ in its field. Fields that act
  together need a `grid`.

  Args:
    usual: dotted name -> the value that the others are compared with.
    fields: dotted name -> values; the usual one among them is not run twice.

  Raises:
    UserError: no field, one without values, or one without a usual value.
  """
  columns = _columns("one_at_a_time", fields)
  unknown = [name for name in columns if name not in usual]
  if unknown:
    raise UserError(
      f"one_at_a_time: {unknown[0]} has no usual value. Give one."
    )
  return [dict(usual)] + [
    dict(usual) | {name: value}
    for name, values in columns.items()
    for value in values
    if value != usual[name]
  ]


def random_search(
  count: int,
  fields: Mapping[str, Distribution | Sequence[Any]],
  seed: int = 0,
) -> list[Settings]:
  """Returns `count` trials, each field drawn on its own.

  Args:
    count: trials.
    fields: dotted name -> a distribution, or values to choose from.
    seed: of the draws; it has nothing to do with the seed of a run.

  Raises:
    UserError: count < 1, or a field without values.
  """
  if count < 1:
    raise UserError(f"random_search({count}, ...): must be 1 trial or more.")
  if not fields:
    raise UserError("random_search: no field. Name one or more.")
  drawn = {
    name: given
    if isinstance(given, Distribution)
    else choice(_values("random_search", name, given))
    for name, given in fields.items()
  }
  return [
    {
      name: where.at(random.Random(f"{seed} {name} {index}").random())
      for name, where in drawn.items()
    }
    for index in range(count)
  ]


def _rounded(value: float) -> float:
  return float(f"{value:.{DIGITS}g}")


def _check_range(what: str, low: float, high: float) -> None:
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise UserError(
      f"{what}({low}, {high}): the first must be the lesser, and both finite."
    )


def _values(what: str, name: str, values: Any) -> list[Any]:
  """Returns values as a list; a text is one value, not letters."""
  if isinstance(values, (str, bytes, Mapping, Distribution)) or not hasattr(
    values, "__iter__"
  ):
    raise UserError(
      f"{what}: {name}={values!r:.60}: must be a list of values, such as "
      f"[{values!r:.60}]."
    )
  found = list(values)
  if not found:
    raise UserError(f"{what}: {name} has no values. Give it one or more.")
  return found


def _columns(
  what: str, fields: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
  if not isinstance(fields, Mapping) or not fields:
    raise UserError(
      f"{what}: must be given {{field: values}}, such as "
      "{'optimizer.learning_rate': [1e-5, 1e-4]}."
    )
  return {name: _values(what, name, x) for name, x in fields.items()}
