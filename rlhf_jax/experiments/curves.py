"""What a study of over-optimisation leaves: curves on disk, and their table.

WORKDIR/trials/NAME.json holds one curve: gold and proxy of one judge, one way
of optimising and one seed against d = sqrt(KL). A trial that is there is not
run again. All of them are one table, a row for each judge and way; see
evaluation/overoptimisation.py for what is fitted.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json, terminal
from rlhf_jax.evaluation import overoptimisation as over
from rlhf_jax.pipelines import workdir as workdir_lib

FOLDER = "trials"
FAR = 100.0  # nothing that was fitted so far out is a finding
FALL = 0.9  # of the peak: gold below it has fallen
PATIENCE = 3  # measurements of the gold probe
_REMEDY = "The file is damaged: delete it, and run the same command again."


@dataclasses.dataclass(frozen=True)
class Curve:
  """Gold and proxy of one judge along one way of optimising it.

  judge: what people call it.
  method: "rl" or "best_of_n".
  distance: [n] sqrt(nats), in the order of training or of n.
  gold, proxy: [n] in deviations of the start, 0 there.
  ladders: name -> rung: judges that differ in one thing have one ladder
    ("width"), and better ones are further up.
  rule: "single", or how members are combined.
  probe: [n] gold on held-out prompts, None where it was not measured; ()
    where gold itself is the probe, every `probe_every` points.
  width: of the smoothing that finds the peak; 1 where gold is exact.
  facts: further numbers: accuracy, pairs.
  """

  judge: str
  method: str
  seed: int
  distance: Sequence[float]
  gold: Sequence[float]
  proxy: Sequence[float]
  ladders: Mapping[str, int] = dataclasses.field(default_factory=dict)
  rule: str = "single"
  probe: Sequence[float | None] = ()
  probe_every: int = 1
  width: int = 1
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    """Of its file."""
    words = re.findall("[a-z0-9.]+", f"{self.judge} {self.method}".lower())
    return f"{'_'.join(words)}_{self.seed}"

  @property
  def points(self) -> tuple[np.ndarray, np.ndarray]:
    """(distance, gold), [n] each."""
    return np.asarray(self.distance), np.asarray(self.gold)

  @property
  def fitted(self) -> tuple[np.ndarray, np.ndarray]:
    """The points that a fit reads: until gold is back at the start."""
    d, gold = self.points
    count = len(over.until_start(d, over.smoothed(gold, self.width))[0])
    return d[:count], gold[:count]


def write(workdir: Path, curve: Curve) -> None:
  """Writes a curve, whole or not at all."""
  folder = workdir / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(strict_json.plain(dataclasses.asdict(curve)))
  workdir_lib.write_durably(folder / f"{curve.name}.json", text + "\n")


def read(workdir: Path) -> list[Curve]:
  """Returns all curves of a study by ladders, judge, method and seed.

  Raises:
    UserError: a file is damaged.
  """
  found = []
  names = {field.name for field in dataclasses.fields(Curve)}
  for path in sorted((workdir / FOLDER).glob("*.json")):
    values = strict_json.read_object(path, _REMEDY, allows_nan=True)
    found.append(Curve(**{k: x for k, x in values.items() if k in names}))
  return sorted(found, key=lambda x: (*_places(x), x.judge, x.method, x.seed))


def _places(curve: Curve) -> tuple[tuple[str, ...], tuple[int, ...]]:
  return tuple(curve.ladders), tuple(curve.ladders.values())


def grouped(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
  """Returns (judge, method) -> its curves, one a seed."""
  found: dict[tuple[str, str], list[Curve]] = {}
  for curve in curves:
    found.setdefault((curve.judge, curve.method), []).append(curve)
  return found


def falls_at(curve: Curve) -> float:
  """Returns d where gold is a tenth below its peak for good; inf if never."""
  d, gold = curve.points
  gold = over.smoothed(gold, curve.width)
  top = int(np.argmax(gold))
  below = (gold < FALL * gold[top]) & (np.arange(len(gold)) > top)
  if not below[-1]:
    return math.inf
  return float(d[np.flatnonzero(~below)[-1] + 1])  # the last unbroken run


@dataclasses.dataclass(frozen=True)
class Row:
  """A judge and a way of optimising it, over all seeds; see METHODS 12.

  fit, spans: of all points; intervals over seeds. None: too few points.
  each: the fit of each seed alone; seeds may have golds of their own.
  observed: of each seed.
  falls: d where gold has fallen, of each seed.
  probe: gold where a probe that falls stops the run, over the peak, means.
  limit: gold where d passes the peak that the other seeds' fit has, over peak.
  extrapolation: of all seeds together.
  """

  judge: str
  method: str
  curves: Sequence[Curve]
  fit: over.Fit | None
  each: Sequence[over.Fit | None]
  spans: Mapping[str, over.Interval]
  observed: Sequence[over.Observed]
  falls: Sequence[float]
  probe: float
  limit: float
  extrapolation: over.Extrapolation | None

  def mean(self, name: str) -> float:
    """Returns the mean over seeds of a field of `observed`."""
    return float(np.mean([getattr(x, name) for x in self.observed]))

  @property
  def r2_each(self) -> float:
    """Mean of R2 over the fits of single seeds; NaN without one."""
    known = [x.r2 for x in self.each if x is not None]
    return float(np.mean(known)) if known else math.nan

  def flat(self) -> dict[str, Any]:
    """Returns the row as plain names and numbers."""
    fit, far = self.fit, self.extrapolation
    first = self.curves[0]
    numbers: dict[str, Any] = {
      "judge": self.judge,
      "method": self.method,
      "rule": first.rule,
      "ladders": ", ".join(f"{k} {x}" for k, x in first.ladders.items()),
      "seeds": len(self.curves),
    }
    accuracy = [x.facts.get("accuracy") for x in self.curves]
    if None not in accuracy:
      numbers["accuracy"] = float(np.mean(accuracy))
    for name in ("alpha", "beta", "r2", "peak", "top"):
      numbers[name] = math.nan if fit is None else getattr(fit, name)
      if name in self.spans:
        numbers[f"{name}_low"], numbers[f"{name}_high"] = self.spans[name]
    numbers |= {
      "r2_each": self.r2_each,
      # A product, for a power of a peak that is nowhere overflows.
      "halt_nats": math.nan if fit is None else fit.peak * fit.peak,
      "observed_peak": self.mean("distance"),
      "observed_gold": self.mean("gold"),
      "end_gold": self.mean("end"),
      "end_distance": self.mean("end_distance"),
      "kept": self.mean("kept"),
      "falls_at": float(np.median(self.falls)),
      "fallen_seeds": int(np.isfinite(self.falls).sum()),
      "probe_kept": self.probe,
      "limit_kept": self.limit,
      "extrapolation_error": math.nan if far is None else far.error,
    }
    return numbers


def best_place(curve: Curve) -> int:
  """Returns where the best step is that a gold probe finds before it stops.

  A probe is measured after the step of its point, so the policy that it found
  is that of the next one.
  """
  places = list(range(0, len(curve.gold), curve.probe_every))
  values = [curve.gold[i] for i in places]
  if len(curve.probe):
    known = [i for i, x in enumerate(curve.probe) if x is not None]
    places = [min(i + 1, len(curve.gold) - 1) for i in known]
    values = [curve.probe[i] for i in known]
  _, best = over.stop_by_probe(np.asarray(values), PATIENCE)
  return places[best]


def _share(curve: Curve, place: int) -> float:
  seen = over.observe(*curve.points, curve.width)
  gold = over.smoothed(curve.points[1], curve.width)[place]
  return float(gold / seen.gold) if seen.gold > 0 else math.nan


def _stopped(curves: Sequence[Curve], form: str) -> tuple[float, float]:
  """Returns what a probe and what a fit of other seeds keep of the peak."""
  probes, limits = [], []
  for curve in curves:
    d, gold = curve.points
    probes.append(_share(curve, best_place(curve)))
    others = [x.fitted for x in curves if x is not curve]
    if others and form == "rl":
      fit = over.fit(*map(np.concatenate, zip(*others, strict=True)), form)
      if fit is not None:
        limits.append(_share(curve, over.stop_by_distance(d, fit.peak)))
  return float(np.mean(probes)), float(np.mean(limits)) if limits else math.nan


def row(curves: Sequence[Curve]) -> Row:
  """Returns the row of the curves of one judge and method."""
  first = curves[0]
  runs = [x.fitted for x in curves]
  d, gold = map(np.concatenate, zip(*runs, strict=True))
  probe, limit = _stopped(curves, first.method)
  return Row(
    judge=first.judge,
    method=first.method,
    curves=curves,
    fit=over.fit(d, gold, first.method),
    each=[over.fit(*x, first.method) for x in runs],
    spans=over.intervals(runs, first.method),
    observed=[over.observe(*x.points, x.width) for x in curves],
    falls=[falls_at(x) for x in curves],
    probe=probe,
    limit=limit,
    extrapolation=over.extrapolate(d, gold, first.method),
  )


def rows(curves: Sequence[Curve]) -> list[Row]:
  """Returns the table: a row for each judge and method."""
  return [row(x) for x in grouped(curves).values()]


# -- files ------------------------------------------------------------------


def _text(value: Any) -> str:
  if isinstance(value, str) or value is None:
    return value if value else ""
  if isinstance(value, float) and math.isnan(value):
    return ""
  return terminal.short(value)


def write_tables(workdir: Path, table: Sequence[Row]) -> None:
  """Writes table.jsonl, table.csv, table.md and curves.jsonl.

  Args:
    workdir: of the study.
    table: from `rows`.
  """
  flat = [x.flat() for x in table]
  columns = list(dict.fromkeys(name for one in flat for name in one))
  lines = [json.dumps(strict_json.plain(one)) for one in flat]
  (workdir / "table.jsonl").write_text("\n".join(lines) + "\n")
  stream = io.StringIO()
  writer = csv.DictWriter(stream, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(flat)
  (workdir / "table.csv").write_text(stream.getvalue())
  head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
  cells = [" | ".join(_text(x.get(name)) for name in columns) for x in flat]
  body = "".join(f"| {line} |\n" for line in cells)
  (workdir / "table.md").write_text(head + body)
  with (workdir / "curves.jsonl").open("w") as file:
    for one in table:
      for curve in one.curves:
        values = strict_json.plain(dataclasses.asdict(curve))
        file.write(json.dumps(values) + "\n")


SHOWN = {
  "judge": "judge",
  "method": "method",
  "seeds": "seeds",
  "r2": "R2",
  "r2_each": "of each",
  "peak": "fit peak d",
  "observed_peak": "peak d",
  "observed_gold": "peak gold",
  "end_gold": "end gold",
  "kept": "kept",
  "fallen_seeds": "fell",
  "probe_kept": "probe keeps",
  "limit_kept": "fit keeps",
}


def show(table: Sequence[Row]) -> None:
  """Prints the table; a peak that a fit puts far outside has no digits."""
  flat = [x.flat() for x in table]
  for one in flat:
    if FAR < (one.get("peak") or 0.0) < math.inf:
      one["peak"] = f">{FAR:g}"
  cells = [[_text(one.get(name)) for name in SHOWN] for one in flat]
  print("\n" + terminal.format_table(list(SHOWN.values()), cells))
