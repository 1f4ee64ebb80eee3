"""What the live page reads of runs: while they write, resume and are killed."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import metrics
from rlhf_jax.dashboard import folder as folder_lib
from rlhf_jax.dashboard import stage as stage_lib
from rlhf_jax.dashboard.followed import Document, Followed
from rlhf_jax.runs import lock, stage_file
from rlhf_jax.runs.loop import Schedule, run_steps
from rlhf_jax.types import TrainState

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\u2028\x00"


class Clock:
  """Seconds since 1970 that move when told."""

  def __init__(self, now=1000.0):
    self.now = now

  def __call__(self):
    return self.now


def write_lines(path, *rows, end="\n"):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as file:
    file.write("\n".join(json.dumps(row) for row in rows) + end)


def config(run, **fields):
  run.mkdir(parents=True, exist_ok=True)
  words = ["python", "-m", "rlhf_jax.main", "--workdir=my runs"]
  record = {"config": fields, "command": words}
  (run / "config.json").write_text(json.dumps(record))


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path):
  path = tmp_path / "metrics.jsonl"
  file = Followed(path)
  assert file.poll() == (False, [])
  path.write_bytes(b'{"step": 1}\n{"step": 2, "te')
  assert file.poll() == (True, [{"step": 1}])
  assert file.poll() == (False, [])
  with path.open("ab") as more:
    more.write('xt": "é"}\n'.encode()[:7])
  assert file.poll() == (False, [])
  with path.open("ab") as more:
    more.write('xt": "é"}\n'.encode()[7:])
  assert file.poll() == (False, [{"step": 2, "text": "é"}])
  assert file.damaged == 0


def test_lines_that_are_no_rows_are_counted_and_passed_over(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'{"a": 1}\noops\n[2]\n\xff\xfe\n\n{"a": 3}\n')
  file = Followed(path)
  assert file.poll() == (True, [{"a": 1}, {"a": 3}])
  assert file.damaged == 3


def test_a_run_that_resumes_is_read_anew(tmp_path):
  file = Followed(tmp_path / "metrics.jsonl")
  with metrics.MetricsWriter(tmp_path, False) as writer:
    for step in range(1, 6):
      writer.write(step, {"loss": step}, "sft")
    assert [row["step"] for row in file.poll()[1]] == [1, 2, 3, 4, 5]
    writer.truncate_after(3, "sft")
    writer.write(4, {"loss": -4}, "sft")
  is_new, rows = file.poll()
  assert is_new and [row["loss"] for row in rows] == [1, 2, 3, -4]
  file.path.unlink()
  assert file.poll() == (True, [])


def test_a_file_overwritten_in_place_is_noticed(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"a": 1}\n')
  file = Followed(path)
  file.poll()
  with path.open("r+") as same:
    same.write('{"a": 2}\n{"a": 3}\n')
  assert file.poll() == (True, [{"a": 2}, {"a": 3}])


def test_a_document_is_read_when_it_changes(tmp_path):
  file = Document(tmp_path / "stage.json")
  assert file.read() == {} and not file.is_damaged
  file.path.write_text("[1]")
  assert file.read() == {} and file.is_damaged
  metrics._replace(file.path, '{"steps": 7}')
  assert file.read() == {"steps": 7} and not file.is_damaged


def test_progress_pace_and_time_left_by_hand(tmp_path):
  clock = Clock()
  (tmp_path / lock.FILE).write_text('{"since": 5}')
  with metrics.MetricsWriter(tmp_path, False, clock=clock) as writer:
    writer.write_progress("policy", 30)
    # Steps of 4 s, but for one that compiles.
    for step, now in ((1, 100), (2, 104), (3, 160), (4, 164), (6, 172)):
      clock.now = now
      writer.write(step, {"rollout/score_mean": step / 2}, "policy")
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  shown = found.summary(os.stat(tmp_path / lock.FILE).st_mtime + 1)
  assert shown["state"] == "running"
  assert (shown["step"], shown["total"]) == (6, 30)
  assert shown["pace_seconds"] == 4.0 and shown["eta_seconds"] == 96.0
  assert (shown["headline"], shown["value"]) == ("rollout/score_mean", 3.0)
  assert found.begun() == 5


def test_held_out_numbers_come_behind_those_of_training(tmp_path):
  """A round's held-out numbers are a row of their own, at the same step."""
  write_lines(
    tmp_path / "metrics.jsonl",
    {"step": 1, "phase": "r", "time": 1.0, "rejection/score_mean": 2.0},
    {"step": 1, "phase": "r", "time": 3.0, "heldout/score": 0.5},
  )
  stage = stage_lib.Stage(tmp_path)
  stage.refresh()
  shown = stage.detail(10.0)
  assert (shown["headline"], shown["value"]) == ("rejection/score_mean", 2.0)
  assert shown["headlines"] == ["rejection/score_mean", "heldout/score"]


def test_states(tmp_path):
  found = stage_lib.Stage(tmp_path)

  def state():
    found.refresh()
    return found.state(1e6)

  assert state() == "waiting"
  write_lines(tmp_path / "metrics.jsonl", {"step": 1, "phase": "", "time": 1})
  assert state() == "stopped"
  path = tmp_path / lock.FILE
  path.write_text("{}")
  os.utime(path, (1e6 - 10, 1e6 - 10))
  assert state() == "running"
  os.utime(path, (1e6 - 91, 1e6 - 91))
  assert state() == "silent"
  path.unlink()
  (tmp_path / "stage.json").write_text('{"pipeline": "sft"}')
  assert state() == "finished"


def test_the_page_knows_the_lock_by_its_name():
  assert stage_lib.LOCK_FILE == lock.FILE
  assert stage_lib.QUIET_SECONDS == lock.QUIET_SECONDS
  assert stage_file.STAGE_FILE in stage_lib.RESULTS


def test_shares_are_parts_of_the_steps_and_a_rest(tmp_path):
  for step in (1, 2, 3):
    parts = {"time/rollout_seconds": 6.0, "time/update_seconds": 3.0}
    header = {"step": step, "phase": "p", "time": 10.0 * step}
    write_lines(tmp_path / "metrics.jsonl", header | parts)
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  assert found.shares() == [
    {"name": "rollout", "seconds": 18.0},
    {"name": "update", "seconds": 9.0},
    {"name": "rest", "seconds": 3.0},
  ]


def test_long_curves_are_means_of_blocks_and_end_as_they_end(tmp_path):
  rows = [
    {"step": i + 1, "phase": "", "loss": x}
    for i, x in enumerate([1.0, 3.0, None, None, 5.0, None, 7.0])
  ]
  write_lines(tmp_path / "metrics.jsonl", *rows)
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  assert found.curve("loss", 4) == [[2, 2.0], [4, None], [6, 5.0], [7, 7.0]]
  assert len(found.curve("loss", 100)) == 7


def test_alarms_halts_guards_and_what_was_not_finite(tmp_path):
  with metrics.MetricsWriter(tmp_path, False) as writer:
    writer.write_progress("policy", 9, [[3, "KL is high"]], "stopped at 4")
    with pytest.warns(UserWarning):
      writer.write(3, {"loss": math.nan})
  (tmp_path / "stage.json").write_text('{"guards": [["note", "few pairs"]]}')
  with (tmp_path / "samples.jsonl").open("w") as file:
    file.write("oops\n")
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  told = [(x["step"], x["level"], x["text"]) for x in found.alarms()]
  assert told == [
    (3, "warn", "KL is high"),
    (None, "note", "few pairs"),
    (None, "halt", "stopped at 4"),
    (3, "warn", "loss: not finite in 1 row, the last here"),
    (None, "warn", "samples.jsonl: 1 line could not be read"),
  ]


def test_damaged_values_leave_the_page_alive(tmp_path):
  write_lines(
    tmp_path / "metrics.jsonl",
    {"step": True},
    {"step": 2**70},
    {"loss": 1},
    {"step": 1, "time": "noon", "loss": "high", "big": 10**400},
  )
  (tmp_path / "progress.json").write_text('{"total_steps": [1], "alarms": 3}')
  (tmp_path / "stage.json").write_text('{"guards": 4, "alarms": [[1]]}')
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  detail = found.detail(0.0)
  json.dumps(detail, allow_nan=False)
  assert detail["curves"] == {"big": [[1, None]], "loss": [[1, None]]}
  assert "3 lines could not be read" in detail["alarms"][-1]["text"]


def test_what_a_finished_run_was_told_is_shown(tmp_path):
  write_lines(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1.0})
  told = {"guards": [["note", "g"]], "findings": [["warn", "f"]]}
  (tmp_path / "stage.json").write_text(json.dumps(told))
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  said = [(one["level"], one["text"]) for one in found.alarms()]
  assert said == [("note", "g"), ("warn", "f")]


def test_newest_samples_first_long_texts_cut_and_said(tmp_path):
  rows = [
    {"step": i, "phase": "", "prompt": HOSTILE, "response": str(i), "score": i}
    for i in range(300)
  ]
  rows[-1]["response"] = "x" * 5000
  rows[-1]["tokens"] = [1, 2]
  write_lines(tmp_path / "samples.jsonl", *rows)
  found = stage_lib.Stage(tmp_path)
  found.refresh()
  samples = found.detail(0.0)["samples"]
  assert len(samples) == stage_lib.SAMPLES_SHOWN
  assert [row["step"] for row in samples[:2]] == [299, 298]
  assert samples[0]["response"] == "x" * 4000 + " [1000 more characters]"
  assert samples[0]["prompt"] == HOSTILE and "tokens" not in samples[0]


def test_runs_and_their_stages_in_order(tmp_path):
  whole = tmp_path / "sweep" / "trial1"
  config(
    whole,
    title="Whole",
    **{x: {"pipeline": x} for x in ("sft", "reward", "policy", "evaluation")},
  )
  write_lines(whole / "policy/metrics.jsonl", {"step": 4, "phase": "policy"})
  write_lines(whole / "sft/metrics.jsonl", {"step": 9, "phase": "sft"})
  (whole / "sft/stage.json").write_text('{"pipeline": "sft"}')
  write_lines(
    whole / "phase_seconds.jsonl",
    {"phase": "sft", "seconds": 2.0},
    {"phase": "sft", "seconds": 0.5},
  )
  # Neither a model's config.json nor a checkpoint is a run.
  (whole / "policy" / "model").mkdir()
  (whole / "policy" / "model" / "config.json").write_text("{}")
  write_lines(whole / "policy/checkpoints/2/metrics.jsonl", {"step": 1})
  write_lines(tmp_path / "alone/metrics.jsonl", {"step": 2, "phase": "sft"})
  watched = folder_lib.Watched(tmp_path)
  alone, run = watched.runs()["runs"]
  assert (alone["id"], alone["state"]) == ("alone", "stopped")
  assert (run["id"], run["title"]) == ("sweep/trial1", "Whole")
  assert run["command"] == "python -m rlhf_jax.main '--workdir=my runs'"
  assert [(x["name"], x["state"]) for x in run["stages"]] == [
    ("sft", "finished"),
    ("reward", "waiting"),
    ("policy", "stopped"),
    ("evaluation", "waiting"),
  ]
  assert run["state"] == "stopped"
  assert run["shares"] == [{"name": "sft", "seconds": 2.5}]
  assert watched.stage("sweep/trial1/policy")["step"] == 4


@pytest.mark.parametrize(
  "name",
  [
    "../secret",
    "..",
    "/etc",
    "run/../../secret",
    "run\x00",
    "secret",
    "run/in",
  ],
)
def test_a_name_is_looked_up_and_never_a_path(tmp_path, name):
  root = tmp_path / "root"
  write_lines(tmp_path / "secret/metrics.jsonl", {"step": 1})
  write_lines(root / "run/metrics.jsonl", {"step": 1})
  (root / "run" / "in").symlink_to(tmp_path / "secret")
  watched = folder_lib.Watched(root)
  shown = watched.runs()
  assert [run["id"] for run in shown["runs"]] == ["run"]
  assert shown["remarks"] == ["links are not followed: run/in"]
  assert watched.stage(name) is None


def test_a_folder_that_goes_away_is_gone(tmp_path):
  path = tmp_path / "run/metrics.jsonl"
  write_lines(path, {"step": 1})
  watched = folder_lib.Watched(tmp_path)
  assert len(watched.runs()["runs"]) == 1
  path.unlink()
  path.parent.rmdir()
  assert watched.runs()["runs"] == [] and watched.stage("run") is None


def test_the_loop_says_how_long_it_is_and_what_rang(tmp_path):
  state = TrainState(
    step=jnp.int32(0),
    params={"w": jnp.zeros(2)},
    opt_state=(),
    skipped=jnp.int32(0),
  )

  def one_step(step, arrays, facts):
    assert json.loads((tmp_path / "progress.json").read_text()) == {
      "phase": "toy",
      "total_steps": 3,
      "alarms": facts.get("alarms", []),
      "halted": None,
    }
    if step == 1:
      facts = facts | {"alarms": [[2, "rang"]]}
    return arrays, facts, {"loss": np.float32(step)}

  run_steps(
    one_step,
    phase="toy",
    workdir=tmp_path,
    schedule=Schedule(batch_size=1, steps=3),
    total_steps=3,
    arrays={"state": state},
    facts={},
    identity={},
    iterators={},
    show=(),
  )
  found = folder_lib.Watched(tmp_path).runs()["runs"][0]["stages"][0]
  assert (found["step"], found["total"], found["alarms"]) == (3, 3, 1)
