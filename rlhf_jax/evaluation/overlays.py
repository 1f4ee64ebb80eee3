"""Curves of several runs over each other: one panel a metric, one colour a run.

The colours (after Okabe and Ito 2008) can be told apart by colour-blind people
and in light and dark pages; after eight runs they come again with dashes. The
names of the runs stand once, in the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_jax.evaluation import canvas, figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes

# (light, dark) of each run; none is a colour of canvas.PALETTE.
COLOURS = (
  ("#0072b2", "#56b4e9"),
  ("#d55e00", "#ff914d"),
  ("#009e73", "#3ecfa0"),
  ("#cc79a7", "#eba9ca"),
  ("#9a7800", "#f0c540"),
  ("#5b4b9a", "#ab9dec"),
  ("#4f4f4f", "#c9c9c9"),
  ("#7a3b10", "#d59d6e"),
)
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
Series = tuple[Sequence[float], Sequence[float]]  # steps, values


def draw(axes: Axes, series: Mapping[int, Series]) -> None:
  """Draws a metric of several runs.

  Args:
    axes: where to draw.
    series: number of the run -> its steps and values.
  """
  block = 1
  for run, (steps, values) in series.items():
    x, y, size = figures.block_means(
      np.asarray(steps, np.float64), figures.with_gaps(values)
    )
    block = max(block, size)
    colour = COLOURS[run % len(COLOURS)][0]
    dashes = DASHES[run // len(COLOURS) % len(DASHES)]
    axes.plot(x, y, color=colour, ls=dashes, lw=1.5)
    axes.plot(x[-1:], y[-1:], "o", ms=3.2, color=colour)
  axes.margins(x=0.02, y=0.1)
  axes.set_xlabel(f"step (means of {block})" if block > 1 else "step")
  axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
  axes.yaxis.get_major_locator().set_params(nbins=5)


def inline_svg(name: str, series: Mapping[int, Series]) -> str:
  """Returns the panel of a metric as an <svg> whose colours are the page's."""
  svg = canvas.inline_svg(draw, series, key=f"overlay {name}")
  for number, (light, _) in enumerate(COLOURS):
    svg = svg.replace(light, f"var(--run{number})")
  return svg
