"""The pictures of a report: each a card of its page, a PNG and a CSV.

figures/NAME.png is what the page shows; figures/NAME.csv holds its numbers, all
of them where the page draws means of blocks or some of the dots. A CSV holds
labels of series and numbers, never a text that a policy wrote.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evaluation import canvas, figures
from rlhf_jax.evaluation.figures import Curve, Histogram

FOLDER = "figures"  # beside the page
ABSENT = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Picture:
  """What is drawn, said and written of one thing.

  name: of its files, without an ending; unique in a report.
  draw, content: a function of figures.py and its second argument.
  columns, rows: of the CSV; a number that is not there is empty.
  """

  name: str
  title: str
  draw: Callable[..., None]
  content: Any
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  caption: str = ""
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Card:
  """A picture, drawn."""

  picture: Picture
  svg: str
  png: bytes = b""


def number(
  value: float | None, decimals: int = 2, *, sign: bool = False
) -> str:
  """Returns the value with a true minus sign, a dash for None and NaN.

  Args:
    value: any.
    decimals: digits after the point.
    sign: writes + before positive values.
  """
  if value is None or math.isnan(value):
    return ABSENT
  rounded = round(value, decimals) + 0.0  # never a zero with a minus sign
  text = f"{rounded:{'+' if sign else ''},.{decimals}f}"
  return text.replace("-", figures.MINUS)


def slug(*parts: str) -> str:
  """Returns a file name of words: letters, digits and "_" alone."""
  words = re.findall("[a-z0-9]+", " ".join(parts).lower())
  return "_".join(words)[:80] if words else "picture"


def of_curves(curves: Sequence[Curve], area: str) -> list[Picture]:
  """Returns the pictures of the curves that hold a number.

  Args:
    curves: of one stage.
    area: the stage, first in the names of the files.
  """
  return [
    Picture(
      slug(area, curve.title),
      curve.title,
      figures.draw_curve,
      curve,
      ("series", curve.xlabel, curve.ylabel),
      [
        (label, step, value)
        for label, (steps, values) in curve.series.items()
        for step, value in zip(steps, values, strict=False)
      ],
      curve.caption,
    )
    for curve in curves
    if figures.has_points(curve)
  ]


def of_reward_model(
  calibration: Mapping[str, Any] | None, bias: Mapping[str, Any] | None
) -> list[Picture]:
  """Returns the pictures of held-out pairs; see report.Report."""
  found = []
  if figures.has_pairs(calibration):
    names = ("centres", "empirical", "counts")
    found.append(
      Picture(
        "reward_model_calibration",
        "Calibration",
        figures.draw_calibration,
        calibration,
        ("predicted probability", "share it won", "pairs"),
        list(zip(*(calibration[name] for name in names), strict=True)),
        "How often the answer the reward model prefers was preferred by "
        "people, by how sure the model is. On the dashed line it is as sure "
        "as it should be. Bars: 95 % Wilson intervals; area: pairs.",
      )
    )
  names = ("length_difference", "score_difference")
  shown = len(bias[names[0]]) if bias else 0
  if shown:
    stride = figures.dot_stride(shown)
    some = f" Drawn: 1 pair in {stride}." if stride > 1 else ""
    found.append(
      Picture(
        "reward_model_length_bias",
        "Length bias",
        figures.draw_length_bias,
        bias,
        ("length difference (tokens)", "score difference"),
        list(zip(*(bias[name] for name in names), strict=True)),
        "Score difference against length difference in a pair. Blue: means of "
        "groups of equal size. A slope means that the score follows length."
        + some,
      )
    )
  return found


def of_histograms(histograms: Sequence[Histogram]) -> list[Picture]:
  """Returns the pictures of the histograms that hold a number."""
  found = []
  for histogram in histograms:
    series = figures.finite_series(histogram)
    if not series:
      continue
    notes = [
      f"{label.capitalize()}: mean {number(values.mean())}, "
      f"deviation {number(values.std())}"
      for label, values in series.items()
    ]
    found.append(
      Picture(
        slug(histogram.title),
        histogram.title,
        figures.draw_histogram,
        histogram,
        ("series", histogram.xlabel),
        [(label, x) for label, xs in histogram.series.items() for x in xs],
        histogram.caption,
        notes,
      )
    )
  return found


def of_lengths(name: str, lengths: Mapping[str, Mapping]) -> list[Picture]:
  """Returns the picture of how long the examples of a source are.

  Args:
    name: of what was read.
    lengths: see figures.draw_lengths; {} for no picture.
  """
  if not lengths:
    return []
  rows = [
    (part, low, high, count)
    for part, found in lengths.items()
    for low, high, count in zip(
      found["edges"][:-1], found["edges"][1:], found["counts"], strict=True
    )
  ]
  notes = [
    f"{part.capitalize()}: mean {number(found['mean'], 1)}, median "
    f"{number(found['median'], 0)}, 95 % up to {number(found['p95'], 0)}, "
    f"longest {found['max']}"
    for part, found in lengths.items()
  ]
  columns = ("part", "from (tokens)", "below (tokens)", "examples")
  return [
    Picture(
      slug("lengths", name),
      "Lengths",
      figures.draw_lengths,
      lengths,
      columns,
      rows,
      notes=notes,
    )
  ]


def draw(pictures: Sequence[Picture], *, with_png: bool) -> list[Card]:
  """Returns the pictures drawn, as SVG and, if asked for, as PNG too."""
  found = []
  for picture in pictures:
    key = f"{picture.draw.__name__} {picture.name}"
    if with_png:
      svg, png = canvas.svg_and_png(
        picture.draw, picture.content, key, picture.title
      )
    else:
      svg, png = canvas.inline_svg(picture.draw, picture.content, key), b""
    found.append(Card(picture, svg, png))
  return found


def csv_text(picture: Picture) -> str:
  """Returns the numbers of a picture as CSV with a header."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow(picture.columns)
  writer.writerows([_cell(value) for value in row] for row in picture.rows)
  return stream.getvalue()


def _cell(value: Any) -> Any:
  if value is None or isinstance(value, str):
    return "" if value is None else value
  value = value.item() if isinstance(value, np.generic) else value
  return "" if isinstance(value, float) and math.isnan(value) else value


def write(folder: Path, cards: Sequence[Card]) -> None:
  """Writes NAME.png and NAME.csv of each card into a folder that it makes."""
  if not cards:
    return
  folder.mkdir(parents=True, exist_ok=True)
  for card in cards:
    name = card.picture.name
    (folder / f"{name}.png").write_bytes(card.png)
    text = csv_text(card.picture)
    (folder / f"{name}.csv").write_bytes(text.encode("utf-8"))
