"""One self-contained HTML page that says what a run did, and one PNG of it.

The caller hands over numbers, arrays and sentences in a `Report`; parts that
are empty or None are left out of the page. The page loads nothing: figures are
inline SVG, styles are inline, and a content policy forbids scripts and
requests: tabs, orders and filters are form elements that CSS reads. All text,
generated samples above all, is escaped. What is drawn is also written as PNG
and CSV (pictures.py).

Left out: choosing what to report, and any judgement of the numbers; both are
the pipeline's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from rlhf_jax.evaluation import browser, canvas, figures, pictures
from rlhf_jax.evaluation.figures import Curve, Histogram
from rlhf_jax.evaluation.pictures import ABSENT, Card, Picture, number

LEVELS = ("refuse", "warn", "note")
SAMPLE_KEYS = ("prompt", "before", "after")
SAMPLES_PRINTED = 24  # on paper; the page shows all
OVER_TRAINING, HISTOGRAMS = "over training", "histograms"  # parts of the page
REWARD_MODEL = "Reward model"


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
class Stage:
  """A stage with a tab of its own beside the policy's.

  name: of the tab; "Reward model" takes the calibration and the length bias.
  facts: (name, value): what it was made of, and what came out.
  curves: over its own steps.
  """

  name: str
  facts: Sequence[tuple[str, Any]] = ()
  curves: Sequence[Curve] = ()


@dataclasses.dataclass(frozen=True)
class Source:
  """What a stage read, as data/statistics.py wrote it.

  stage, name: who read it, and what for.
  source: where it came from.
  kept: examples.
  dropped: reason -> count of what was left out or cut.
  lengths: part of an example -> its lengths, see figures.draw_lengths.
  """

  stage: str
  name: str
  source: str
  kept: int
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  lengths: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)


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
    "gold_after", "verifier_before", "verifier_after", "kl" (nats), and
    "pieces": (text, log-ratio in nats) of the tokens of the answer after.
  stages: tabs of the stages beside the policy's curves.
  data: what the stages read.
  rounds: columns and rows of a run in rounds, whose curves are over them and
    stand on the first tab.
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
  stages: Sequence[Stage] = ()
  data: Sequence[Source] = ()
  rounds: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None

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


def _parts(report: Report) -> dict[str, list[Picture]]:
  """Returns the pictures of each part of the page, by its name."""
  parts = {
    OVER_TRAINING: pictures.of_curves(report.curves, "policy"),
    REWARD_MODEL: pictures.of_reward_model(
      report.calibration, report.length_bias
    ),
    HISTOGRAMS: pictures.of_histograms(report.histograms),
  }
  for stage in report.stages:
    parts[f"stage {stage.name}"] = pictures.of_curves(stage.curves, stage.name)
  for source in report.data:
    name = f"{source.stage} {source.name}"
    parts[f"data {name}"] = pictures.of_lengths(name, source.lengths)
  return _with_names_of_their_own(parts)


def _with_names_of_their_own(
  parts: dict[str, list[Picture]],
) -> dict[str, list[Picture]]:
  """Returns the pictures with a number behind a name that is there already."""
  seen: dict[str, int] = {}
  found = {}
  for part, those in parts.items():
    found[part] = []
    for picture in those:
      count = seen[picture.name] = seen.get(picture.name, 0) + 1
      name = picture.name if count == 1 else f"{picture.name}_{count}"
      found[part].append(dataclasses.replace(picture, name=name))
  return found


def _draw(report: Report, *, with_png: bool) -> dict[str, list[Card]]:
  """Returns the pictures of each part, drawn."""
  return {
    part: pictures.draw(those, with_png=with_png)
    for part, those in _parts(report).items()
  }


def _stage_panels(
  report: Report, cards: Mapping[str, list[Card]]
) -> list[dict[str, Any]]:
  """Returns the panels of the stages, the reward model's with its diagnosis."""
  names = [stage.name for stage in report.stages]
  if cards[REWARD_MODEL] and REWARD_MODEL not in names:
    names.append(REWARD_MODEL)
  panels = []
  for name in names:
    diagnosis = cards[REWARD_MODEL] if name == REWARD_MODEL else []
    curves = cards.get(f"stage {name}", [])
    facts = next((x.facts for x in report.stages if x.name == name), ())
    if diagnosis or curves or facts:
      panels.append(
        {"name": name, "wide": diagnosis, "cards": curves, "facts": facts}
      )
  return panels


def _data(
  report: Report, cards: Mapping[str, list[Card]]
) -> list[dict[str, Any]]:
  return [
    {
      "title": f"{source.stage}: {source.name}",
      "source": source.source,
      "kept": f"{source.kept:,}",
      "dropped": [(why, f"{n:,}") for why, n in source.dropped.items()],
      "cards": cards[f"data {source.stage} {source.name}"],
    }
    for source in report.data
  ]


def render_report(report: Report) -> str:
  """Returns the page as one HTML document that loads nothing."""
  return _render(report, _draw(report, with_png=False))


def _render(report: Report, cards: Mapping[str, list[Card]]) -> str:
  """Returns the page.

  Args:
    report: what to show.
    cards: part -> its pictures, drawn.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  total = sum((report.phase_seconds or {}).values())
  curves, histograms = cards[OVER_TRAINING], cards[HISTOGRAMS]
  stages, data = _stage_panels(report, cards), _data(report, cards)
  tabs = [("overview", "Overview")]
  if report.samples:
    tabs.append(("samples-tab", "Samples"))
  if curves and report.rounds is None:
    tabs.append(("policy", "Policy"))
  tabs += [(f"stage-{i}", stage["name"]) for i, stage in enumerate(stages)]
  if data:
    tabs.append(("data", "Data"))
  return environment.get_template("report.html").render(
    report=report,
    palette=canvas.PALETTE,
    absent=ABSENT,
    summary=_summary(report.summary_rows),
    tabs=tabs,
    curves=curves,
    histograms=histograms,
    stages=stages,
    data=data,
    browser=browser.make(report.samples),
    ways=browser.WAYS,
    printed=SAMPLES_PRINTED,
    bounds=browser.BOUNDS,
    files=pictures.FOLDER,
    phases=_phases(report.phase_seconds),
    total=duration(total),
  )


def write_report(path: str | Path, report: Report) -> None:
  """Writes the page, and its pictures as PNG and CSV into figures/ beside it.

  Args:
    path: an .html file; its folder is made.
    report: what to show.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  cards = _draw(report, with_png=True)
  target.write_bytes(_render(report, cards).encode("utf-8"))
  everything = [card for those in cards.values() for card in those]
  pictures.write(target.parent / pictures.FOLDER, everything)


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
