"""Reward functions: any callable that names what it reads.

  def score(texts, records, bonus=0.5):
    return [bonus * (r["word"] in t) for t, r in zip(texts, records)]

A parameter named in FILLED receives that field of rows.Answers, or all of them
("answers"); any other is a setting. The result is N finite numbers (a list, a
numpy or jax array), or (numbers, {name: N numbers}) to log more beside them. A
function may say its highest score in an attribute: score.full_marks = 1.0.

All that can be wrong with a signature is refused in `bind`, before anything is
sampled. What a run does about a function that raises: guard.py. Left out:
asynchronous functions, gradients.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import imported
from rlhf_jax.rewards import rows
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import UserError

Parts = tuple[np.ndarray, dict[str, np.ndarray]]
FILLED = (*rows.FIELDS, "answers")


@dataclass(frozen=True)
class Bound:
  """A reward function that knows its settings.

  judge: (answers) -> [N] float32 scores, and {name: [N] float32} to log.
  takes: names of FILLED that it reads; "answers" brings all others.
  needs: those of them without which it cannot judge.
  full_marks: score of an answer that is right in everything; None: unknown.
  prepare: (references) -> None, before a run: raises UserError for what cannot
    judge any answer. None: there is nothing to try.
  """

  judge: Callable[[Answers], Parts]
  takes: frozenset[str]
  needs: frozenset[str]
  full_marks: float | None = None
  prepare: Callable[[list[Any]], None] | None = None

  def __call__(self, answers: Answers) -> Parts:
    return self.judge(answers)


def bind(
  function: Any,
  settings: dict[str, Any],
  field: str,
  path: str | None = None,
  *,
  wraps_errors: bool = True,
) -> Bound:
  """Returns a reward function with its settings, its signature checked.

  Args:
    function: see the module's docstring.
    settings: values of its other parameters.
    field, path: what gave the function, for messages; path None: its name.
    wraps_errors: what it raises becomes a ValueError that names it.

  Raises:
    ValueError: it cannot be called so. And so does the judge, where a result
      is not N finite numbers or, with wraps_errors, where the function raises.
  """
  if path is None:
    path = getattr(function, "__name__", type(function).__name__)
  label = f"{field}={path!r}"
  found = imported.check_call(function, (*FILLED, *settings), (), field, path)
  parameters = inspect.signature(function).parameters
  _check_settings(settings, parameters, label)
  filled = [name for name in found if name in FILLED]
  if not filled:
    raise UserError(
      f"{label}: reads nothing of an answer. Give it parameters among "
      f"{', '.join(FILLED)}."
    )
  needs = frozenset(
    name
    for name in filled
    if parameters[name].default is inspect.Parameter.empty
  )
  judge = functools.partial(
    _judge,
    functools.partial(function, **settings),
    filled=filled,
    needs=needs,
    label=label,
    wraps_errors=wraps_errors,
  )
  takes = FILLED if "answers" in filled else filled
  return Bound(judge, frozenset(takes), needs, _full_marks(function, label))


def _check_settings(settings: Any, parameters: Any, label: str) -> None:
  known = [name for name in parameters if name not in FILLED]
  for name in settings:
    if name in FILLED:
      raise UserError(
        f"{label}: settings has {name!r}, which the answers fill. Rename the "
        "parameter, or remove the setting."
      )
    if name not in parameters:
      raise UserError(
        f"{label}: {name!r} is no setting.{imported.nearest(name, known)} It "
        f"has {', '.join(known) if known else 'none'}."
      )


def _full_marks(function: Any, label: str) -> float | None:
  marks = getattr(function, "full_marks", None)
  if marks is None:
    return None
  if not isinstance(marks, (int, float)) or not math.isfinite(marks):
    raise UserError(
      f"{label}: full_marks={marks!r} is no finite number. Set it to the score "
      "of an answer that is right in everything, or remove it."
    )
  return float(marks)


def _judge(
  function: functools.partial,
  answers: Answers,
  *,
  filled: list[str],
  needs: frozenset[str],
  label: str,
  wraps_errors: bool,
) -> Parts:
  """Returns the checked scores of a function, and what it logs."""
  given: dict[str, Any] = {}
  for name in filled:
    values = answers if name == "answers" else getattr(answers, name)
    if values is None and name in needs:
      raise UserError(
        f"{label}: reads {name}, and these answers came without. Give {name} "
        "to rows.Answers."
      )
    if values is not None:  # a copy: the next function reads them too
      given[name] = values if name == "answers" else list(values)
  try:
    found = function(**given)
  except Exception as error:
    if not wraps_errors:
      raise
    raise UserError(
      f"{label}: raised {type(error).__name__}: {error} "
      f"({imported.line_of(error, function.func)}) on a batch of "
      f"{len(answers)}. Correct it: every answer gets a number, an empty one "
      "too."
    ) from error
  return check_result(found, answers, label)


def check_result(found: Any, answers: Answers, label: str) -> Parts:
  """Returns [N] float32 scores and {name: [N] float32} of what came back.

  Args:
    found: the result of a reward function.
    answers: N, what it judged.
    label: names the function, for messages.

  Raises:
    ValueError: anything but finite numbers, one for each answer.
  """
  logged: dict[str, Any] = {}
  is_pair = isinstance(found, tuple) and len(found) == 2
  if is_pair and isinstance(found[1], dict):
    found, logged = found
  for name in logged:
    if not isinstance(name, str):
      raise UserError(
        f"{label}: logs values under {name!r}, a {type(name).__name__}. Name "
        "them by a text."
      )
  return _numbers(found, answers, f"{label}: its scores"), {
    name: _numbers(values, answers, f"{label}: its {name!r} to log")
    for name, values in logged.items()
  }


def _numbers(values: Any, answers: Answers, start: str) -> np.ndarray:
  """Returns N finite numbers as [N] float32; a truth value is 0 or 1."""
  count = len(answers)
  remedy = f"Return a list or array of {count} numbers, one for each answer."
  is_array = hasattr(values, "dtype")
  if is_array:
    values = np.asarray(values)  # of a device in one piece, not by element
    if values.ndim != 1:
      raise UserError(f"{start} have the shape {values.shape}. {remedy}")
  elif not isinstance(values, (list, tuple)):
    raise UserError(f"{start} are a {type(values).__name__}. {remedy}")
  if len(values) != count:
    raise UserError(f"{start}: {len(values)} for {count} answers. {remedy}")
  result = np.zeros(count, np.float32)
  for row, value in enumerate(values):
    number = np.asarray(value)
    kinds = (jnp.bool_, jnp.integer, jnp.floating)  # bfloat16 among them
    is_number = number.ndim == 0 and any(
      jnp.issubdtype(number.dtype, kind) for kind in kinds
    )
    with np.errstate(over="ignore"):
      result[row] = number if is_number else np.nan
    if not np.isfinite(result[row]):
      raise UserError(
        f"{start}: row {row} is {value!r} for the answer "
        f"{answers.texts[row][:60]!r}, not a finite number (float32). {remedy}"
      )
  return result
