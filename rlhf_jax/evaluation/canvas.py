"""The look of every figure, and how one becomes an inline SVG or a PNG.

In an SVG each colour of PALETTE becomes a CSS variable, so that the page can
be light or dark; text stays text, in the page's own font and size; and nothing
refers to another file. Figures are made without pyplot, which keeps state.
matplotlib is imported where something is drawn, for it takes long.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# name -> (light, dark). Light colours must differ: the SVG is searched for
# them, and each becomes var(--name).
PALETTE = {
  "page": ("#fcfcfb", "#14171a"),
  "card": ("#fffffe", "#1b1f23"),
  "ink": ("#1d2329", "#e6e9ec"),
  "muted": ("#66707a", "#98a2ac"),
  "grid": ("#e9ebed", "#2b3137"),
  "rule": ("#d5d9dd", "#3a424a"),
  "before": ("#828990", "#878e96"),
  "after": ("#0f63cc", "#8fbff3"),
  "gold": ("#b07d10", "#f2b632"),
  "fourth": ("#076a42", "#18bf85"),
  "fifth": ("#7a3391", "#bd63da"),
  "halt": ("#9c1f16", "#f65a3f"),
}
# Colours of series and marks: people who see no red, no green or no blue tell
# any two of them apart, in light and in dark (tests/evaluation/test_canvas.py).
SERIES = ("ink", "before", "after", "gold", "fourth", "fifth", "halt")
LIGHT = {name: colours[0] for name, colours in PALETTE.items()}

PNG_DOTS = 200  # dots per inch of a picture in a file of its own
SMALL_INCHES = (3.35, 2.15)  # 241 x 155 points, scaled to the card's width
DOTS_PER_INCH = 72
LEGEND_LINE = 12  # points

STYLE = {
  "axes.axisbelow": True,
  "axes.edgecolor": LIGHT["rule"],
  "axes.facecolor": "none",
  "axes.grid": True,
  "axes.grid.axis": "y",
  "axes.labelcolor": LIGHT["muted"],
  "axes.labelsize": 8,
  "axes.linewidth": 0.7,
  "axes.spines.left": False,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlecolor": LIGHT["ink"],
  "axes.titlelocation": "left",
  "axes.titlesize": 9.5,
  "axes.titleweight": "bold",
  "font.size": 8,
  "grid.color": LIGHT["grid"],
  "grid.linewidth": 0.7,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "legend.labelcolor": LIGHT["muted"],
  "lines.linewidth": 1.6,
  "lines.solid_capstyle": "round",
  "lines.solid_joinstyle": "round",
  "svg.fonttype": "none",
  "text.color": LIGHT["muted"],
  "text.parse_math": False,
  "xtick.color": LIGHT["rule"],
  "xtick.labelcolor": LIGHT["muted"],
  "xtick.labelsize": 8,
  "xtick.major.size": 3,
  "xtick.major.width": 0.7,
  "ytick.color": LIGHT["rule"],
  "ytick.labelcolor": LIGHT["muted"],
  "ytick.labelsize": 8,
  "ytick.major.size": 0,
}


def new_figure(
  inches: tuple[float, float], rows: int = 1, columns: int = 1
) -> tuple[Figure, np.ndarray]:
  """Returns a figure and its axes [rows, columns]; call within `styled`."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
  figure.patch.set_alpha(0.0)
  if rows * columns > 1:
    figure.get_layout_engine().set(
      w_pad=0.16, h_pad=0.12, wspace=0.03, hspace=0.05
    )
  axes = figure.subplots(rows, columns, squeeze=False)
  return figure, axes


def styled(more: dict[str, Any] | None = None) -> AbstractContextManager[None]:
  """Returns a context in which matplotlib draws in this module's style.

  Args:
    more: settings of matplotlib beside that.
  """
  import matplotlib

  return matplotlib.rc_context(STYLE | (more if more is not None else {}))


_PROLOGUE = re.compile(
  r"^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>", re.S
)
_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"')
_GROUP_NAME = re.compile(
  r' id="(figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick'
  r'|PathCollection|LineCollection|PolyCollection|StepPatch)_\d+"'
)
_FONT_FAMILY = re.compile(r"font-family: [^;\"]*; ?")
_SIZE = re.compile(r'(<svg[^>]*?) (?:width|height)="[^"]*"')


def inline_svg(
  draw: Callable[[Axes, Any], None], content: Any, key: str
) -> str:
  """Returns one small figure as an <svg> element to put into a page.

  Args:
    draw: one of the `draw_*` functions.
    content: its second argument.
    key: different for every figure of a page; makes its element ids unique.
  """
  with styled({"svg.hashsalt": key}):
    figure, axes = new_figure(SMALL_INCHES)
    draw(axes[0, 0], content)
    return _svg_of(figure)


def svg_and_png(
  draw: Callable[[Axes, Any], None], content: Any, key: str, title: str
) -> tuple[str, bytes]:
  """Returns a figure as `inline_svg` does, and as a PNG with its title.

  Args:
    draw, content, key: see there.
    title: above the PNG, which stands alone.
  """
  with styled({"svg.hashsalt": key}):
    figure, axes = new_figure(SMALL_INCHES)
    draw(axes[0, 0], content)
    svg = _svg_of(figure)
    axes[0, 0].set_title(title, pad=_title_pad(axes[0, 0]))
    return svg, png_bytes(figure, PNG_DOTS)


def _title_pad(axes: Axes) -> float:
  """Returns points between axes and title: a legend's lines stand there."""
  legend = axes.get_legend()
  if legend is None:
    return 6.0
  lines = -(-len(legend.get_texts()) // legend._ncols)
  return 16.0 + LEGEND_LINE * (lines - 1)


def _svg_of(figure: Figure) -> str:
  """Returns a figure as an element whose colours and font are the page's."""
  from matplotlib.backends.backend_svg import FigureCanvasSVG

  stream = io.StringIO()
  FigureCanvasSVG(figure).print_svg(stream)
  svg = _PROLOGUE.sub("", stream.getvalue())
  svg = _NAMESPACE.sub("", svg)
  svg = _GROUP_NAME.sub("", svg)
  svg = _FONT_FAMILY.sub("", svg)
  svg = _SIZE.sub(r"\1", _SIZE.sub(r"\1", svg))
  for name, colour in LIGHT.items():
    svg = svg.replace(colour, f"var(--{name})")
  return svg.strip()


def png_bytes(figure: Figure, dots_per_inch: int) -> bytes:
  """Returns the figure as an opaque PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  figure.patch.set_facecolor("white")
  figure.patch.set_alpha(1.0)
  figure.set_dpi(dots_per_inch)
  stream = io.BytesIO()
  FigureCanvasAgg(figure).print_png(stream)
  return stream.getvalue()
