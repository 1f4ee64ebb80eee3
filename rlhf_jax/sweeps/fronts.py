"""The Pareto front of a sweep: what no other setting beats in every objective.

  pareto.md, pareto.csv   a row for each setting: its fields, the mean of each
                          objective with a standard error, and whether it is on
                          the front
  pareto.png              the settings, one panel for each two objectives

A setting is dominated where another one is no worse in all objectives and
better in one. Means are compared as they are: two settings whose errors overlap
may change places, and the front of noisy means looks better than it is. The
standard error is over the runs of a setting (seeds); with one run it is that
of the run itself, where it has METRIC_standard_error.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.evaluation import canvas
from rlhf_jax.evaluation.canvas import LIGHT
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.runs import numbers
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import halving, results, running, trials
from rlhf_jax.sweeps.trials import Trial

if TYPE_CHECKING:
  from matplotlib.axes import Axes

COLUMNS = 3
PANEL_INCHES = (4.4, 3.4)
KEY = "filled: on the front, with the line; ring: dominated; bars: 1.96 errors"
INTERVAL = 1.96  # standard errors of a bar
_NONE = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Objective:
  """One number that settings are told by. best: "max" or "min"."""

  metric: str
  best: str

  @property
  def sign(self) -> float:
    """1 where more is better, else -1."""
    return 1.0 if self.best == "max" else -1.0


def read(text: str) -> list[Objective]:
  """Returns the objectives of --pareto=METRIC,METRIC,...

  A "-" before a metric says that less of it is better, a "+" that more is;
  without, its name tells.

  Raises:
    UserError: fewer than two, one of them twice, or no direction.
  """
  found = []
  for part in [x.strip() for x in text.split(",") if x.strip()]:
    best = {"-": "min", "+": "max"}.get(part[0], "")
    name = part[1:] if best else part
    try:
      found.append(Objective(name, numbers.direction(name, best)))
    except UserError as error:
      raise UserError(
        f"--pareto={text}: {name!r} does not say whether more or less of it is "
        f"better. Write +{name} or -{name}."
      ) from error
  names = [objective.metric for objective in found]
  if len(names) < 2 or len(set(names)) < len(names):
    raise UserError(
      f"--pareto={text}: a front is between two or more metrics. Give such as "
      "heldout/component/helpful,heldout/component/safe."
    )
  return found


def on_front(points: np.ndarray) -> np.ndarray:
  """Returns [S] bool: which points no other one dominates.

  Args:
    points: [S, K], more is better in each column; equal points do not dominate
      each other.
  """
  no_worse = np.all(points[None] >= points[:, None], axis=2)
  better = np.any(points[None] > points[:, None], axis=2)
  return ~np.any(no_worse & better, axis=1)


def rows_of(
  workdir: Path, found: Sequence[Trial], objectives: Sequence[Objective]
) -> list[dict[str, Any]]:
  """Returns a row for each setting that has all objectives.

  Each has its fields, "runs", "trials", METRIC and METRIC_standard_error (NaN
  where there is none) of each objective, and "front".

  Args:
    workdir: of the sweep.
    found: its trials.
    objectives: two or more.

  Raises:
    UserError: no run has a metric.
  """
  states = running.statuses(workdir, found)
  over = (running.DONE, running.HALVED)
  done = [trial for trial in found if states[trial.id].status in over]
  known: dict[str, float] = {}
  for trial in done:
    known |= numbers.numbers(workdir / trial.id)
  rows = []
  for objective in objectives:
    numbers.need(objective.metric, known)
  for members in halving.groups(done).values():
    row = dict(members[0].settings) | {"runs": len(members)}
    row["trials"] = " ".join(trial.id for trial in members)
    for objective in objectives:
      row |= _number(workdir, members, objective)
    if not any(math.isnan(row[x.metric]) for x in objectives):
      rows.append(row)
  if rows:
    points = [[x.sign * row[x.metric] for x in objectives] for row in rows]
    for row, is_best in zip(rows, on_front(np.asarray(points)), strict=True):
      row["front"] = bool(is_best)
  first = objectives[0]
  return sorted(
    rows, key=lambda row: (not row["front"], -first.sign * row[first.metric])
  )


def _number(
  workdir: Path, members: Sequence[Trial], objective: Objective
) -> dict[str, float]:
  """Returns the mean of a metric over runs and its standard error."""
  metric, best = objective.metric, objective.best
  values = [numbers.value(workdir / t.id, metric, best) for t in members]
  values = [x for x in values if x is not None and not math.isnan(x)]
  mean = float(np.mean(values)) if values else math.nan
  error = math.nan
  if len(values) > 1:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
  elif values:
    name, over = numbers.split(metric)
    own = f"{name}_standard_error"
    found = numbers.value(workdir / members[0].id, own, best)
    if over == "last" and found is not None:
      error = found
  return {metric: mean, f"{metric}_standard_error": error}


def write(
  workdir: Path, found: Sequence[Trial], objectives: Sequence[Objective]
) -> tuple[list[str], list[list[str]]]:
  """Writes pareto.md, pareto.csv and pareto.png; returns the table.

  Args:
    workdir: of the sweep.
    found: its trials.
    objectives: two or more.

  Raises:
    UserError: no run has a metric.
  """
  rows = rows_of(workdir, found, objectives)
  headers, cells = table(rows, objectives)
  lines = [
    "# Pareto front",
    "",
    "| " + " | ".join(headers) + " |",
    "|" + "---|" * len(headers),
    *("| " + " | ".join(row) + " |" for row in cells),
    "",
    "Mean and standard error. A setting is dominated where another one is no "
    "worse in all objectives and better in one.",
  ]
  workdir_lib.write_durably(workdir / "pareto.md", "\n".join(lines) + "\n")
  workdir_lib.write_durably(workdir / "pareto.csv", results.as_csv(rows))
  if rows:
    (workdir / "pareto.png").write_bytes(picture(rows, objectives))
  return headers, cells


def fields_of(
  rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]
) -> list[str]:
  """Returns the fields of the settings, in their order."""
  fixed = {"runs", "trials", "front"}
  for objective in objectives:
    fixed |= {objective.metric, f"{objective.metric}_standard_error"}
  return list(dict.fromkeys(x for row in rows for x in row if x not in fixed))


def table(
  rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]
) -> tuple[list[str], list[list[str]]]:
  """Returns the headers and the cells of the rows of settings."""
  names = fields_of(rows, objectives)
  short = trials.short_names(names) if names else {}
  arrows = {"max": "more", "min": "less"}
  headers = [
    *(short[name] for name in names),
    *(f"{x.metric} ({arrows[x.best]})" for x in objectives),
    "front",
    "runs",
  ]
  cells = []
  for row in rows:
    told = []
    for objective in objectives:
      error = row[f"{objective.metric}_standard_error"]
      text = terminal.short(row[objective.metric], 4)
      if not math.isnan(error):
        text += f" \N{PLUS-MINUS SIGN} {terminal.short(error, 2)}"
      told.append(text)
    own = [
      trials.as_text(row[name]) if name in row else _NONE for name in names
    ]
    is_best = "yes" if row["front"] else ""
    cells.append([*own, *told, is_best, str(row["runs"])])
  return headers, cells


def picture(
  rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]
) -> bytes:
  """Returns a PNG of the settings, one panel for each two objectives."""
  pairs = list(itertools.combinations(objectives, 2))
  columns = min(COLUMNS, len(pairs))
  lines = -(-len(pairs) // columns)
  inches = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines)
  with canvas.styled():
    figure, axes = canvas.new_figure(inches, lines, columns)
    for place in axes.flat[len(pairs) :]:
      place.set_axis_off()
    for place, pair in zip(axes.flat, pairs, strict=False):
      _panel(place, rows, *pair, names=fields_of(rows, objectives))
    axes[0, 0].set_title("Pareto front")
    figure.supxlabel(KEY, fontsize=7.5, color=LIGHT["muted"])
    return canvas.png_bytes(figure, 150)


def _panel(
  axes: Axes,
  rows: Sequence[Mapping[str, Any]],
  across: Objective,
  up: Objective,
  *,
  names: Sequence[str],
) -> None:
  """Draws settings by two objectives."""
  for row in rows:
    x, y = row[across.metric], row[up.metric]
    errors = [row[f"{o.metric}_standard_error"] for o in (across, up)]
    wide, tall = (
      0.0 if math.isnan(error) else INTERVAL * error for error in errors
    )
    axes.plot([x - wide, x + wide], [y, y], lw=0.8, color=LIGHT["rule"])
    axes.plot([x, x], [y - tall, y + tall], lw=0.8, color=LIGHT["rule"])
  best = sorted(
    (row[across.metric], row[up.metric]) for row in rows if row["front"]
  )
  axes.plot(
    [x for x, _ in best],
    [y for _, y in best],
    "-o",
    ms=6,
    lw=1.2,
    color=LIGHT["after"],
  )
  rest = [
    (row[across.metric], row[up.metric]) for row in rows if not row["front"]
  ]
  axes.plot(
    [x for x, _ in rest],
    [y for _, y in rest],
    "o",
    ms=6,
    mfc="none",
    color=LIGHT["before"],
  )
  for row in rows:
    label = ", ".join(
      trials.as_text(row[name]) for name in names if name in row
    )
    axes.annotate(
      label,
      (row[across.metric], row[up.metric]),
      textcoords="offset points",
      xytext=(6, 5),
      fontsize=6.5,
      color=LIGHT["muted"],
    )
  turned = {"max": "", "min": " (less is better)"}
  axes.set_xlabel(f"{across.metric}{turned[across.best]}")
  axes.set_ylabel(f"{up.metric}{turned[up.best]}")
  axes.margins(x=0.12, y=0.12)
