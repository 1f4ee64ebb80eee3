"""benchmarks/work.py: what counts as more work, and defaults do no more."""

import importlib.util
import json
from pathlib import Path

import pytest

from rlhf_jax import metrics, pipelines

FILE = Path(__file__).parent.parent / "benchmarks" / "work.py"
ROW = {"calls": 4, "shapes": 1, "cells": 1000, "fill": 0.9}
ROW |= {"flops": 5000, "bytes": 700}


@pytest.fixture(scope="module")
def work():
  spec = importlib.util.spec_from_file_location("work", FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({}, []),
    ({"cells": 1019}, []),
    ({"cells": 1030}, ["sft update: cells 1,030 > 1,000 stored"]),
    ({"shapes": 2}, ["sft update: shapes 2 > 1 stored"]),
    ({"flops": 5600}, ["sft update: flops 5,600 > 5,000 stored"]),
    ({"bytes": 1000}, ["sft update: bytes 1,000 > 700 stored"]),
    ({"cells": 10, "flops": 10}, []),
  ],
)
def test_more_than_what_is_stored_is_named(work, change, said):
  stored = {"sft": {"update": ROW}}
  assert work.worse({"sft": {"update": ROW | change}}, stored) == said


def test_programs_that_come_and_go_are_named(work):
  stored = {"sft": {"update": ROW, "old": ROW}}
  found = {"sft": {"update": ROW, "other": ROW}}
  assert work.worse(found, stored) == ["sft old: gone", "sft other: new"]


def test_much_less_should_be_stored(work):
  stored = {"sft": {"update": ROW}}
  less = {"sft": {"update": ROW | {"cells": 800}}}
  assert work.better(less, stored) == ["sft update: cells 800 < 1,000"]
  assert work.better(stored, stored) == []


@pytest.mark.slow
def test_a_program_that_reads_padded_rows_is_noticed(work, tmp_path):
  """The guard sees what it is for: SFT with an example a row."""
  config = work.experiments(work.make_files(tmp_path / "files"))["sft"]
  config.data.pack = "none"
  found = {"sft": work.measure(config, tmp_path / "run")}
  stored = {"sft": json.loads(work.STORED.read_text())["sft"]}
  lines = work.worse(found, stored)
  assert any("sft update: cells" in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["sft", "reward", "dpo", "ppo", "grpo", "quickstart"]
)
def test_defaults_do_no_more_work_than_is_stored(work, name, tmp_path):
  config = work.experiments(work.make_files(tmp_path / "files"))[name]
  found = {name: work.measure(config, tmp_path / "run")}
  stored = {name: json.loads(work.STORED.read_text())[name]}
  assert work.worse(found, stored) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_trap_47_random_lengths_compile_nothing_after_a_warm_up(
  work, name, tmp_path
):
  """Sampling, judging and learning: XLA is asked for no program any more."""
  config = work.experiments(work.make_files(tmp_path / "files"))[name]
  config.schedule.update(steps=62, save_every=62)
  pipelines.run(config, tmp_path / "run")
  rows = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")
  compiles = [row["sys/compiles"] for row in rows]
  lengths = {row["rollout/length_mean"] for row in rows}
  assert len(rows) == 62 and len(lengths) > 40
  assert 0 < compiles[0] <= compiles[11] == compiles[-1], compiles
