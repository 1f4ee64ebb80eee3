"""The Pareto front of a sweep: who is on it, the table and the picture."""

import csv
import json
import math

import numpy as np
import pytest

from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import fronts, trials

HELPFUL, COST = "heldout/component/helpful", "heldout/component/cost"
BOTH = f"{HELPFUL},-{COST}"
# weight -> (helpful, cost) of each seed; the third is dominated by the second
RUNS = {
  0.0: [(1.0, 0.1), (1.2, 0.1)],
  0.5: [(2.0, 0.3), (2.2, 0.5)],
  0.7: [(2.0, 0.9), (2.0, 0.9)],
  1.0: [(3.0, 2.0), (3.0, 2.0)],
}


@pytest.fixture
def sweep(tmp_path):
  found = trials.make([{"judges.safe.weight": w} for w in RUNS], 0, 2)
  for trial in found:
    seed = trial.seed
    helpful, cost = RUNS[trial.settings["judges.safe.weight"]][seed]
    (tmp_path / trial.id).mkdir()
    state = {"status": "done", "seconds": 2.0}
    (tmp_path / f"{trial.id}.json").write_text(json.dumps(state))
    row = {"step": 1, "phase": "", HELPFUL: helpful, COST: cost}
    row[f"{HELPFUL}_standard_error"] = 0.25
    path = tmp_path / trial.id / "metrics.jsonl"
    path.write_text(json.dumps(row) + "\n")
  return tmp_path, found


def test_who_is_dominated():
  points = [[0, 3], [1, 2], [1, 1], [2, 0], [0, 3], [2, -1]]
  found = fronts.on_front(np.asarray(points, float))
  assert found.tolist() == [True, True, False, True, True, False]


def test_the_front_against_every_pair():
  points = np.random.default_rng(0).integers(0, 6, size=(40, 3))
  expected = [
    not any(np.all(q >= p) and np.any(q > p) for q in points) for p in points
  ]
  assert fronts.on_front(points).tolist() == expected
  assert 0 < sum(expected) < 40


def test_settings_with_their_errors_and_whether_they_are_on_it(sweep):
  folder, found = sweep
  headers, cells = fronts.write(folder, found, fronts.read(BOTH))
  assert headers[-2:] == ["front", "runs"] and "less" in headers[2]
  rows = list(csv.DictReader((folder / "pareto.csv").open()))
  front = {float(r["judges.safe.weight"]): r["front"] for r in rows}
  assert front == {1.0: "True", 0.5: "True", 0.0: "True", 0.7: "False"}
  assert [row[0] for row in cells] == ["1.0", "0.5", "0.0", "0.7"]
  row = next(r for r in rows if float(r["judges.safe.weight"]) == 0.5)
  assert math.isclose(float(row[HELPFUL]), 2.1)
  error = np.std([2.0, 2.2], ddof=1) / np.sqrt(2)
  assert math.isclose(float(row[f"{HELPFUL}_standard_error"]), error)
  assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
  assert "| yes |" in (folder / "pareto.md").read_text()


def test_one_run_has_the_error_that_it_says(sweep):
  folder, found = sweep
  first = [trial for trial in found if trial.seed == 0]
  rows = fronts.rows_of(folder, first, fronts.read(BOTH))
  assert {row[f"{HELPFUL}_standard_error"] for row in rows} == {0.25}
  assert all(math.isnan(row[f"{COST}_standard_error"]) for row in rows)


@pytest.mark.parametrize(
  "text, message",
  [
    (HELPFUL, "between two or more"),
    (f"{HELPFUL},{HELPFUL}", "between two or more"),
    (f"{HELPFUL},rollout/length_mean", r"Write \+rollout/length_mean or -"),
  ],
)
def test_what_makes_no_front_is_refused(text, message):
  with pytest.raises(UserError, match=message):
    fronts.read(text)


def test_a_metric_that_no_run_has_is_refused(sweep):
  folder, found = sweep
  objectives = fronts.read("heldout/component/helpfull,heldout/component/cost")
  with pytest.raises(UserError, match="Did you mean"):
    fronts.rows_of(folder, found, objectives)
