"""Pictures of a run in a notebook: the last line of a cell shows one.

    pictures.curves("runs/ppo", "rollout/score_mean", "rollout/kl_k1_sum")
    pictures.panels(Curve(...), Histogram(...), my_function_of_axes)

They are those of the report (evaluation/figures.py), drawn without pyplot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax import metrics
from rlhf_jax.evaluation import canvas, figures
from rlhf_jax.imported import nearest
from rlhf_jax.schema import UserError

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

PANEL_INCHES = (3.4, 2.4)
DOTS_PER_INCH = 90

Row = Mapping[str, Any]
Panel = figures.Curve | figures.Histogram | Callable[["Axes"], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A figure that a notebook shows as PNG."""

  figure: Figure

  def _repr_png_(self) -> bytes:
    return canvas.png_bytes(self.figure, DOTS_PER_INCH)

  def save(self, path: str | Path) -> None:
    """Writes the picture as a PNG file."""
    Path(path).write_bytes(self._repr_png_())


def panels(*what: Panel, columns: int = 3) -> Picture:
  """Returns panels side by side.

  Args:
    *what: a Curve or a Histogram of evaluation/figures.py, or a function that
      draws on the matplotlib Axes that it is given.
    columns: panels of a row at most.
  """
  if not what:
    raise UserError("panels(): there is nothing to draw. Give at least one.")
  columns = min(columns, len(what))
  rows = -(-len(what) // columns)
  size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
  with canvas.styled():
    figure, axes = canvas.new_figure(size, rows, columns)
    for panel, place in zip(what, axes.ravel(), strict=False):
      _draw(panel, place)
    for place in axes.ravel()[len(what) :]:
      place.set_axis_off()
  return Picture(figure)


def _draw(panel: Panel, axes: Axes) -> None:
  if isinstance(panel, figures.Curve):
    figures.draw_curve(axes, panel)
  elif isinstance(panel, figures.Histogram):
    figures.draw_histogram(axes, panel)
  else:
    panel(axes)
    return
  several = len(panel.series) > 1
  axes.set_title(panel.title, pad=18 if several else 6)


def curves(
  source: str | Path | Sequence[Row] | Mapping[str, str | Path | Sequence[Row]],
  *names: str,
  columns: int = 3,
) -> Picture:
  """Returns one panel for each metric over the steps of a run, or of several.

  Args:
    source: folder of a run, rows such as `learn` returns, or label -> either.
    *names: of metrics; docs/metrics.md says what each means.
    columns: panels of a row at most.

  Raises:
    UserError: no row has a metric of this name.
  """
  several = dict(source) if isinstance(source, Mapping) else {"": source}
  rows = {label: _rows(found) for label, found in several.items()}
  known = {name for found in rows.values() for row in found for name in row}
  for name in names:
    if name not in known:
      raise UserError(
        f"{name}: no row has this metric.{nearest(name, known)} There are "
        f"{', '.join(sorted(known))}."
      )
  return panels(
    *(
      figures.Curve(
        name,
        "",
        {label: series(found, name) for label, found in rows.items()},
      )
      for name in names
    ),
    columns=columns,
  )


def _rows(source: str | Path | Sequence[Row]) -> list[Row]:
  """Returns the rows of a run's folder, or those that are given."""
  if isinstance(source, str | Path):
    return metrics.read_metrics(Path(source).expanduser() / "metrics.jsonl")
  return list(source)


def series(source: str | Path | Sequence[Row], name: str) -> tuple[list, list]:
  """Returns the steps and the values of a metric, as a Curve wants them.

  Args:
    source: folder of a run, or rows; those without the metric are left out.
    name: of the metric.
  """
  found = [
    (row.get("step", number), row[name])
    for number, row in enumerate(_rows(source), 1)
    if name in row
  ]
  return [step for step, _ in found], [value for _, value in found]
