"""The samples of a report: in which order, by which filter, in which colours.

The page runs no script. Every sample carries its place in each order, and CSS
takes the one that is chosen; filters hide by a class. A place is among all
samples that have the number; those without it come last in every order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation.pictures import number

SCORES = ("gold", "proxy", "verifier")  # the first that is there is the judge
WAYS = {"high": False, "low": True}  # of an order: whether it is rising
LAST = 100_000  # the place of what has no number
BOUNDS = (0.25, 0.75, 1.5)  # nats of a token's log-ratio: faint, clear, strong
EVEN = 1e-9  # a gain of no more is none


@dataclasses.dataclass(frozen=True)
class Browser:
  """What the template needs.

  rows: of each sample, with "places": (ORDER-WAY, its place) of all orders.
  orders: (key, text) of each that the samples have numbers for.
  filters: (key, text, count) of each class of samples.
  judge: whose gain it is, "" for none.
  coloured: how many samples have log-ratios.
  """

  rows: Sequence[Mapping[str, Any]]
  orders: Sequence[tuple[str, str]]
  filters: Sequence[tuple[str, str, int]]
  judge: str
  coloured: int


def places(values: Sequence[float | None], *, is_rising: bool) -> list[int]:
  """Returns the place of each value in an order; without one LAST."""
  known = [i for i, x in enumerate(values) if x is not None]
  ordered = sorted(
    known, key=lambda i: values[i] if is_rising else -values[i]
  )  # stable: equals stay as drawn
  found = [LAST] * len(values)
  for place, i in enumerate(ordered):
    found[i] = place
  return found


def _known(value: Any) -> float | None:
  if value is None or not math.isfinite(value):
    return None
  return float(value)


def shade(ratio: float) -> str:
  """Returns the class of a token: u1 to u3 is likelier than before, d1 to d3
  less likely, "" neither."""
  if not math.isfinite(ratio):
    return ""
  level = sum(abs(ratio) >= bound for bound in BOUNDS)
  return f"{'u' if ratio > 0 else 'd'}{level}" if level else ""


def _side(sample: Mapping[str, Any], side: str) -> dict[str, Any]:
  scores = [(name, _known(sample.get(f"{name}_{side}"))) for name in SCORES]
  return {
    "text": sample[side],
    "scores": [
      (name, number(value, sign=True))
      for name, value in scores
      if value is not None
    ],
    "pieces": (),
  }


def _pieces(sample: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """Returns (text, class, log-ratio) of the tokens after training."""
  return [
    (text, shade(ratio), number(ratio, sign=True))
    for text, ratio in sample.get("pieces") or ()
  ]


def make(samples: Sequence[Mapping[str, Any]]) -> Browser:
  """Returns what a page shows of samples.

  Args:
    samples: see report.Report.
  """
  columns = {
    name: [_known(sample.get(f"{name}_after")) for sample in samples]
    for name in SCORES
  }
  there = [n for n, x in columns.items() if any(v is not None for v in x)]
  judge = there[0] if there else ""
  gains = [_gain(sample, judge) for sample in samples]
  sortable = [(n, f"{n} score", columns[n]) for n in there]
  sortable += [("gain", f"gain by {judge}", gains)]
  sortable += [("kl", "KL", [_known(sample.get("kl")) for sample in samples])]
  sortable = [x for x in sortable if any(v is not None for v in x[2])]
  orders, ranks = [], {}
  for key, text, values in sortable:
    orders.append((key, text))
    for way, is_rising in WAYS.items():
      ranks[f"{key}-{way}"] = places(values, is_rising=is_rising)
  rows = []
  for i, sample in enumerate(samples):
    rows.append(
      {
        "prompt": sample["prompt"],
        "before": _side(sample, "before"),
        "after": _side(sample, "after") | {"pieces": _pieces(sample)},
        "places": [(key, found[i]) for key, found in ranks.items()],
        "gain": gains[i],
        "shown_gain": number(gains[i], sign=True),
        "kl": _shown_kl(sample),
        "class": _class(gains[i]),
      }
    )
  counts = [sum(row["class"] == key for row in rows) for key in _CLASSES]
  return Browser(
    rows=rows,
    orders=orders,
    filters=[
      (key, text, count)
      for (key, text), count in zip(_CLASSES.items(), counts, strict=True)
      if count
    ],
    judge=judge,
    coloured=sum(bool(row["after"]["pieces"]) for row in rows),
  )


_CLASSES = {"better": "better", "worse": "worse", "even": "as before"}


def _gain(sample: Mapping[str, Any], judge: str) -> float | None:
  after = _known(sample.get(f"{judge}_after"))
  before = _known(sample.get(f"{judge}_before"))
  return None if after is None or before is None else after - before


def _class(gain: float | None) -> str:
  if gain is None:
    return ""
  if abs(gain) <= EVEN:
    return "even"
  return "better" if gain > 0 else "worse"


def _shown_kl(sample: Mapping[str, Any]) -> str:
  kl = _known(sample.get("kl"))
  return "" if kl is None else number(kl, sign=True)
