"""Held-out numbers by the value of a field, before and after training.

With data.by="language", say: which languages a run taught, and which it made
the model forget (French 1999). A loss that rose is a warning; more of that
value in the data (data.weights) is the usual remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import terminal

AREA = "validation"
LOSSES = ("loss", "nll_chosen")  # up is bad


def metric(name: str, value: str) -> str:
  """Returns the name of a metric of the records with a value."""
  return f"{AREA}/{name}_{value}"


def values_in(found: Mapping[str, float]) -> list[str]:
  """Returns the values whose losses are among metrics."""
  start = metric("loss", "")
  return [x.removeprefix(start) for x in found if x.startswith(start)]


def facts(
  by: str,
  values: Sequence[str],
  names: Sequence[str],
  before: Mapping[str, float],
  after: Mapping[str, float],
) -> dict[str, Any]:
  """Returns {"by": {"field", "values"}} for stage.json, and prints it.

  Args:
    by: the field; {} is returned without one.
    values: of the field.
    names: of the metrics that are told of each.
    before, after: the metrics, named as `metric` does.
  """
  if not by:
    return {}
  found: dict[str, dict[str, float]] = {}
  for value in values:
    found[value] = {}
    for name in names:
      key = metric(name, value)
      found[value] |= {f"{name}_before": before[key], name: after[key]}
  columns = [x for name in names for x in (f"{name}_before", name)]
  rows = [
    [value, *(terminal.decimal(numbers[x], 4) for x in columns)]
    for value, numbers in found.items()
  ]
  head = [by, *(x.replace("_", " ") for x in columns)]
  print(terminal.format_table(head, rows))
  for line in forgotten(by, found):
    print(f"warn: {line}")
  return {"by": {"field": by, "values": found}}


def forgotten(by: str, values: Mapping[str, Mapping[str, float]]) -> list[str]:
  """Returns a sentence for each held-out loss of a value that rose.

  Args:
    by: the field.
    values: value -> {loss, loss_before, ...}.
  """
  return [
    f"{by}={value}: held-out {name} rose from {numbers[f'{name}_before']:.4f} "
    f"to {numbers[name]:.4f}: it is being forgotten. Give it a larger share of "
    "the data (data.weights), or train more gently."
    for value, numbers in values.items()
    for name in LOSSES
    if name in numbers and numbers[name] > numbers[f"{name}_before"]
  ]
