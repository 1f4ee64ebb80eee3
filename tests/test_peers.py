"""benchmarks/peers: what is measured, and what our side of it runs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import files, ours
from benchmarks.peers.clock import Clock
from tests.pipelines import tiny_runs

WALL = [3.0, 5.0, 6.0, 8.0]  # the first step compiles
CPU = [4.0, 7.0, 8.0, 12.0]


def test_the_first_steps_are_left_out():
  steps = list(zip(WALL, CPU, strict=True))
  found = {"steps": steps, "peak_mib": 10.0, "marks": [2.0, 1.0, 3.0, 5.0]}
  expected = {
    "cpu": (12.0 - 7.0) / 2,
    "wall": (8.0 - 5.0) / 2,
    "first": 3.0,
    "whole": 12.0,
    "peak": 10.0,
  }
  assert peers.summary(found, 2) == expected | {"mark": 2.0}
  sampled = peers.summary(found, 2, is_sampled=True)
  assert sampled == expected | {"mark": 4.0}


def test_ratios_are_of_medians_and_above_one_where_we_are_faster():
  def side(cpu):
    same = dict.fromkeys(("wall", "first", "peak", "mark"), 1.0)
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
  assert clock.steps[0] <= clock.steps[1] and clock.marks == [1.5]


def asked(*words):
  parser = peers.arguments()
  return peers.chosen(parser.parse_args(words), parser)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["sft", "--peer=no/such"], "--peer=no/such: no such file. Make the"),
    (["sft,ppo", f"--peer={sys.executable}"], "--ppo-peer=PYTHON is wanted"),
    (["slow", f"--peer={sys.executable}"], "'slow': must be all, or of"),
    (["all", "--steps=1"], "at least 1 run of 2"),
  ],
)
def test_what_cannot_be_run_is_named(words, said, capsys):
  with pytest.raises(SystemExit) as left:
    asked(*words)
  assert left.value.code == 2 and said in capsys.readouterr().err


def test_all_leaves_out_what_has_no_peer_and_says_so(capsys):
  names = asked("all", f"--peer={sys.executable}")
  assert "sft" in names and "ppo" not in names
  assert "not named: ppo, ppo_lora, tunix_generate" in capsys.readouterr().out


def test_sides_that_do_other_work_are_named():
  sides = {"ours a": {"mark": 6.2}, "theirs padded": {"mark": 6.2001}}
  assert peers.unlike(sides) == []
  sides |= {"theirs b": {"mark": 6.3}, "theirs packed": {"mark": 7.0}}
  assert peers.unlike(sides) == [
    "theirs b: mark 6.3 is not 6.2: not the same work"
  ]
  assert peers.unlike(sides, 4) == []


def side(tmp_path, monkeypatch, fails):
  """Replaces what a side runs; returns the command's arguments."""

  def run(python, module, words, minutes):
    if module in fails:
      raise peers.SideFailed("no such trainer")
    steps = [[n, float(n)] for n in range(1, 1 + int(words[-1]))]
    wrote = {"steps": steps, "marks": [5.0], "peak_mib": 1.0, "versions": {}}
    Path(words[3]).write_text(json.dumps(wrote))

  monkeypatch.setattr(peers, "run", run)
  monkeypatch.setattr(peers, "prepare", lambda *_: None)
  output = tmp_path / "found.json"
  words = ["peers", "sft,tunix_sft", "--repeats=2", "--steps=3"]
  words += [f"{flag}={sys.executable}" for flag in ("--peer", "--tunix-peer")]
  monkeypatch.setattr(sys, "argv", [*words, f"--output={output}"])
  return output


def test_the_rest_goes_on_where_a_side_fails(tmp_path, monkeypatch, capsys):
  output = side(tmp_path, monkeypatch, fails=("theirs",))
  output.write_text(json.dumps({"dpo": "as before"}))
  assert peers.main() == 1
  found, said = json.loads(output.read_text()), capsys.readouterr().out
  assert found["dpo"] == "as before"
  assert list(found["sft"]["sides"]) == ["ours defaults", "ours plain"]
  assert found["sft"]["failed"]["theirs padded"] == "no such trainer"
  assert list(found["tunix_sft"]["sides"]) == ["ours defaults", "theirs usual"]
  assert "[3/12, " in said and "sft, theirs padded: failed: no such" in said
  assert "[12/12, " in said and "about 0 left" in said


def test_nothing_failed_is_exit_code_0(tmp_path, monkeypatch):
  output = side(tmp_path, monkeypatch, fails=())
  assert peers.main() == 0
  runs = json.loads(output.read_text())["sft"]["runs"]["theirs packed"]
  assert len(runs) == 2 and runs[0]["cpu"] == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("peers")
  (folder / "model").mkdir()
  files.write_tokenizer(folder / "model", files.SHAPES["tiny"])
  files.write_records(folder, files.SHAPES["tiny"], count=40)
  return folder


@pytest.mark.parametrize("variant", ["defaults", "plain"])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo", "judged_ppo"])
def test_our_side_is_a_configuration_that_is_right(folder, name, variant):
  settings = tiny_runs.checked(ours.experiment(name, folder, 3, variant))
  assert settings.schedule.steps == 3
