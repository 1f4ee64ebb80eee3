"""benchmarks/peers: what is measured, and what our side of it runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import files, ours
from benchmarks.peers.clock import Clock
from tests.pipelines import tiny_runs

ROOT = Path(__file__).parent.parent
WALL = [3.0, 5.0, 6.0, 8.0]  # the first step compiles
CPU = [4.0, 7.0, 8.0, 12.0]


def test_the_first_steps_are_left_out():
  steps = list(zip(WALL, CPU, strict=True))
  found = {"steps": steps, "peak_mib": 10.0, "losses": [2.0, 1.0]}
  assert peers.summary(found, 2) == {
    "cpu": (12.0 - 7.0) / 2,
    "wall": (8.0 - 5.0) / 2,
    "first": 3.0,
    "whole": 12.0,
    "peak": 10.0,
    "loss": 2.0,
  }


def test_ratios_are_of_medians_and_above_one_where_we_are_faster():
  def side(cpu):
    same = dict.fromkeys(("wall", "first", "peak", "loss"), 1.0)
    run = same | {"whole": 5.0 * cpu[0]}
    return peers.medians([run | {"cpu": c} for c in cpu])

  ours_, theirs = side([1.0, 2.0, 3.0]), side([5.0, 9.0, 4.0])
  assert (ours_["cpu"], ours_["spread"], theirs["cpu"]) == (2.0, 1.0, 5.0)
  rows = peers.table({"ours a": ours_, "theirs b": theirs}, ["ours a"])
  assert (
    "| ours a | 2.000 | 100% |" in rows and "| 2.50 | 1.00 | 5.00 |" in rows
  )


def test_a_clock_counts_all_threads_and_forward():
  clock = Clock()
  clock.tick(1.5)
  clock.tick()
  assert clock.steps[0] <= clock.steps[1] and clock.losses == [1.5]


def test_a_peer_that_is_not_there_is_named():
  command = [sys.executable, "-m", "benchmarks.peers", "sft", "--peer=no/such"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert "--peer=no/such: no such file. Make the environment" in done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("peers")
  (folder / "model").mkdir()
  files.write_tokenizer(folder / "model")
  files.write_records(folder, count=40)
  return folder


@pytest.mark.parametrize("variant", ["defaults", "plain"])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo"])
def test_our_side_is_a_configuration_that_is_right(folder, name, variant):
  settings = tiny_runs.checked(ours.experiment(name, folder, 3, variant))
  assert settings.schedule.steps == 3
