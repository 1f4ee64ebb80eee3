"""Tables and the picture of a sweep."""

import csv
import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation import seeds
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import pictures, results, trials


@pytest.fixture
def sweep(tmp_path):
  """Returns (folder, trials): two rates with three seeds, one run failed."""
  found = trials.make([{"a.rate": 0.1}, {"a.rate": 10.0}], 0, 3)
  losses = [1.0, 5.0, 2.0, 7.0, 3.0, None]
  for trial, loss in zip(found, losses, strict=True):
    folder = tmp_path / trial.id
    folder.mkdir()
    state = {"status": "done" if loss else "failed", "seconds": 2.0}
    (tmp_path / f"{trial.id}.json").write_text(json.dumps(state))
    if loss is not None:
      row = {"step": 1, "phase": "", "sft/loss": loss}
      (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  return tmp_path, found


def test_the_interval_is_students():
  spread = seeds.spread([1.0, 2.0, 3.0])
  assert spread[:4] == (3, 2.0, 1.0, 3.0)
  half = 4.302653 / math.sqrt(3)  # t(2, 97.5 %) s / sqrt(n), s = 1
  assert spread.interval_low == pytest.approx(2 - half, abs=1e-6)
  assert spread.interval_high == pytest.approx(2 + half, abs=1e-6)
  assert math.isnan(seeds.spread([1.0]).interval_low)
  assert seeds.spread([]).count == 0


def test_the_interval_covers_the_mean_as_often_as_it_says():
  draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
  found = [seeds.spread(row) for row in draws]
  covered = np.mean([x.interval_low < 3.0 < x.interval_high for x in found])
  assert abs(covered - 0.95) < 0.02


def test_seeds_stand_together_and_the_best_comes_first(sweep):
  folder, found = sweep
  assert results.choose(folder, found, "") == "sft/loss"
  rows, settings = results.write(folder, found, "sft/loss", "min")
  assert [row["metric"] for row in rows] == [1.0, 5.0, 2.0, 7.0, 3.0, None]
  assert [x["a.rate"] for x in settings] == [0.1, 10.0]
  assert settings[0]["trials"] == "001 003 005"
  assert (settings[0]["mean"], settings[1]["mean"]) == (2.0, 6.0)
  assert (settings[1]["runs"], settings[1]["of"]) == (2, 3)
  _, turned = results.write(folder, found, "sft/loss", "max")
  assert [x["a.rate"] for x in turned] == [10.0, 0.1]


def test_settings_that_went_further_come_first(sweep):
  folder, found = sweep
  rows = results.trial_rows(folder, found, "sft/loss", "min")
  steps = [2, 8, 2, 8, 2, 8]
  rows = [row | {"steps": x} for row, x in zip(rows, steps, strict=True)]
  settings = results.group_rows(found, rows, "min")
  assert [(x["a.rate"], x["steps"]) for x in settings] == [(10.0, 8), (0.1, 2)]


def test_the_files_say_the_same(sweep):
  folder, found = sweep
  results.write(folder, found, "sft/loss", "min")
  with (folder / "results.csv").open() as file:
    table = list(csv.DictReader(file))
  lines = (folder / "results.jsonl").read_text().splitlines()
  for row, line in zip(table, lines, strict=True):
    assert float(row["mean"]) == json.loads(line)["mean"]
  assert json.loads(lines[0])["metric_name"] == "sft/loss"
  page = (folder / "results.md").read_text()
  assert "# sft/loss, less is better" in page
  assert "| rate | runs | mean | range | 95 % | trials |" in page
  assert "| 0.1 | 3 | 2 | 1 to 3 | -0.4841 to 4.484 | 001 003 005 |" in page
  assert "| 10.0 | 2 of 3 | 6 | 5 to 7 |" in page
  assert "Without a result: 006 failed." in page
  with (folder / "trials.csv").open() as file:
    assert [row["metric"] for row in csv.DictReader(file)][-1] == ""


def test_a_metric_that_no_trial_has_is_refused(sweep):
  folder, found = sweep
  with pytest.raises(UserError, match="Did you mean 'sft/loss'"):
    results.choose(folder, found, "sft/los")


def test_the_picture_shows_numbers_and_words(sweep):
  folder, found = sweep
  rows, settings = results.write(folder, found, "sft/loss", "min")
  assert pictures.varied(rows) == ["a.rate"]
  path = folder / "results.png"
  assert pictures.write(path, rows, settings, "sft/loss", "min")
  assert path.read_bytes()[:4] == b"\x89PNG"
  words = [row | {"kind": i % 3 == 0} for i, row in enumerate(rows)]
  assert pictures.varied(words) == ["a.rate", "kind"]
  for row in settings:
    row["kind"] = True
  assert pictures.write(path, words, settings, "sft/loss", "min")
  empty = [row | {"metric": None} for row in rows]
  assert not pictures.write(path, empty, settings, "sft/loss", "min")
