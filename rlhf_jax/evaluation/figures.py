"""The pictures of a report: curves, calibration, length bias, histograms.

Each `draw_*` paints one matplotlib Axes and is used twice: for the small SVGs
of the page and for the panels of the overview PNG.

Values that are None, NaN or infinite leave a gap; a point alone between two
gaps is drawn as a dot. Left out: interaction, and bands of error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.evaluation.canvas import LIGHT
from rlhf_jax.evaluation.win_rate import wilson_interval

if TYPE_CHECKING:
  from matplotlib.axes import Axes

MAX_POINTS = 200  # longer curves are averaged in blocks, and say so
MINUS = "\N{MINUS SIGN}"
MAX_DOTS = 500  # of a scatter
# Of the first series, the second, ...: not by colour alone.
DASHES = ("-", (0, (5, 1.6)), (0, (1.6, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclasses.dataclass(frozen=True)
class Curve:
  """A quantity over training.

  series: label -> (steps, values); a value may be None or NaN. A label with
    "gold" or "held-out" in it is drawn amber, one with "before" or
    "reference" grey.
  lines: label -> y of a horizontal rule; "halt" in the label makes it red,
    "warn" amber, anything else grey.
  caption: one sentence for the reader: what it is, which direction is bad.
  """

  title: str
  ylabel: str
  series: Mapping[str, tuple[Sequence[float], Sequence[float | None]]]
  lines: Mapping[str, float] = dataclasses.field(default_factory=dict)
  xlabel: str = "step"
  caption: str = ""


@dataclasses.dataclass(frozen=True)
class Histogram:
  """Distributions side by side. series: label -> values; colours as Curve."""

  title: str
  xlabel: str
  series: Mapping[str, Sequence[float]]
  caption: str = ""


def with_gaps(values: Sequence[float | None]) -> np.ndarray:
  """Returns float64 [n] with NaN for None, NaN and infinities."""
  numbers = np.array(
    [np.nan if value is None else float(value) for value in values], np.float64
  )
  return np.where(np.isfinite(numbers), numbers, np.nan)


def has_points(curve: Curve) -> bool:
  """Returns whether a curve holds one finite value."""
  return any(
    np.isfinite(with_gaps(values)).any() for _, values in curve.series.values()
  )


def finite_series(histogram: Histogram) -> dict[str, np.ndarray]:
  """Returns the finite values of each label that has some."""
  gaps = {label: with_gaps(x) for label, x in histogram.series.items()}
  finite = {label: x[np.isfinite(x)] for label, x in gaps.items()}
  return {label: x for label, x in finite.items() if x.size}


def has_pairs(calibration: Mapping[str, Any] | None) -> bool:
  """Returns whether a calibration was given and rests on one pair or more."""
  return bool(calibration) and bool(np.sum(calibration["counts"]) > 0)


def dot_stride(pairs: int) -> int:
  """Returns n where every nth pair is drawn as a dot, to bound the file."""
  return max(1, -(-pairs // MAX_DOTS))


def colours_of(labels: Sequence[str]) -> list[str]:
  """Returns one colour a label, by what it names and then by order."""
  free = ["after", "fourth", "fifth", "ink"]
  names = []
  for label in labels:
    lower = label.lower()
    if "gold" in lower or "held-out" in lower:
      names.append("gold")
    elif "before" in lower or "reference" in lower:
      names.append("before")
    else:
      names.append(free[0])
      free = free[1:] + free[:1]
  return [LIGHT[name] for name in names]


def block_means(
  steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
  """Returns at most MAX_POINTS means of consecutive values, and block size.

  A block's mean is over its finite values; NaN where it has none.
  """
  size = -(-steps.size // MAX_POINTS)
  if size <= 1:
    return steps, values, 1
  starts = np.arange(0, steps.size, size)
  finite = np.isfinite(values)
  counts = np.add.reduceat(finite.astype(float), starts)
  sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
  means = np.full(starts.size, np.nan)
  np.divide(sums, counts, out=means, where=counts > 0)
  widths = np.diff(np.append(starts, steps.size))
  return np.add.reduceat(steps, starts) / widths, means, size


def _short(value: float) -> str:
  """Returns three significant digits, with a true minus sign."""
  value += 0.0  # a zero has no minus sign
  text = f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
  return text.replace("-", MINUS)


def _end_labels(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
  """Writes the last value of each series beside its dot, kept apart."""
  low, high = axes.get_ylim()
  gap = 0.085 * (high - low)
  previous = -np.inf
  for x, y, colour in sorted(ends, key=lambda end: end[1]):
    place = max(y, previous + gap)
    previous = place
    axes.plot([x], [y], "o", ms=3.6, color=colour, clip_on=False)
    axes.annotate(
      _short(y if abs(y) > 1e-6 * (high - low) else 0.0),
      (x, place),
      xytext=(6, 0),
      textcoords="offset points",
      va="center",
      color=colour,
      annotation_clip=False,
    )


def _rule_colour(label: str) -> str:
  lower = label.lower()
  if "halt" in lower or "stop" in lower:
    return LIGHT["halt"]
  return LIGHT["gold"] if "warn" in lower else LIGHT["muted"]


def _draw_rules(
  axes: Axes, lines: Mapping[str, float], drawn: Sequence[np.ndarray]
) -> None:
  """Draws the named rules, each name at the end farther from the curves.

  Args:
    axes: where to draw.
    lines: label -> y.
    drawn: [steps] values of each series.
  """
  for label, level in lines.items():
    distance = {}
    for side, part in (("left", slice(0, 1)), ("right", slice(-1, None))):
      ends = [np.array_split(y[np.isfinite(y)], 4)[part][0] for y in drawn]
      nearest = [np.min(np.abs(end - level)) for end in ends if end.size]
      distance[side] = min(nearest, default=0.0)
    right = distance["right"] > distance["left"]
    colour = _rule_colour(label)
    axes.axhline(level, color=colour, lw=0.9, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
      label,
      (1.0 if right else 0.0, level),
      xycoords=("axes fraction", "data"),
      xytext=(-2 if right else 2, 2.5),
      textcoords="offset points",
      ha="right" if right else "left",
      color=colour,
      fontsize=7.5,
    )


def draw_curve(axes: Axes, curve: Curve) -> None:
  """Draws the series, the named horizontal rules and the last values."""
  ends, drawn = [], []
  block = 1
  colours = colours_of(list(curve.series))
  named = zip(curve.series.items(), colours, strict=True)
  for number, ((label, (steps, values)), colour) in enumerate(named):
    if len(steps) != len(values):
      raise ValueError(
        f"{curve.title!r}, {label!r}: {len(steps)} steps but {len(values)} "
        "values. Pass one value for each step, None where there is none."
      )
    x, y, size = block_means(np.asarray(steps, np.float64), with_gaps(values))
    block = max(block, size)
    drawn.append(y)
    dashes = DASHES[number % len(DASHES)]
    axes.plot(x, y, color=colour, label=label, ls=dashes)
    seen = np.isfinite(y)
    alone = seen & ~np.append(False, seen[:-1]) & ~np.append(seen[1:], False)
    axes.plot(x[alone], y[alone], "o", ms=3, color=colour)
    if seen.any():
      last = np.flatnonzero(seen)[-1]
      ends.append((x[last], y[last], colour))
  _draw_rules(axes, curve.lines, drawn)
  axes.margins(x=0.02, y=0.1)
  axes.set_ylabel(curve.ylabel)
  means = f" (means of {block})" if block > 1 else ""
  axes.set_xlabel(curve.xlabel + means)
  numbers = np.concatenate([[], *(steps for steps, _ in curve.series.values())])
  is_whole = bool(np.all(numbers == np.round(numbers)))
  axes.xaxis.get_major_locator().set_params(integer=is_whole, nbins=6)
  axes.yaxis.get_major_locator().set_params(nbins=5)
  _end_labels(axes, ends)
  legend(axes)


def legend(axes: Axes, columns: int = 3) -> None:
  """Names the series above the axes when there is more than one.

  Args:
    axes: with labelled series.
    columns: of names, at most.
  """
  handles, labels = axes.get_legend_handles_labels()
  if len(handles) > 1:
    axes.legend(
      handles,
      labels,
      loc="lower left",
      bbox_to_anchor=(-0.02, 0.98),
      ncols=min(columns, len(handles)),
      handlelength=1.1,
      handletextpad=0.5,
      columnspacing=1.2,
      borderaxespad=0.2,
    )


def draw_histogram(axes: Axes, histogram: Histogram) -> None:
  """Draws the shares of values in common bins, and a tick at each mean."""
  series = finite_series(histogram)
  pooled = np.concatenate(list(series.values()))
  edges = np.histogram_bin_edges(
    pooled, bins=int(np.clip(np.sqrt(pooled.size), 8, 28))
  )
  tallest = 0.0
  for (label, values), colour in zip(
    series.items(), colours_of(list(series)), strict=True
  ):
    share = np.histogram(values, edges)[0] / values.size
    tallest = max(tallest, float(share.max()))
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, lw=0)
    axes.stairs(share, edges, color=colour, lw=1.4, label=label)
    axes.axvline(values.mean(), color=colour, lw=1.0, ls=(0, (2, 2)))
  axes.set_ylim(0, 1.08 * tallest)
  axes.set_xlabel(histogram.xlabel)
  axes.set_ylabel("share of texts")
  axes.yaxis.get_major_locator().set_params(nbins=4)
  legend(axes)


def draw_lengths(axes: Axes, lengths: Mapping[str, Mapping]) -> None:
  """Draws how long the parts of examples are.

  Args:
    axes: where to draw.
    lengths: part -> "edges" [b + 1] tokens, "counts" [b] and "mean", as
      data/statistics.py writes them.
  """
  colours = colours_of(list(lengths))
  for (label, found), colour in zip(lengths.items(), colours, strict=True):
    counts = np.asarray(found["counts"], np.float64)
    edges = np.asarray(found["edges"], np.float64)
    share = counts / counts.sum()
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, lw=0)
    axes.stairs(share, edges, color=colour, lw=1.4, label=label)
    axes.axvline(found["mean"], color=colour, lw=1.0, ls=(0, (2, 2)))
  axes.set_xlabel("tokens")
  axes.set_ylabel("share of examples")
  axes.yaxis.get_major_locator().set_params(nbins=4)
  legend(axes)


def draw_calibration(axes: Axes, calibration: Mapping[str, Any]) -> None:
  """Draws what `reward_model.calibration` returned, with 95 % intervals."""
  centres = with_gaps(calibration["centres"])
  empirical = with_gaps(calibration["empirical"])
  counts = np.asarray(calibration["counts"])
  seen = np.isfinite(empirical) & (counts > 0)
  low, high = np.array(
    [
      wilson_interval(share * count, int(count))
      for share, count in zip(empirical[seen], counts[seen], strict=True)
    ]
  ).T
  axes.plot([0.5, 1], [0.5, 1], color=LIGHT["before"], lw=1, ls=(0, (4, 3)))
  axes.vlines(centres[seen], low, high, color=LIGHT["after"], lw=1, alpha=0.5)
  axes.plot(centres[seen], empirical[seen], color=LIGHT["after"], lw=1.2)
  area = 60 * counts[seen] / counts.max() + 6
  axes.scatter(centres[seen], empirical[seen], area, color=LIGHT["after"])
  axes.annotate(
    f"ECE = {calibration['ece']:.3f}",
    (0.03, 0.9),
    xycoords="axes fraction",
    color=LIGHT["ink"],
    fontsize=9,
  )
  axes.set_xlim(0.49, 1.01)
  axes.set_ylim(min(0.45, float(low.min()) - 0.02), 1.03)
  axes.set_xlabel("predicted probability of the favourite")
  axes.set_ylabel("share it won")


def draw_length_bias(axes: Axes, bias: Mapping[str, Any]) -> None:
  """Draws score against length differences, and means of eight equal groups.

  Args:
    axes: where to draw.
    bias: "length_difference" and "score_difference" [P], and "rho".
  """
  x = with_gaps(bias["length_difference"])
  y = with_gaps(bias["score_difference"])
  stride = dot_stride(x.size)
  axes.plot(
    x[::stride],
    y[::stride],
    "o",
    ms=2.2,
    mew=0,
    alpha=0.4,
    color=LIGHT["before"],
  )
  groups = np.array_split(np.argsort(x, kind="stable"), min(8, x.size))
  axes.plot(
    [np.mean(x[group]) for group in groups],
    [np.mean(y[group]) for group in groups],
    "o-",
    ms=4,
    lw=1.2,
    color=LIGHT["after"],
  )
  axes.axhline(0, color=LIGHT["rule"], lw=0.7, zorder=1)
  axes.axvline(0, color=LIGHT["rule"], lw=0.7, zorder=1)
  axes.annotate(
    "\N{GREEK SMALL LETTER RHO} = "
    + terminal.decimal(bias["rho"]).replace("-", MINUS),
    (0.03, 0.9),
    xycoords="axes fraction",
    color=LIGHT["ink"],
    fontsize=9,
  )
  axes.set_xlabel("length difference (tokens)")
  axes.set_ylabel("score difference")
