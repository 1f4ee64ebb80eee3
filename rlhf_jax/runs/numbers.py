"""What a run has to show for itself: all its numbers, by name.

  metrics.jsonl      "sft/loss": the last value that was written
  STAGE/metrics.jsonl of a whole run: "policy/rollout/score_mean"
  stage.json         "validation_loss", "diagnosis/accuracy"
  summary.json, evaluation.json: "gold_win_rate"

NAME:best and NAME:mean are the best and the mean of all rows of metrics.jsonl,
NAME:tail the mean of the last tenth of them: a last value is noisy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import imported, metrics, strict_json
from rlhf_jax.runs import loop
from rlhf_jax.schema import FieldError, UserError

METRICS_FILE = "metrics.jsonl"
RESULTS = ("stage.json", "evaluation.json", "summary.json")
_REMEDY = "The file is damaged: delete it and run the command of the run again."
OVER = ("last", "best", "mean", "tail")
TAIL = 0.1  # of the rows
# The first of these that a run has is what it is told by, if nobody says.
USUAL = (
  "gold_win_rate",
  "proxy_win_rate",
  "verifier_win_rate",
  "validation_loss",
  "diagnosis/accuracy",
  "validation/accuracy",
  "heldout/score",
  "rollout/score_mean",
  "preference/loss",
  "reward_model/loss",
  "sft/loss",
)


def is_finished(folder: Path) -> bool:
  """Says whether a run left its result."""
  return any((folder / name).is_file() for name in RESULTS)


def columns(folder: Path) -> dict[str, list[tuple[int, float]]]:
  """Returns metric -> [(step, value)] of all metrics.jsonl of a run.

  Args:
    folder: of a stage, or of a whole run, whose stages stand before the names.
  """
  found: dict[str, list[tuple[int, float]]] = {}
  own = folder / METRICS_FILE
  inner = sorted(folder.glob(f"*/{METRICS_FILE}"))
  for path in [own] if own.is_file() else inner:
    prefix = "" if path == own else f"{path.parent.name}/"
    for row in metrics.read_metrics(path):
      for name, value in row.items():
        if name not in metrics.RESERVED and _is_number(value):
          step = row.get("step", 0)
          found.setdefault(prefix + name, []).append((step, float(value)))
  return found


def results(folder: Path) -> dict[str, float]:
  """Returns the numbers of stage.json, evaluation.json and summary.json.

  Those of an evaluation in a folder of its own below have its name in front,
  but where a summary has them.
  """
  found: dict[str, float] = {}
  if not any((folder / name).is_file() for name in RESULTS[1:]):
    for path in sorted(folder.glob(f"*/{RESULTS[1]}")):
      values = strict_json.read_object(path, _REMEDY, allows_nan=True)
      found |= dict(_leaves(values, f"{path.parent.name}/"))
  for name in RESULTS:
    path = folder / name
    if path.is_file():
      values = strict_json.read_object(path, _REMEDY, allows_nan=True)
      found |= dict(_leaves(values))
  return found


def numbers(folder: Path) -> dict[str, float]:
  """Returns name -> last value of all that a run has."""
  last = {name: rows[-1][1] for name, rows in columns(folder).items()}
  return last | results(folder)


def value(folder: Path, metric: str, best: str) -> float | None:
  """Returns one number of a run; None where it has none of the name.

  Args:
    folder: of the run.
    metric: name, or NAME:best, NAME:mean, NAME:tail.
    best: "max" or "min", for NAME:best.
  """
  name, over = split(metric)
  if over == "last":
    return numbers(folder).get(name)
  rows = np.array([x for _, x in columns(folder).get(name, ())])
  if not rows.size:
    return None
  if over == "best":
    return float(rows.max() if best == "max" else rows.min())
  count = rows.size if over == "mean" else math.ceil(TAIL * rows.size)
  return float(rows[-count:].mean())


def split(metric: str) -> tuple[str, str]:
  """Returns (name, over) of NAME:OVER.

  Raises:
    UserError: OVER is none that there is.
  """
  name, colon, over = metric.partition(":")
  if colon and over not in OVER:
    raise UserError(
      f"--metric={metric}: after the colon must be one of {', '.join(OVER)}."
    )
  return name, over if colon else "last"


def direction(metric: str, best: str = "") -> str:
  """Returns whether the "max" or the "min" of a metric is the best.

  Args:
    metric: name, with what is after its colon.
    best: what somebody said, or "".

  Raises:
    UserError: nobody said, and the name does not tell.
  """
  if best not in ("", "max", "min"):
    raise UserError(f"--best={best}: must be max or min.")
  name, _ = split(metric)
  if not best and "win_rate" in name:
    return "max"
  try:
    return loop.Schedule(keep_best=name, best=best, eval_every=1).best_of
  except FieldError as error:
    raise UserError(
      f"--metric={metric}: the name does not say whether more or less of it is "
      "better. Give --best=max or --best=min."
    ) from error


def usual(known: Mapping[str, Any]) -> str:
  """Returns the metric that tells most of a run, "" where there is none."""
  for name in USUAL:
    for found in known:
      if found == name or found.endswith(f"/{name}"):
        return found
  return ""


def need(metric: str, known: Mapping[str, Any]) -> None:
  """Raises UserError unless a metric is among those that runs have."""
  name, _ = split(metric)
  if name not in known:
    raise UserError(
      f"--metric={metric}: no run has a number of this name."
      f"{imported.nearest(name, known)} There are {', '.join(sorted(known))}."
    )


def _is_number(found: Any) -> bool:
  return isinstance(found, (int, float)) and not isinstance(found, bool)


def _leaves(
  values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, float]]:
  for name, found in values.items():
    if isinstance(found, dict):
      yield from _leaves(found, f"{prefix}{name}/")
    elif _is_number(found):
      yield f"{prefix}{name}", float(found)
