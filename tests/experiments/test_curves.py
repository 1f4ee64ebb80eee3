"""The table of a study and what it claims, on curves made by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation import overoptimisation as over
from rlhf_jax.evaluation import table_page
from rlhf_jax.experiments import claims as claims_lib
from rlhf_jax.experiments import curves, curves_page
from rlhf_jax.experiments.curves import Curve
from rlhf_jax.schema import UserError

D = np.linspace(0.0, 6.0, 61)


def curve(judge, beta, seed=0, **fields):
  """Returns a curve of RL that follows its law, with another alpha a seed."""
  gold = over.Fit("rl", 1.0 + 0.05 * seed, beta).at(D)
  return Curve(
    judge, "rl", seed, D.tolist(), gold.tolist(), D.tolist(), **fields
  )


def ladder(betas=(0.7, 0.5, 0.3)):
  return [
    curve(f"layer {i}", beta, seed, ladders={"depth": i})
    for i, beta in enumerate(betas)
    for seed in range(3)
  ]


def test_a_row_knows_peak_end_and_what_stopping_keeps():
  [row] = curves.rows([curve("x", 0.5, seed) for seed in range(3)])
  peak = math.exp(1.05 / 0.5 - 1.0)  # of the middle seed
  assert row.fit.peak == pytest.approx(peak, rel=0.02)
  assert row.spans["peak"].low < peak < row.spans["peak"].high
  assert row.mean("distance") == pytest.approx(peak, abs=0.1)
  assert row.mean("kept") < 0.9 and np.isfinite(row.falls).all()
  assert row.probe > 0.99  # three steps of a tenth behind the peak are cheap
  assert row.limit > 0.98
  flat = row.flat()
  assert flat["seeds"] == flat["fallen_seeds"] == 3
  assert flat["halt_nats"] == pytest.approx(row.fit.peak**2)


def test_a_probe_that_was_measured_decides():
  probe = [None] * len(D)
  for place, value in ((10, 1.0), (20, 2.0), (30, 1.5), (40, 1.0), (50, 0.5)):
    probe[place] = value
  assert curves.best_place(curve("x", 0.5, probe=probe)) == 21


def test_the_kept_step_is_that_of_the_checkpoint():
  """Of the whole run, where nothing ended it, and the newest of equals."""
  probe = [None] * len(D)
  for n, value in enumerate((1.0, 2.0, 1.0, 1.0, 1.0, 3.0, 3.0)):
    probe[4 + 4 * n] = value
  kept = curve("x", 0.5, probe=probe, facts={"folder": "F"})
  [row] = curves_page.kept_steps(curves.rows([kept])).rows
  assert row[1] == "29" and [x.text for x in row[2:4]] == ["3.00", "3.00"]


def test_a_peak_that_is_nowhere_has_numbers_all_the_same():
  gold = over.Fit("rl", 1.0, 0.002).at(D)  # its peak is at exp(499)
  one = Curve("x", "rl", 0, D.tolist(), gold.tolist(), D.tolist())
  assert curves.rows([one])[0].flat()["halt_nats"] == math.inf


def test_better_judges_fall_later_and_the_order_matters():
  found = {x.text: x for x in claims_lib.claims(curves.rows(ladder()))}
  assert all(x.holds for x in found.values()), found
  assert len(found) == 6
  later = "by depth, gold of layer 2 turns later than that of layer 0"
  assert sum(x.startswith(later) for x in found) == 1
  wrong = claims_lib.claims(curves.rows(ladder((0.3, 0.5, 0.7))))
  assert not any("layer" not in x.text and x.holds for x in wrong)


def test_an_ensemble_is_held_against_its_single_model():
  fallen = [curve("one", 0.7, seed) for seed in range(2)]
  kept = [
    curve("min", 0.3, seed, rule="min", facts={"single": "one"})
    for seed in range(2)
  ]
  found = claims_lib.claims(curves.rows(fallen + kept))
  assert [x.holds for x in found] == [True, True]
  assert "keeps 90 %" in found[0].text and "2 standard" in found[1].text
  swapped = [
    curve("one", 0.3),
    curve("min", 0.7, rule="min", facts={"single": "one"}),
  ]
  assert not claims_lib.claims(curves.rows(swapped))[0].holds


def said(table, words):
  """Returns the claim whose text has these words."""
  [found] = [x for x in claims_lib.claims(table) if words in x.text]
  return found


def of_gold(judge, gold, seed=0, **fields):
  d = [float(i) for i in range(len(gold))]
  return Curve(judge, "rl", seed, d, list(gold), d, **fields)


def test_a_fall_within_three_errors_is_none():
  """The end, of four points, is 1.0 +- 0.2 standard errors."""
  ups = np.linspace(0.0, 1.0, 36)
  end = 1.0 + 0.2 * np.sqrt(4.0) * np.array([-1, 1, -1, 1]) / np.sqrt(4 / 3)
  for top, holds in ((1.5, False), (1.7, True)):
    gold = [*ups[:20], top, *ups[20:], *end[:3], end[3]]
    both = [of_gold(f"j{i}", gold, ladders={"l": i}) for i in range(2)]
    table = curves.rows(both)
    assert table[0].observed[0].error == pytest.approx(0.2, rel=0.01)
    assert said(table, "3 standard errors").holds == holds


def test_a_difference_within_two_errors_is_none():
  """Ends of 1, 2, 4 seeds above the others': 2.33 +- 0.88; or 0, 2, 4."""
  for gains, holds in (((1.0, 2.0, 4.0), True), ((0.0, 1.0, 4.0), False)):
    table = curves.rows(
      [
        of_gold(f"j{i}", [0.0, 5.0 + i * gain], seed, ladders={"l": i})
        for i in range(2)
        for seed, gain in enumerate(gains)
      ]
    )
    assert said(table, "ends higher").holds == holds


def test_an_ensemble_keeps_what_its_single_model_must_lose():
  kept, fallen = [0.0, 1.0, 0.95], [0.0, 1.0, 0.85]
  for single, several, holds in (
    (fallen, kept, True),
    (kept, kept, False),
    (fallen, fallen, False),
  ):
    table = curves.rows(
      [
        of_gold("one", single),
        of_gold("min", several, rule="min", facts={"single": "one"}),
      ]
    )
    assert said(table, "keeps 90 %").holds == holds


def test_more_kl_for_four_fifths_of_the_proxy_in_nine_of_ten_runs():
  def pair(seed, spent):
    """Best of n has proxy 0.8 of 1 at d = 1, RL at `spent`."""
    bon = Curve("x", "best_of_n", seed, [0, 1, 2], [0, 1, 1], [0, 0.8, 1.0])
    rl = Curve("x", "rl", seed, [0, spent, 9], [0, 1, 1], [0, 0.85, 0.9])
    return [bon, rl]

  for less, holds in ((0, True), (1, True), (2, False)):
    spent = [0.5] * less + [1.5] * (10 - less)
    table = curves.rows([x for n in range(10) for x in pair(n, spent[n])])
    found = said(table, "9 of 10")
    assert found.holds == holds and f"{10 - less} of 10" in found.found


def test_a_fit_that_explains_less_is_no_law():
  d = np.sqrt(np.arange(12.0))
  law = over.Fit("best_of_n", 1.0, 0.1).at(d)
  for noise, holds in ((0.0, True), (0.15, False)):
    gold = law + noise * np.where(np.arange(12) % 2, 1.0, -1.0)
    one = Curve("x", "best_of_n", 0, d.tolist(), gold.tolist(), d.tolist())
    assert said(curves.rows([one]), "R2 of the").holds == holds


def test_a_weak_order_is_no_ladder():
  """Falls at 1, 2, 3, 4 and at 2, 1, 4, 3: rank correlation 1 and 0.6."""
  for falls, holds in (((1, 2, 3, 4), True), ((2, 1, 4, 3), False)):
    both = [
      of_gold(f"j{i}", [1.0] * fall + [0.1] * (6 - fall), ladders={"l": i})
      for i, fall in enumerate(falls)
    ]
    assert said(curves.rows(both), "fall later").holds == holds


def test_a_fit_stops_a_seed_by_the_peaks_of_the_others():
  """Seed 1 turns at 1.5, the others at e: they let it go too far."""
  d = D[D < 4.05]  # until seed 1 is back at the start
  betas = (0.5, 1.0 / (1.0 + math.log(1.5)), 0.5)
  runs = [
    Curve("x", "rl", i, d.tolist(), over.Fit("rl", 1.0, b).at(d).tolist(), d)
    for i, b in enumerate(betas)
  ]
  shares = []
  for i, run in enumerate(runs):
    others = [runs[(i + 1) % 3].fitted, runs[(i + 2) % 3].fitted]
    fit = over.fit(*map(np.concatenate, zip(*others, strict=True)), "rl")
    place = over.stop_by_distance(d, fit.peak)
    shares.append(run.gold[place] / max(run.gold))
  [row] = curves.rows(runs)
  assert row.limit == pytest.approx(np.mean(shares))
  assert shares[1] < 0.97  # by a peak of its own it would keep all
  both = [dataclasses.replace(x, method="best_of_n") for x in runs]
  assert math.isnan(curves.rows(both)[0].limit)


def test_noise_neither_ends_a_fit_nor_makes_a_share():
  gold = np.linspace(0.0, 2.0, 20)
  gold[10:] = np.linspace(1.0, 0.2, 10)
  gold[15] = -0.4  # one step of luck, not the start again
  noisy = of_gold("x", gold, width=5)
  assert len(noisy.fitted[0]) == 20
  assert len(dataclasses.replace(noisy, width=1).fitted[0]) == 15
  seen = over.observe(*noisy.points, 5)
  share = curves._share(noisy, 15)
  assert share == pytest.approx(gold[13:18].mean() / seen.gold)


def test_one_that_never_falls_has_no_such_distance():
  rising = Curve("x", "rl", 0, D.tolist(), D.tolist(), D.tolist())
  assert curves.falls_at(rising) == math.inf
  back = np.where(D < 3, D, 2.0)
  back[-1] = 3.0
  there = Curve("x", "rl", 0, D.tolist(), back.tolist(), D.tolist())
  assert curves.falls_at(there) == math.inf  # it came back


def test_a_dip_that_passes_is_no_fall():
  gold = [0.0, 1.0, 0.85, 1.0, 0.95, 0.5, 0.4]
  d = [float(i) for i in range(len(gold))]
  assert curves.falls_at(Curve("x", "rl", 0, d, gold, gold)) == 5.0


def weakest(width, points):
  """Returns what is said of a weak judge that ends low."""
  gold = [0.0, 1.0, *[0.9 - 0.1 * i for i in range(points - 2)]]
  d = [float(i) for i in range(points)]
  both = [
    Curve("x", "rl", 0, d, gold, d, {"l": 0}, width=width),
    Curve("y", "rl", 0, d, gold, d, {"l": 1}, width=width),
  ]
  return claims_lib.claims(curves.rows(both))[0]


def test_an_unknown_error_lets_nothing_hold_but_where_gold_is_exact(
  monkeypatch,
):
  assert weakest(1, 6).holds
  real = over.observe
  unknown = lambda *x: real(*x)._replace(error=math.nan)  # noqa: E731
  monkeypatch.setattr(curves.over, "observe", unknown)
  assert weakest(1, 6).holds
  found = weakest(3, 6)
  assert not found.holds and "not known in 1" in found.found


def test_two_ways_are_compared_seed_by_seed():
  def made(method, seed, d):
    return Curve("x", method, seed, [0.0, d], [0.0, 1.0], [0.0, 1.0])

  bon = [made("best_of_n", seed, d) for seed, d in ((0, 9.0), (1, 1.0))]
  table = curves.rows([*bon, made("rl", 1, 2.0)])
  found = {x.text[:8]: x for x in claims_lib.claims(table)}["RL spend"]
  assert found.holds and found.found.startswith("1 of 1")


def test_curves_come_back_from_disk_and_a_damaged_one_is_named(tmp_path):
  first = curve("layer 6, deep", 0.5, facts={"accuracy": 0.75})
  curves.write(tmp_path, first)
  [found] = curves.read(tmp_path)
  assert found == dataclasses.replace(first, probe=[])
  [path] = (tmp_path / curves.FOLDER).glob("*.json")
  path.write_text("{")
  with pytest.raises(UserError, match="delete it"):
    curves.read(tmp_path)


def test_tables_and_page_are_written(tmp_path):
  bon = Curve("layer 0", "best_of_n", 0, [0.0, 0.5], [0.0, 0.4], [0.0, 0.5])
  table = curves.rows([*ladder(), bon])
  claims = claims_lib.claims(table)
  curves.write_tables(tmp_path, table)
  lines = (tmp_path / "table.jsonl").read_text().splitlines()
  assert [json.loads(x)["judge"] for x in lines] == [x.judge for x in table]
  assert (tmp_path / "table.md").read_text().count("\n") == len(table) + 2
  assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 10
  page = curves_page.page("A study", table, claims, [("seeds", "3")])
  table_page.write(tmp_path / "page.html", page)
  text = (tmp_path / "page.html").read_text()
  assert "gold, by depth" in text and "<script" not in text
  names = {x.stem for x in (tmp_path / "figures").glob("*.png")}
  assert {"rl_depth_gold", "rl_depth_proxy", "rl_layer_0"} <= names
