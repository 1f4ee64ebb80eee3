"""Successive halving: bad trials stop early, good ones get the rest.

  all settings train for `least` steps; the best 1/eta of them go on to eta
  times as many, and so on, up to the steps of the experiment.

Jamieson and Talwalkar 2016, arXiv:1502.07943; Karnin et al. 2013. Settings with
several seeds are told by their mean and go on together. A trial that goes on
does so from its checkpoint. Left out: Hyperband's brackets, and promotion
before a rung is full (ASHA), whose outcome depends on who ends first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.schema import UserError


def rungs(least: int, most: int, eta: int) -> list[int]:
  """Returns the steps after which trials are compared, `most` last.

  Args:
    least: steps of the first rung.
    most: steps of a whole run.
    eta: one of so many goes on, for so many times the steps.

  Raises:
    UserError: eta < 2, or least not in [1, most).
  """
  if eta < 2:
    raise UserError(
      f"--halving={eta}: one in so many goes on: must be 2 or more."
    )
  if not 1 <= least < most:
    raise UserError(
      f"--least={least}: steps of the first rung: must be at least 1, and less "
      f"than the {most} steps of a whole run."
    )
  found = []
  while least < most:
    found.append(least)
    least *= eta
  return [*found, most]


def kept(scores: Mapping[Any, float | None], eta: int, best: str) -> list[Any]:
  """Returns which settings go on: the best ceil(n / eta) that have a score.

  Args:
    scores: settings -> metric; None or NaN of one that failed.
    eta: see `rungs`.
    best: "max" or "min".
  """
  sign = 1.0 if best == "min" else -1.0
  usable = {
    key: sign * value
    for key, value in scores.items()
    if value is not None and not math.isnan(value)
  }
  ordered = sorted(usable, key=lambda key: usable[key])  # keeps order of equals
  return ordered[: math.ceil(len(scores) / eta)]


def check_schedules(config: Any, field: str) -> int:
  """Returns the steps of a whole run; refuses rates that depend on a rung.

  Args:
    config: the experiment.
    field: of the steps, "schedule.steps" or "policy.schedule.steps".

  Raises:
    UserError: no such field, no steps in it, or a learning rate that would
      decay towards the end of each rung.
  """
  *path, name = field.split(".")
  parent = _section(config, path)
  steps = None if parent is None else parent.get(name, None)
  if not isinstance(steps, int):
    raise UserError(
      f"--steps_field={field}: no field with a number of steps. Name it, such "
      "as schedule.steps or policy.schedule.steps."
    )
  if steps < 1:
    raise UserError(
      f"config.{field}={steps}: halving divides a number of steps. Set it, and "
      "epochs=0."
    )
  stage = path[:-1] if path[-1:] == ["schedule"] else path
  for part, values in _section(config, stage).items():
    _check_rate(values, ".".join(["config", *stage, part]))
  return steps


def _section(config: Any, path: Sequence[str]) -> Any:
  """Returns a section of an experiment, None where there is none."""
  for part in path:
    config = config.get(part, None) if hasattr(config, "get") else None
  return config if hasattr(config, "get") else None


def _check_rate(values: Any, field: str) -> None:
  if not hasattr(values, "get") or "learning_rate" not in values:
    return
  warmup = [values.get(f"warmup_{name}") for name in ("steps", "fraction")]
  is_even = values.get("schedule") == "constant" and not any(warmup)
  if values.get("total_steps") is None and not is_even:
    raise UserError(
      f"{field}: schedule={values.get('schedule')!r}, warmup_steps="
      f"{warmup[0]}, warmup_fraction={warmup[1]}: with halving the rate would "
      "follow the steps of each rung. Set total_steps to the updates of a "
      "whole run, or schedule='constant' and both 0."
    )


def groups(trials: Sequence[Any]) -> dict[str, list[Any]]:
  """Returns trials by their settings without the seed, in their order."""
  found: dict[str, list[Any]] = {}
  for trial in trials:
    found.setdefault(repr(sorted(trial.settings.items())), []).append(trial)
  return found
