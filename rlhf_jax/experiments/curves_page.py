"""The page of a study of over-optimisation: pictures, table, what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import overoptimisation as over
from rlhf_jax.evaluation.distance_pictures import ORDER, Line, Scores, picture
from rlhf_jax.evaluation.pictures import Picture, number
from rlhf_jax.evaluation.table_page import (
  Cell,
  Page,
  Section,
  Table,
  interval,
  plain,
)
from rlhf_jax.experiments import claims as claims_lib
from rlhf_jax.experiments.claims import Claim
from rlhf_jax.experiments.curves import FAR, Curve, Row

METHODS = {"rl": "RL", "best_of_n": "best of n"}
# Floor and ceiling of a picture of gold, in heights of the highest peak.
DEPTH, HEIGHT = 1.0, 1.5
POINTS = 80  # of a fitted line


def _mean_line(curves: Sequence[Curve], what: str) -> tuple[Any, Any]:
  """Returns the mean over seeds, by place: d and value are means of both."""
  length = min(len(x.distance) for x in curves)
  d = np.mean([x.distance[:length] for x in curves], axis=0)
  value = np.mean(
    [over.smoothed(getattr(x, what), x.width)[:length] for x in curves], axis=0
  )
  return d, value


def _fit_line(row: Row) -> tuple[np.ndarray, np.ndarray]:
  """Returns the fit as far as it was fitted."""
  far = max(float(x.fitted[0].max()) for x in row.curves)
  d = np.linspace(over.MINIMUM[row.method], far, POINTS)
  return d, row.fit.at(d)


def _limits(rows: Sequence[Row]) -> dict[str, float]:
  """Returns floor and ceiling of a picture of gold."""
  top = max(0.1, *(y.gold for x in rows for y in x.observed))
  return {"floor": -DEPTH * top, "ceiling": HEIGHT * top}


def side_by_side(
  rows: Sequence[Row], what: str, title: str, name: str
) -> Picture:
  """Returns the curves of several judges in one picture.

  Args:
    rows: of one method, at most seven.
    what: "gold" or "proxy".
    title, name: of the picture.
  """
  lines = []
  for row, colour in zip(rows, ORDER, strict=False):
    d, value = _mean_line(row.curves, what)
    lines.append(Line(row.judge, d, value, colour))
    if what == "gold" and row.fit is not None:
      lines.append(Line("", *_fit_line(row), colour, "fit"))
    if what == "gold":
      peaks = [(x.distance, x.gold) for x in row.observed]
      lines.append(Line("", *zip(*peaks, strict=True), colour, "peak"))
  caption = (
    "Means of the seeds; a triangle is the peak of one, dotted the fit."
    if what == "gold"
    else "Means of the seeds."
  )
  limits = _limits(rows) if what == "gold" else {}
  content = Scores(f"{what} (deviations of the start)", lines, **limits)
  return picture(title, content, name, caption)


def of_judge(row: Row) -> Picture:
  """Returns gold, proxy and fit of one judge, each seed faint."""
  lines = []
  for what, colour, kind in (
    ("proxy", "after", "dashed"),
    ("gold", "gold", "line"),
  ):
    for curve in row.curves:
      value = getattr(curve, what)
      lines.append(Line("", curve.distance, value, colour, "faint"))
    lines.append(Line(what, *_mean_line(row.curves, what), colour, kind))
  if row.fit is not None:
    lines.append(Line("fit", *_fit_line(row), "ink", "fit"))
  peaks = [(x.distance, x.gold) for x in row.observed]
  lines.append(Line("", *zip(*peaks, strict=True), "gold", "peak"))
  fit = "no fit: too few points"
  if row.fit is not None:
    fit = (
      f"alpha {number(row.fit.alpha)}, beta {number(row.fit.beta)}, R2 "
      f"{number(row.fit.r2)}, peak at d = {_finite(row.fit.peak)}"
    )
  caption = (
    f"{fit}. Peak {number(row.mean('gold'))} at d = "
    f"{number(row.mean('distance'))}, end {number(row.mean('end'))}."
  )
  name = f"{METHODS[row.method]} {row.judge}"
  floor = _limits([row])["floor"]
  content = Scores("score (deviations of the start)", lines, floor)
  return picture(f"{row.judge}, {METHODS[row.method]}", content, name, caption)


def _finite(value: float) -> str:
  """Returns a fitted number; where a curve has no turn its peak is anywhere."""
  if math.isinf(value):
    return "none"
  return f"over {FAR:,.0f}" if value > FAR else number(value)


def _span(row: Row, name: str) -> Cell:
  if row.fit is None:
    return plain(None)
  value, (low, high) = getattr(row.fit, name), row.spans[name]
  if math.isinf(value):
    return Cell("none")
  if math.isnan(low):
    return plain(value)
  return Cell(_finite(value), f"{_finite(low)} to {_finite(high)}")


def _r2(row: Row) -> Cell:
  if row.fit is None:
    return plain(None)
  return Cell(number(row.fit.r2, 3), f"each {number(row.r2_each, 3)}")


def _share(value: float) -> Cell:
  if math.isnan(value):
    return plain(None)
  return Cell(f"{100 * value:.0f} %", is_bad=value < 0.9)


def fits(rows: Sequence[Row]) -> Table:
  """Returns the fitted coefficients of each judge."""
  cells = []
  for row in rows:
    far = row.extrapolation
    accuracy = row.flat().get("accuracy")
    cells.append(
      [
        f"{row.judge}, {METHODS[row.method]}",
        plain(accuracy, 3),
        _span(row, "alpha"),
        _span(row, "beta"),
        _r2(row),
        _span(row, "peak"),
        _span(row, "top"),
        plain(None if far is None else far.error),
      ]
    )
  heads = ["judge", "accuracy", "alpha", "beta", "R2", "d at peak"]
  return Table(
    [*heads, "gold there", "extrapolation"],
    cells,
    "Fits",
    "RL: d (alpha - beta log d), best of n: d (alpha - beta d). Intervals: "
    "95 % over redrawn seeds. Below R2 that of the seeds' own fits, the mean: "
    "where each seed has a gold of its own, one curve for all explains less. "
    "Extrapolation: error of the far half when the "
    "near half is fitted, over the range of gold. A fit reads a curve until "
    "its gold is back at the start.",
  )


def ends(rows: Sequence[Row]) -> Table:
  """Returns where each judge's gold peaks, ends, and what stopping keeps."""
  cells = []
  for row in rows:
    seeds = np.array([x.kept for x in row.observed])
    fallen = int(np.isfinite(row.falls).sum())
    cells.append(
      [
        f"{row.judge}, {METHODS[row.method]}",
        plain(row.mean("distance")),
        plain(row.mean("gold")),
        plain(row.mean("end_distance")),
        plain(row.mean("end")),
        interval(row.mean("kept"), float(seeds.min()), float(seeds.max())),
        f"{fallen} of {len(row.curves)}",
        _share(row.probe),
        _share(row.limit),
      ]
    )
  heads = ["judge", "peak d", "peak gold", "end d", "end gold", "kept", "fell"]
  return Table(
    [*heads, "probe keeps", "fit keeps"],
    cells,
    "Peaks, ends and early stopping",
    "Kept: gold at the end over its peak, least and most of the seeds below. "
    "Fell: seeds whose gold ends a tenth below the peak. Probe: the best step "
    "before gold measured every few steps was not better three times in a "
    "row. Fit: the last step before d passes the peak of the other seeds' fit.",
  )


def kept_steps(rows: Sequence[Row]) -> Table:
  """Returns where the best step of each policy run is kept."""
  cells = []
  for row in rows:
    for curve in row.curves:
      folder = curve.facts.get("folder")
      if folder and curve.probe:
        # As checkpoints are kept: of the whole run, the newest of equals.
        known = [(x, i) for i, x in enumerate(curve.probe) if x is not None]
        best, place = max(known)
        cells.append(
          [
            f"{row.judge}, seed {curve.seed}",
            str(place + 1),
            plain(best),
            plain(known[-1][0]),
            Cell(f"{folder}@best"),
          ]
        )
  return Table(
    ["run", "best step", "probe there", "probe at the end", "start from it"],
    cells,
    "Kept steps",
    "By the gold probe on held-out prompts. A run ends itself when the probe "
    "is not better three times in a row with --config.schedule.patience=3, or "
    "beyond a fitted peak with --config.shaping.halt_nats = d x d.",
  )


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Returns what is compared in one picture: ladders, and ensembles."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    for ladder in row.curves[0].ladders:
      found.setdefault(ladder, []).append(row)
  named = {x.judge: x for x in rows}
  for row in rows:
    single = named.get(row.curves[0].facts.get("single", ""))
    if single is not None:
      found.setdefault("rule", [single]).append(row)
  return {k: x for k, x in found.items() if len(x) > 1}


def page(
  title: str,
  table: Sequence[Row],
  claims: Sequence[Claim],
  facts: Sequence[tuple[str, Any]],
  notes: Sequence[tuple[str, str]] = (),
) -> Page:
  """Returns the page of a study.

  Args:
    title: of the page.
    table: rows of all judges and methods.
    claims: what was asked of them.
    facts: where the numbers come from.
    notes: (level, sentence) above the pictures.
  """
  sections = [claims_lib.section(claims)]
  for method, label in METHODS.items():
    rows = [x for x in table if x.method == method]
    compared = [
      side_by_side(those, what, f"{what}, by {name}", f"{method} {name} {what}")
      for name, those in _groups(rows).items()
      for what in ("gold", "proxy")
    ]
    sections.append(Section(f"Judges side by side: {label}", pictures=compared))
  sections += [
    Section(
      "Fits, peaks and ends",
      tables=[ends(table), fits(table), kept_steps(table)],
    ),
    Section("Each judge", pictures=[of_judge(x) for x in table]),
  ]
  seen = sum(x.holds for x in claims)
  rl = [x for x in table if x.method == "rl" and x.observed]
  tiles = [("claims seen", f"{seen} of {len(claims)}", "")]
  if rl:
    worst = min(rl, key=lambda x: x.mean("end"))
    best = max(rl, key=lambda x: x.mean("end"))
    tiles += [
      ("lowest end of gold", number(worst.mean("end")), worst.judge),
      ("highest end of gold", number(best.mean("end")), best.judge),
    ]
  return Page(
    title=title,
    subtitle="Gold and proxy against the square root of the KL (Gao et al. "
    "2022; Coste et al. 2023)",
    tiles=tiles,
    warnings=notes,
    sections=sections,
    facts=facts,
  )
