"""A picture of a sweep: the metric against each field, one panel a field.

A dot is a run, a ring the mean of the seeds of a setting; the line joins the
means of the rings. Where one field alone was varied, each ring has its 95 %
interval. Where fields were varied one at a time from a usual trial, a panel
shows that trial and those that differ in its field, all panels on one scale. A
cross at the edge is a run without a result. The numbers are in trials.csv.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.evaluation import canvas
from rlhf_jax.evaluation.canvas import LIGHT
from rlhf_jax.sweeps import results, trials

if TYPE_CHECKING:
  from matplotlib.axes import Axes

COLUMNS = 3
PANEL_INCHES = (4.0, 3.1)
KEY = (
  "dot: a run; ring: mean of the seeds of a setting; line: mean of the rings; "
  "cross: no result"
)
TICKS = 8  # values of a field that all have their tick
LOG_RATIO = 8.0  # of the largest to the least value: from here on a log axis
_FIXED = ("trial", "status", "seed", "steps", "metric", "seconds")


def varied(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the fields that differ between trials, the seed last."""
  names = [name for name in rows[0] if name not in _FIXED]
  found = [x for x in names if len({repr(row[x]) for row in rows}) > 1]
  has_seeds = len({row["seed"] for row in rows}) > 1
  return found if found or not has_seeds else ["seed"]


def usual(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict:
  """Returns the setting that all others differ from in one field at most.

  {} where there is none, as in a grid, or where one field alone was varied.

  Args:
    settings: of all settings.
    names: the fields that differ.
  """
  if len(names) < 2 or len(settings) <= len(names):
    return {}
  for one in settings:
    apart = [sum(x[name] != one[name] for name in names) for x in settings]
    if max(apart) <= 1:
      return {name: one[name] for name in names}
  return {}


def _of_panel(
  rows: Sequence[Mapping[str, Any]], base: Mapping[str, Any], name: str
) -> list[Mapping[str, Any]]:
  """Returns the rows that differ from the usual setting in one field only."""
  return [
    row for row in rows if all(row[x] == base[x] for x in base if x != name)
  ]


def write(
  path: Path,
  rows: Sequence[Mapping[str, Any]],
  settings: Sequence[Mapping[str, Any]],
  metric: str,
  best: str,
) -> bool:
  """Writes the picture as PNG; says whether there was something to draw.

  Args:
    path: the file.
    rows: of trials.
    settings: of all settings.
    metric: name.
    best: "max" or "min".
  """
  names = varied(rows)
  if not names or all(row["metric"] is None for row in rows):
    return False
  columns = 2 if len(names) == 4 else min(COLUMNS, len(names))
  lines = -(-len(names) // columns)
  inches = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines)
  with canvas.styled():
    figure, axes = canvas.new_figure(inches, lines, columns)
    for place in axes.flat[len(names) :]:
      place.set_axis_off()
    short = trials.short_names(names)
    base = usual(settings, names) if "seed" not in names else {}
    for place, name in zip(axes.flat, names, strict=False):
      own = _of_panel(rows, base, name), _of_panel(settings, base, name)
      is_alone = len(names) == 1 or bool(base)
      _panel(place, name, *own, is_alone=is_alone)
      if base:  # how much each field matters is seen on one scale
        place.set_ylim(*_limits(rows))
      place.set_xlabel(short[name])
      place.set_ylabel(metric)
    axes[0, 0].set_title(results.heading(metric, best))
    text = KEY if columns > 1 else KEY.replace("; line", "\nline")
    figure.supxlabel(text, fontsize=7.5, color=LIGHT["muted"])
    picture = canvas.png_bytes(figure, 150)
  path.write_bytes(picture)
  return True


def _panel(
  axes: Axes,
  name: str,
  rows: Sequence[Mapping[str, Any]],
  settings: Sequence[Mapping[str, Any]],
  *,
  is_alone: bool,
) -> None:
  """Draws the metric against one field."""
  place = _scale(axes, [row[name] for row in rows])
  seen = [row for row in rows if row["metric"] is not None]
  axes.plot(
    [place(row[name]) for row in seen],
    [row["metric"] for row in seen],
    "o",
    ms=3.5,
    alpha=0.55,
    color=LIGHT["before"],
  )
  known = [x for x in settings if x["runs"] and name in x]  # not the seed
  means: dict[float, list[float]] = {}
  for x in known:
    means.setdefault(place(x[name]), []).append(x["mean"])
    if is_alone and not math.isnan(x["interval_low"]):
      ends = [x["interval_low"], x["interval_high"]]
      axes.plot([place(x[name])] * 2, ends, lw=1.2, color=LIGHT["after"])
  if is_alone or len(means) <= TICKS:
    places = sorted(means)
    heights = [sum(means[at]) / len(means[at]) for at in places]
    axes.plot(places, heights, lw=1.0, color=LIGHT["after"])
  rings = [(at, height) for at in means for height in means[at]]
  axes.plot(*_columns(rings), "o", ms=6, mfc="none", color=LIGHT["after"])
  missing = [row for row in rows if row["metric"] is None]
  axes.plot(
    [place(row[name]) for row in missing],
    [0.02] * len(missing),
    "x",
    ms=5,
    color=LIGHT["halt"],
    transform=axes.get_xaxis_transform(),
  )
  axes.margins(x=0.08, y=0.12)


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """Returns the ends of an axis that holds every metric."""
  found = [row["metric"] for row in rows if row["metric"] is not None]
  room = 0.12 * (max(found) - min(found)) or 1.0
  return min(found) - room, max(found) + room


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list, list]:
  return [x for x, _ in pairs], [y for _, y in pairs]


def _scale(axes: Axes, values: Sequence[Any]) -> Callable[[Any], float]:
  """Sets the axis of a field; returns value -> place on it."""
  is_number = all(
    isinstance(x, (int, float)) and not isinstance(x, bool) for x in values
  )
  kinds = list(dict.fromkeys(repr(x) for x in values))
  if not is_number:
    axes.set_xticks(
      range(len(kinds)), [trials.as_text(_of(values, x)) for x in kinds]
    )
    return lambda value: float(kinds.index(repr(value)))
  low, high = min(values), max(values)
  if low > 0 and high / low >= LOG_RATIO:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
  if len(kinds) <= TICKS:
    places = sorted(set(map(float, values)))
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.set_xticks([], minor=True)
  return float


def _of(values: Sequence[Any], kind: str) -> Any:
  return next(x for x in values if repr(x) == kind)
