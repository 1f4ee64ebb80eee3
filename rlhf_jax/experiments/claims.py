"""What the literature says of over-optimisation, asked of a table of curves.

Gao et al. 2022 (arXiv:2210.10760): gold turns, later for better judges; RL
spends more KL than best of n for the same proxy score. Coste et al. 2023
(arXiv:2310.02743): ensembles keep gold. METHODS annex A2b, A3. Seeds may have
golds of their own, which turn where they turn: beside rank correlations over
all runs stand differences seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation import overoptimisation as over
from rlhf_jax.evaluation.table_page import Cell, Section, Table
from rlhf_jax.experiments.curves import FALL, Curve, Row


@dataclasses.dataclass(frozen=True)
class Claim:
  """Something that the literature says, and whether it was seen here."""

  text: str
  holds: bool
  found: str


def claims(table: Sequence[Row], *, is_trained: bool = True) -> list[Claim]:
  """Returns what can be asked of a table: of RL but where it says else.

  Args:
    table: rows of all judges.
    is_trained: whether policies were trained: where RL ends by formula, nothing
      spends less KL.
  """
  rl = [x for x in table if x.method == "rl"]
  found = [*_falls(rl), *_ladders(rl), *_ensembles(rl)]
  found += _against(table) if is_trained else []
  fits = [x for x in table if x.method == "best_of_n" and any(x.each)]
  if fits:
    worst = min(fits, key=lambda x: x.r2_each)
    found.append(
      Claim(
        "best of n follows d (alpha - beta d): R2 of the seeds' own fits >= "
        "0.98 for all judges",
        worst.r2_each >= 0.98,
        f"mean {np.mean([x.r2_each for x in fits]):.3f}, the least "
        f"{worst.r2_each:.3f}, {worst.judge}",
      )
    )
  return found


def _falls(rl: Sequence[Row]) -> list[Claim]:
  """Returns whether the weakest judge of each ladder is over-optimised."""
  found = []
  for ladder, those in _by_ladder(rl).items():
    weak = those[0]
    seen = [x.end < x.gold - 3.0 * _error(c, x) for c, x in _seeds(weak)]
    unknown = sum(math.isnan(_error(*x)) for x in _seeds(weak))
    found.append(
      Claim(
        f"{weak.judge}, the weakest by {ladder}: gold ends 3 standard errors "
        "below its peak, in every seed",
        all(seen),
        f"peak {weak.mean('gold'):.2f}, end {weak.mean('end'):.2f}; "
        f"{sum(seen)} of {len(seen)} seeds"
        + (f", the error not known in {unknown}" if unknown else ""),
      )
    )
  return found


def _error(curve: Curve, seen: over.Observed) -> float:
  """Returns the end's standard error; NaN, with which nothing holds, of one
  point, but 0 where gold is exact.
  """
  is_exact = curve.width == 1
  return 0.0 if is_exact and math.isnan(seen.error) else seen.error


def _by_ladder(rl: Sequence[Row]) -> dict[str, list[Row]]:
  """Returns ladder -> its rows, the weakest judge first."""
  found: dict[str, list[Row]] = {}
  for one in rl:
    if one.curves[0].rule != "single":
      continue
    for ladder in one.curves[0].ladders:
      found.setdefault(ladder, []).append(one)
  return {
    ladder: sorted(those, key=lambda r: r.curves[0].ladders[ladder])
    for ladder, those in found.items()
    if len(those) > 1
  }


def _ladders(rl: Sequence[Row]) -> list[Claim]:
  """Returns whether better judges fall later, and less."""
  found = []
  for ladder, those in _by_ladder(rl).items():
    rung = np.array(
      [r.curves[0].ladders[ladder] for r in those for _ in r.curves]
    )
    seeds = np.array([c.seed for r in those for c in r.curves])
    falls = np.array([x for r in those for x in r.falls])
    kept = np.array([x.kept for r in those for x in r.observed])
    for what, values in (("fall later", falls), ("keep more", kept)):
      rho = over.rank_correlation(rung, values)
      each = [
        over.rank_correlation(rung[seeds == x], values[seeds == x])
        for x in np.unique(seeds)
      ]
      known = [x for x in each if not math.isnan(x)]
      within = f"{np.mean(known):.2f}" if known else "not known"
      found.append(
        Claim(
          f"better judges by {ladder} {what}: rank correlation >= 0.8 over "
          "judges and seeds",
          bool(rho >= 0.8),
          f"{rho:.2f} over {len(rung)} runs; {within} inside a seed, mean of "
          f"{len(known)}",
        )
      )
    for value, what in (
      ("distance", "turns later"),
      ("gold", "peaks higher"),
      ("end", "ends higher"),
    ):
      text = f"by {ladder}, gold of {those[-1].judge} {what} than that of "
      found += _exceeds(those[-1], those[0], value, f"{text}{those[0].judge}")
  return found


def _ensembles(rl: Sequence[Row]) -> list[Claim]:
  """Returns whether ensembles keep gold where their single model falls."""
  named = {x.judge: x for x in rl}
  found = []
  for one in rl:
    single = named.get(one.curves[0].facts.get("single", ""))
    if single is None:
      continue
    found.append(
      Claim(
        f"{one.judge}: keeps 90 % of its peak, {single.judge} does not",
        one.mean("kept") >= FALL > single.mean("kept"),
        f"{100 * one.mean('kept'):.0f} % and "
        f"{100 * single.mean('kept'):.0f} %; gold at the end "
        f"{one.mean('end'):.2f} and {single.mean('end'):.2f}",
      )
    )
    text = f"{one.judge}: gold ends above that of {single.judge}"
    found += _exceeds(one, single, "end", text)
  return found


def _exceeds(one: Row, other: Row, value: str, text: str) -> list[Claim]:
  """Returns whether a number is larger by 2 standard errors, seed by seed.

  Args:
    one, other: judges; seeds that only one of them has do not count.
    value: a field of Observed.
    text: what is claimed.
  """
  mine, theirs = (
    {c.seed: getattr(o, value) for c, o in _seeds(x)} for x in (one, other)
  )
  gain = np.array([x - theirs[k] for k, x in mine.items() if k in theirs])
  if len(gain) < 2:
    return []
  error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
  return [
    Claim(
      f"{text} by 2 standard errors",
      bool(gain.mean() > 2.0 * error),
      f"{gain.mean():+.2f}, standard error {error:.2f}, {len(gain)} seeds",
    )
  ]


def _seeds(row: Row) -> list[tuple[Curve, over.Observed]]:
  return list(zip(row.curves, row.observed, strict=True))


def _against(table: Sequence[Row]) -> list[Claim]:
  """Returns whether RL spends more KL than best of n for the same proxy."""
  by = {(x.judge, x.method): x for x in table}
  more = []
  for (judge, method), one in by.items():
    other = by.get((judge, "rl"))
    if method != "best_of_n" or other is None:
      continue
    by_seed = {curve.seed: curve for curve in other.curves}
    both = [(x, by_seed[x.seed]) for x in one.curves if x.seed in by_seed]
    for bon, rl in both:
      gain = 0.8 * max(bon.proxy)
      spent = [_distance_of(x, gain) for x in (bon, rl)]
      more.append(spent[1] > spent[0])
  if not more:
    return []
  return [
    Claim(
      "RL spends more KL than best of n for the same proxy score, in 9 of 10 "
      "runs",
      sum(more) >= 0.9 * len(more),
      f"{sum(more)} of {len(more)} runs, at 80 % of what best of n gains",
    )
  ]


def _distance_of(curve: Curve, proxy: float) -> float:
  """Returns the first d at which the proxy has reached a score."""
  reached = np.flatnonzero(np.asarray(curve.proxy) >= proxy)
  return float(curve.distance[reached[0]]) if len(reached) else math.inf


def section(found: Sequence[Claim]) -> Section:
  """Returns claims as a part of a page."""
  rows = [
    [x.text, Cell("yes" if x.holds else "no", is_bad=not x.holds), x.found]
    for x in found
  ]
  heads = ["claim", "seen", "numbers"]
  table = Table(heads, rows, is_text=True)
  return Section("What was asked, and what was seen", tables=[table])


def show(found: Sequence[Claim]) -> None:
  """Prints claims, a line each."""
  for claim in found:
    print(f"{'yes' if claim.holds else 'NO '}  {claim.text}: {claim.found}")
