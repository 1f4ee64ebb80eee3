"""One self-contained HTML page that says what a run did, and one PNG of it.

The caller hands over numbers, arrays and sentences in a `Report`; parts that
are empty or None are left out of the page. The page loads nothing: figures are
inline SVG, styles are inline, and a content policy forbids scripts and
requests. All text, generated samples above all, is escaped.

Left out: choosing what to report, and any judgement of the numbers; both are
the pipeline's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from rlhf_jax.evaluation import canvas, figures
from rlhf_jax.evaluation.figures import Curve, Histogram

ABSENT = "\N{EN DASH}"
LEVELS = ("refuse", "warn", "note")
SAMPLE_KEYS = ("prompt", "before", "after")
SCORES = ("proxy", "gold")


@dataclasses.dataclass(frozen=True)
class SummaryRow:
  """One quantity before and after training.

  before, after, standard_error: None or NaN prints a dash.
  explanation: one sentence, in plain words: what the number is, and what its
    standard error is the error of.
  decimals: digits after the point.
  is_headline: also shown large at the top of the page.
  """

  name: str
  before: float | None = None
  after: float | None = None
  standard_error: float | None = None
  explanation: str = ""
  decimals: int = 2
  is_headline: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
  """What the page shows; every field but the title may stay empty.

  facts: (name, value): config, seed, model, data with licences.
  caveats: sentences that say what the run does not show.
  curves: quantities over training steps, in the order of the page; the first
    four are panels of the overview.
  phase_seconds: phase -> wall seconds.
  calibration: what `reward_model.calibration` returns.
  length_bias: "length_difference" and "score_difference" [P], "rho".
  histograms: distributions before and after.
  samples: dicts of "prompt", "before", "after" (answers without the prompt)
    and, where known, "proxy_before", "proxy_after", "gold_before",
    "gold_after".
  warnings: (level, message) with level "refuse", "warn" or "note", as
    `reward_model.guard` returns.
  """

  title: str
  subtitle: str = ""
  facts: Sequence[tuple[str, Any]] = ()
  caveats: Sequence[str] = ()
  summary_rows: Sequence[SummaryRow] = ()
  curves: Sequence[Curve] = ()
  phase_seconds: Mapping[str, float] | None = None
  calibration: Mapping[str, Any] | None = None
  length_bias: Mapping[str, Any] | None = None
  histograms: Sequence[Histogram] = ()
  samples: Sequence[Mapping[str, Any]] = ()
  warnings: Sequence[tuple[str, str]] = ()

  def __post_init__(self):
    for warning in self.warnings:
      if isinstance(warning, str) or warning[0] not in LEVELS:
        raise ValueError(
          f"warnings: {warning!r}: a warning is (level, message), level one of "
          f"{', '.join(LEVELS)}. Pass ('warn', message)."
        )
    for index, sample in enumerate(self.samples):
      missing = [key for key in SAMPLE_KEYS if key not in sample]
      if missing:
        raise ValueError(
          f"samples[{index}] has no {missing}: prompt, before and after are "
          "shown for each. Add the keys."
        )


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


def duration(seconds: float) -> str:
  """Returns seconds as "48 s", "5 min 45 s" or "3 h 20 min"."""
  if seconds < 10:
    return f"{seconds:.1f} s"
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _summary(rows: Sequence[SummaryRow]) -> list[dict[str, Any]]:
  return [
    {
      "name": row.name,
      "before": number(row.before, row.decimals),
      "after": number(row.after, row.decimals),
      "error": number(row.standard_error, row.decimals),
      "explanation": row.explanation,
      "headline": row.is_headline,
    }
    for row in rows
  ]


def _phases(seconds: Mapping[str, float] | None) -> list[dict[str, Any]]:
  if not seconds:
    return []
  total = sum(seconds.values())
  longest = max(seconds.values())
  return [
    {
      "name": name,
      "duration": duration(value),
      "share": f"{100 * value / total:.0f} %" if total > 0 else ABSENT,
      "width": f"{100 * value / longest:.1f}" if longest > 0 else "0",
    }
    for name, value in seconds.items()
  ]


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  rows = []
  for sample in samples:
    row: dict[str, Any] = {"prompt": sample["prompt"]}
    for side in ("before", "after"):
      scores = {name: sample.get(f"{name}_{side}") for name in SCORES}
      row[side] = {
        "text": sample[side],
        "scores": [
          (name, number(value, sign=True))
          for name, value in scores.items()
          if value is not None
        ],
      }
    rows.append(row)
  return rows


def _card(
  title: str,
  caption: str,
  draw: Callable[..., None],
  content: Any,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  return {
    "title": title,
    "caption": caption,
    "notes": notes,
    "svg": canvas.inline_svg(draw, content, key=f"{draw.__name__} {title}"),
  }


def _curve_cards(curves: Sequence[Curve]) -> list[dict[str, Any]]:
  return [
    _card(curve.title, curve.caption, figures.draw_curve, curve)
    for curve in curves
    if figures.has_points(curve)
  ]


def _reward_model_cards(report: Report) -> list[dict[str, Any]]:
  cards = []
  if figures.has_pairs(report.calibration):
    cards.append(
      _card(
        "Calibration",
        "How often the answer the reward model prefers was preferred by "
        "people, by how sure the model is. On the dashed line it is as sure "
        "as it should be. Bars: 95 % Wilson intervals; area: pairs.",
        figures.draw_calibration,
        report.calibration,
      )
    )
  bias = report.length_bias
  shown = len(bias["length_difference"]) if bias else 0
  if shown:
    stride = figures.dot_stride(shown)
    some = f" Drawn: 1 pair in {stride}." if stride > 1 else ""
    cards.append(
      _card(
        "Length bias",
        "Score difference against length difference in a pair. Blue: means of "
        "groups of equal size. A slope means that the score follows length."
        + some,
        figures.draw_length_bias,
        bias,
      )
    )
  return cards


def _histogram_cards(histograms: Sequence[Histogram]) -> list[dict[str, Any]]:
  cards = []
  for histogram in histograms:
    series = figures.finite_series(histogram)
    if not series:
      continue
    notes = [
      f"{label.capitalize()}: mean {number(values.mean())}, "
      f"deviation {number(values.std())}"
      for label, values in series.items()
    ]
    cards.append(
      _card(
        histogram.title,
        histogram.caption,
        figures.draw_histogram,
        histogram,
        notes,
      )
    )
  return cards


def render_report(report: Report) -> str:
  """Returns the page as one HTML document that loads nothing."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  total = sum((report.phase_seconds or {}).values())
  return environment.get_template("report.html").render(
    report=report,
    palette=canvas.PALETTE,
    absent=ABSENT,
    summary=_summary(report.summary_rows),
    curves=_curve_cards(report.curves),
    reward_model=_reward_model_cards(report),
    histograms=_histogram_cards(report.histograms),
    samples=_samples(report.samples),
    phases=_phases(report.phase_seconds),
    total=duration(total),
  )


def write_report(path: str | Path, report: Report) -> None:
  """Writes the page.

  Args:
    path: an .html file; its folder is made.
    report: what to show.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_bytes(render_report(report).encode("utf-8"))


def _panels(report: Report) -> list[tuple[str, Any, Any]]:
  """Returns at most six (title, draw, content), the most telling first."""
  curves = [
    (curve.title, figures.draw_curve, curve)
    for curve in report.curves
    if figures.has_points(curve)
  ]
  others = [
    (histogram.title, figures.draw_histogram, histogram)
    for histogram in report.histograms[:1]
    if figures.finite_series(histogram)
  ]
  if figures.has_pairs(report.calibration):
    others.append(
      (
        "Reward model calibration",
        figures.draw_calibration,
        report.calibration,
      )
    )
  kept = max(4, 6 - len(others))
  return (curves[:kept] + others)[:6]


def write_overview_png(
  path: str | Path, report: Report, dots_per_inch: int = 160
) -> None:
  """Writes two rows of three panels: curves, scores, calibration.

  The first curves of the report come first, then its first histogram and the
  reward model's calibration; places without content stay empty.

  Args:
    path: a .png file; its folder is made.
    report: what to show.
    dots_per_inch: of the file; the picture is 12 inches wide.

  Raises:
    ValueError: the report has nothing to draw.
  """
  panels = _panels(report)
  if not panels:
    raise ValueError(
      f"report {report.title!r} holds no curve, histogram or calibration: "
      "there is nothing to draw. Add one of them."
    )
  with canvas.styled():
    figure, axes = canvas.new_figure((12.0, 6.2), 2, 3)
    for place in axes.flat[len(panels) :]:
      place.set_axis_off()
    for place, (title, draw, content) in zip(axes.flat, panels, strict=False):
      draw(place, content)
      place.set_title(title, pad=20)
    figure.suptitle(
      report.title,
      x=0.013,
      ha="left",
      fontsize=14,
      fontweight="bold",
      color=canvas.LIGHT["ink"],
    )
    picture = canvas.png_bytes(figure, dots_per_inch)
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_bytes(picture)
