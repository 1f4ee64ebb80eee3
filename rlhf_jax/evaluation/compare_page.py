"""One self-contained HTML page of several runs and policies side by side.

As the report: no script, nothing loaded, every text escaped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from rlhf_jax import terminal
from rlhf_jax.evaluation import canvas, figures, overlays
from rlhf_jax.evaluation.report import ABSENT, number

MOST_PANELS = 30


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer of a policy. scores: (judge, score)."""

  policy: int
  text: str
  scores: Sequence[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Page:
  """What the page shows; every part but the runs may be empty.

  runs: (name, folder).
  policies: names.
  colours: number of the colour of each policy.
  notes: sentences: what was left out, and why.
  judgements: of comparisons/tables.py.
  texts: (name, value of each policy).
  results, last_values: (name, value of each run).
  settings: (field, value of each run).
  curves: metric -> number of a run -> (steps, values).
  prompts: (prompt, answers of all policies).
  count: answers of each policy to the prompts that all answered.
  """

  title: str
  runs: Sequence[tuple[str, str]]
  policies: Sequence[str] = ()
  colours: Sequence[int] = ()
  notes: Sequence[str] = ()
  judgements: Sequence[Any] = ()
  texts: Sequence[tuple[str, Sequence[float | None]]] = ()
  results: Sequence[tuple[str, Sequence[float | None]]] = ()
  last_values: Sequence[tuple[str, Sequence[float | None]]] = ()
  settings: Sequence[tuple[str, Sequence[Any]]] = ()
  curves: Mapping[str, Mapping[int, overlays.Series]] = dataclasses.field(
    default_factory=dict
  )
  prompts: Sequence[tuple[str, Sequence[Answer]]] = ()
  count: int = 0


def _short(value: float | None) -> str:
  """Returns a number in four digits, a dash for none."""
  if value is None or math.isnan(value):
    return ABSENT
  return terminal.short(value, 4).replace("-", figures.MINUS)


def _interval(low: float | None, high: float | None, decimals: int) -> str:
  if low is None:
    return ""
  return f"{number(low, decimals)} to {number(high, decimals)}"


def _judgement(found: Any) -> dict[str, Any]:
  """Returns what the template reads of a judgement."""
  rows = []
  places = sorted(
    range(len(found.rows)), key=lambda i: -found.rows[i].ranked.elo
  )
  for place in places:
    row = found.rows[place]
    ranked = row.ranked
    rows.append(
      {
        "policy": place,
        "name": row.name,
        "elo": number(ranked.elo, 0, sign=True),
        "elo_interval": _interval(ranked.low, ranked.high, 0),
        "score": _short(row.score),
        "difference": ABSENT
        if row.difference is None
        else number(row.difference, 3, sign=True),
        "difference_interval": _interval(row.low, row.high, 3),
        "wins": number(row.wins, 3),
        "wins_interval": _interval(row.wins_low, row.wins_high, 3),
        "is_clear": row.low is not None and (row.low > 0 or row.high < 0),
      }
    )
  matrix = [
    {
      "policy": i,
      "name": found.rows[i].name,
      "cells": [
        {
          "text": ABSENT if i == j else number(float(found.matrix[i, j]), 2),
          "shade": f"{abs(float(found.matrix[i, j]) - 0.5) * 110:.0f}",
          "side": "win" if found.matrix[i, j] > 0.5 else "lose",
          "is_self": i == j,
        }
        for j in places
      ],
    }
    for i in places
  ]
  return {
    "judge": found.judge,
    "prompts": found.prompts,
    "first": found.rows[0].name,
    "rows": rows,
    "matrix": matrix,
  }


def _cell(value: Any) -> str:
  if value is None:
    return ABSENT
  return value if isinstance(value, str) and value else repr(value)


def render(page: Page) -> str:
  """Returns the page as one HTML document that loads nothing."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  differing = [x for x in page.results if len(set(x[1])) > 1]
  same = [x for x in page.results if len(set(x[1])) == 1]
  names = list(page.curves)
  shown = names[:MOST_PANELS]
  return environment.get_template("compare.html").render(
    page=page,
    palette=canvas.PALETTE,
    colours=overlays.COLOURS,
    judgements=[_judgement(found) for found in page.judgements],
    texts=[(name, [_short(x) for x in row]) for name, row in page.texts],
    results=[(name, [_short(x) for x in row]) for name, row in differing],
    same=[(name, [_short(x) for x in row]) for name, row in same],
    last_values=[
      (name, [_short(x) for x in row]) for name, row in page.last_values
    ],
    settings=[(name, [_cell(x) for x in row]) for name, row in page.settings],
    panels=[
      {"name": name, "svg": overlays.inline_svg(name, page.curves[name])}
      for name in shown
    ],
    undrawn=names[MOST_PANELS:],
    prompts=[
      (
        prompt,
        [
          {
            "policy": x.policy,
            "text": x.text,
            "scores": [(k, number(v, sign=True)) for k, v in x.scores],
          }
          for x in answers
        ],
      )
      for prompt, answers in page.prompts
    ],
  )
