"""The results of a sweep: a row a trial, and a row for each setting.

  trials.jsonl, .csv         every trial: what it set, how it ended, the metric
  results.jsonl, .csv, .md   settings with their seeds together, best first

The interval is Student's of the mean over seeds (evaluation/seeds.py).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import terminal
from rlhf_jax.evaluation import seeds
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.runs import numbers
from rlhf_jax.sweeps import halving, running, trials
from rlhf_jax.sweeps.trials import Trial

COUNTS = ("runs", "mean", "low", "high", "interval_low", "interval_high")
_NONE = "\N{EN DASH}"


def choose(workdir: Path, all_trials: Sequence[Trial], metric: str) -> str:
  """Returns the metric of a sweep: the one asked for, or the usual one.

  Args:
    workdir: of the sweep.
    all_trials: of it.
    metric: that was asked for, or "".

  Returns:
    its name; "" while no trial has any.

  Raises:
    UserError: no trial has it.
  """
  known: dict[str, float] = {}
  for trial in all_trials:
    known |= numbers.numbers(workdir / trial.id)
  if metric and known:
    numbers.need(metric, known)
  return metric if metric else numbers.usual(known)


def trial_rows(
  workdir: Path, all_trials: Sequence[Trial], metric: str, best: str
) -> list[dict[str, Any]]:
  """Returns a row for each trial.

  Args:
    workdir: of the sweep.
    all_trials: of it.
    metric: that they are told by, "" for none.
    best: "max" or "min".
  """
  states = running.statuses(workdir, all_trials)
  names = _fields(all_trials)
  rows = []
  for trial in all_trials:
    state = states[trial.id]
    is_over = state.status in (running.DONE, running.HALVED)
    found = None
    if metric and is_over:
      found = numbers.value(workdir / trial.id, metric, best)
    row = {"trial": trial.id, "status": state.status, "seed": trial.seed}
    row |= {name: trial.settings.get(name) for name in names}
    if state.steps:
      row["steps"] = state.steps
    rows.append(row | {"metric": found, "seconds": round(state.seconds, 1)})
  return rows


def _fields(all_trials: Sequence[Trial]) -> list[str]:
  """Returns the fields of all trials, in their order."""
  return list(dict.fromkeys(x for t in all_trials for x in t.settings))


def group_rows(
  all_trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]], best: str
) -> list[dict[str, Any]]:
  """Returns a row for each setting, its seeds together, the best first.

  With halving those that went further come first: numbers after other steps are
  not comparable. Settings of which no run has the metric come last.

  Args:
    all_trials: of the sweep.
    rows: of them, from `trial_rows`.
    best: "max" or "min".
  """
  by_id = {row["trial"]: row for row in rows}
  names, found = _fields(all_trials), []
  for members in halving.groups(all_trials).values():
    own = [by_id[trial.id] for trial in members]
    values = [x["metric"] for x in own if x["metric"] is not None]
    spread = seeds.spread([x for x in values if not math.isnan(x)])
    row = {name: members[0].settings.get(name) for name in names}
    row |= dict(zip(COUNTS, spread, strict=True))
    row["of"] = len(own)
    if any("steps" in x for x in own):
      row["steps"] = max(x.get("steps", 0) for x in own)
    found.append(row | {"trials": " ".join(x["trial"] for x in own)})
  sign = 1.0 if best == "min" else -1.0

  def place(row: Mapping[str, Any]) -> tuple[bool, int, float]:
    mean = sign * row["mean"] if row["runs"] else 0.0
    return not row["runs"], -row.get("steps", 0), mean

  return sorted(found, key=place)


def write(
  workdir: Path,
  all_trials: Sequence[Trial],
  metric: str,
  best: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Writes all tables; returns (rows of trials, rows of settings)."""
  rows = trial_rows(workdir, all_trials, metric, best)
  settings = group_rows(all_trials, rows, best)
  for name, table in (("trials", rows), ("results", settings)):
    head = {"metric_name": metric, "best": best} if name == "results" else {}
    lines = "".join(json.dumps(_strict(head | row)) + "\n" for row in table)
    workdir_lib.write_durably(workdir / f"{name}.jsonl", lines)
    workdir_lib.write_durably(workdir / f"{name}.csv", as_csv(table))
  text = as_markdown(rows, settings, metric, best)
  workdir_lib.write_durably(workdir / "results.md", text)
  return rows, settings


def _strict(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row without NaN, which JSON has not."""
  return {
    name: None if isinstance(x, float) and not math.isfinite(x) else x
    for name, x in row.items()
  }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as CSV; what is not known is an empty cell."""
  stream = io.StringIO()
  names = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(stream, names, lineterminator="\n")
  writer.writeheader()
  for row in rows:
    strict = {k: v for k, v in _strict(row).items() if v is not None}
    writer.writerow(strict)
  return stream.getvalue()


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
  """Returns the cells of a setting, as text."""

  def number(name: str) -> str:
    found = row[name]
    return _NONE if math.isnan(found) else terminal.short(found, 4)

  interval = _NONE
  if not math.isnan(row["interval_low"]):
    interval = f"{number('interval_low')} to {number('interval_high')}"
  spread = number("low")
  if row["runs"] > 1:
    spread = f"{number('low')} to {number('high')}"
  runs = str(row["runs"])
  runs += "" if row["runs"] == row["of"] else f" of {row['of']}"
  steps = [str(row["steps"])] if "steps" in row else []
  own = [trials.as_text(row[name]) for name in names]
  return [*own, runs, number("mean"), spread, interval, *steps, row["trials"]]


def table(
  settings: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
  """Returns the headers and the cells of the rows of settings."""
  fixed = {*COUNTS, "of", "steps", "trials"}
  names = [name for name in settings[0] if name not in fixed]
  short = trials.short_names(names)
  headers = [*(short[name] for name in names), "runs", "mean", "range", "95 %"]
  if "steps" in settings[0]:
    headers.append("steps")
  return [*headers, "trials"], [_cells(row, names) for row in settings]


def as_markdown(
  rows: Sequence[Mapping[str, Any]],
  settings: Sequence[Mapping[str, Any]],
  metric: str,
  best: str,
) -> str:
  """Returns results.md."""
  headers, cells = table(settings)
  lines = [
    f"# {heading(metric, best)}",
    "",
    "| " + " | ".join(headers) + " |",
    "|" + "---|" * len(headers),
    *("| " + " | ".join(map(_escaped, row)) + " |" for row in cells),
    "",
    "Range: least to most of the runs. 95 %: Student's interval of the mean "
    "over runs.",
  ]
  open_ = [row for row in rows if row["status"] not in ("done", "halved")]
  if open_:
    said = ", ".join(f"{row['trial']} {row['status']}" for row in open_)
    lines += ["", f"Without a result: {said}."]
  return "\n".join(lines) + "\n"


def heading(metric: str, best: str) -> str:
  """Returns "sft/loss, less is better"."""
  if not metric:
    return "no trial has a result yet"
  return f"{metric}, {'less' if best == 'min' else 'more'} is better"


def _escaped(cell: str) -> str:
  return cell.replace("|", "\\|").replace("\n", " ")
