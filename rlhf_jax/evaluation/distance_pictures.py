"""Pictures of scores against d, the square root of the KL to the start.

Lines of several judges, the curves that were fitted to them, and their peaks.
What falls below the floor of a picture is left to its CSV: one judge that falls
without end would flatten all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_jax.evaluation import figures, pictures
from rlhf_jax.evaluation.canvas import LIGHT
from rlhf_jax.evaluation.pictures import Picture

if TYPE_CHECKING:
  from matplotlib.axes import Axes

DISTANCE = "\N{SQUARE ROOT}KL to the start (\N{SQUARE ROOT}nats)"
# Names in canvas.PALETTE, of the first judge, the second, ...
ORDER = ("halt", "gold", "after", "fourth", "fifth", "before", "ink")


@dataclasses.dataclass(frozen=True)
class Line:
  """A line or points.

  label: "" is not named in the legend.
  distance, values: [n].
  colour: of canvas.PALETTE.
  kind: "line", "faint", "dashed", "fit", "points", "rings" or "peak".
  """

  label: str
  distance: Sequence[float]
  values: Sequence[float]
  colour: str
  kind: str = "line"


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a picture shows.

  floor, ceiling: of its y axis; None for none.
  """

  ylabel: str
  lines: Sequence[Line]
  floor: float | None = None
  ceiling: float | None = None
  xlabel: str = DISTANCE


_STYLES = {
  "line": {"lw": 1.7},
  "faint": {"lw": 0.7, "alpha": 0.45},
  "dashed": {"lw": 1.3, "ls": (0, (5, 1.6))},
  "fit": {"lw": 1.2, "ls": (0, (1.4, 1.4))},
  "points": {"ls": "none", "marker": "o", "ms": 3.4},
  "rings": {"ls": "none", "marker": "o", "ms": 4.4, "mfc": "none"},
  "peak": {"ls": "none", "marker": "v", "ms": 5.5, "zorder": 5},
}


def draw_scores(axes: Axes, content: Scores) -> None:
  """Draws lines and points against d."""
  for line in content.lines:
    x, y = np.asarray(line.distance, np.float64), figures.with_gaps(line.values)
    colour = LIGHT[line.colour]
    # An empty label keeps a line out of the legend.
    label = line.label if line.label else "_"
    axes.plot(x, y, color=colour, label=label, **_STYLES[line.kind])
  axes.margins(x=0.02, y=0.08)
  low, high = axes.get_ylim()
  if content.floor is not None:
    low = max(low, content.floor)
  if content.ceiling is not None:
    high = min(high, content.ceiling)
  axes.set_ylim(low, high)
  axes.axhline(0.0, color=LIGHT["rule"], lw=0.7, zorder=1)
  axes.set_xlabel(content.xlabel)
  axes.set_ylabel(content.ylabel)
  axes.yaxis.get_major_locator().set_params(nbins=5)
  longest = max((len(x.label) for x in content.lines), default=0)
  figures.legend(axes, 3 if longest < 14 else 2)


def picture(
  title: str, content: Scores, name: str, caption: str = ""
) -> Picture:
  """Returns lines as a picture with its CSV.

  Args:
    title: of the card.
    content: what is drawn.
    name: of its files.
    caption: for the reader.
  """
  rows = [
    (line.label, line.kind, float(d), float(value))
    for line in content.lines
    for d, value in zip(line.distance, line.values, strict=True)
  ]
  columns = ("series", "kind", "sqrt KL", content.ylabel)
  slug = pictures.slug(name)
  return Picture(slug, title, draw_scores, content, columns, rows, caption)
