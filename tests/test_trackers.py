"""Trackers get the rows of metrics.jsonl, each once, also over kills."""

import json
import sys
import types

import numpy as np
import pytest

from rlhf_jax import main, metrics, trackers
from rlhf_jax.schema import UserError


class FakeRun:
  """Remembers what wandb's run is told."""

  def __init__(self, id):
    self.id, self.rows, self.axes, self.exit_code = id, [], {}, None

  def define_metric(self, name, step_metric=None, hidden=None):
    self.axes[name] = step_metric

  def log(self, row):
    self.rows.append(row)

  def finish(self, exit_code):
    self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
  module = types.ModuleType("wandb")
  module.runs, module.asked = {}, []
  module.Settings = lambda **kinds: kinds

  def init(**asked):
    module.asked.append(asked)
    id = asked["id"] or f"id{len(module.runs)}"
    return module.runs.setdefault(id, FakeRun(id))

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  monkeypatch.delenv("WANDB_PROJECT", raising=False)
  return module


@pytest.fixture
def mlflow(monkeypatch):
  module = types.ModuleType("mlflow")
  module.calls, module.is_down = [], False
  found = types.SimpleNamespace

  class Client:
    def get_experiment_by_name(self, name):
      module.calls.append(("experiment", name))

    def create_experiment(self, name):
      return f"of {name}"

    def create_run(self, experiment, run_name):
      module.calls.append(("create", experiment, run_name))
      return found(info=found(run_id="m1"))

    def update_run(self, run, status):
      module.calls.append(("update", run, status))

    def log_batch(self, run, metrics=(), params=()):
      if module.is_down:
        raise ConnectionError("down")
      module.calls.append(("log", run, [*metrics], [*params]))

    def set_terminated(self, run, status):
      module.calls.append(("end", run, status))

  module.MlflowClient = Client
  module.entities = types.ModuleType("mlflow.entities")
  module.entities.Metric = lambda *parts: parts
  module.entities.Param = lambda *parts: parts
  monkeypatch.setitem(sys.modules, "mlflow", module)
  monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
  monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
  return module


def write(folder, phase, steps, resume=None, at=7.0):
  with metrics.MetricsWriter(folder, False, clock=lambda: at) as writer:
    if resume is not None:
      writer.truncate_after(resume, phase)
    for step in steps:
      writer.write(step, {"a/loss": np.float32(step / 2)}, phase)


def test_names_and_steps_are_those_of_tensorboard(tmp_path, wandb):
  folder = tmp_path / "run"
  folder.mkdir()
  with trackers.tracking(["wandb"], folder, {"seed": 3}):
    write(folder / "sft", "sft", (1, 2))
    with pytest.warns(UserWarning, match="not finite"):
      with metrics.MetricsWriter(folder / "policy", False) as writer:
        writer.write(1, {"a/kl": 0.5, "a/bad": np.nan}, "policy")
  run = wandb.runs["id0"]
  assert run.rows == [
    {"sft/a/loss": 0.5, "sft/step": 1},
    {"sft/a/loss": 1.0, "sft/step": 2},
    {"policy/a/kl": 0.5, "policy/step": 1},
  ]
  assert run.axes["sft/*"] == "sft/step"
  assert run.axes["policy/*"] == "policy/step"
  assert run.exit_code == 0
  (asked,) = wandb.asked
  assert (asked["project"], asked["name"]) == ("rlhf_jax", "run")
  assert asked["config"] == {"seed": 3} and asked["resume"] == "allow"


def test_stages_of_one_phase_are_told_apart(tmp_path, wandb):
  """Else of the rounds of one run the first alone is sent."""
  with trackers.tracking(["wandb"], tmp_path, {}):
    for folder in ("round_1/policy", "round_2/policy", "round_2/reward_safe"):
      phase = "reward" if "reward" in folder else "policy"
      write(tmp_path / folder, phase, (1, 2))
  rows = wandb.runs["id0"].rows
  assert [name for row in rows for name in row if "loss" in name] == [
    *["round_1/policy/a/loss"] * 2,
    *["round_2/policy/a/loss"] * 2,
    *["round_2/reward_safe/reward/a/loss"] * 2,
  ]


def test_the_phase_of_a_stage_has_its_folder(tmp_path):
  run = tmp_path / "run"
  for folder, phase, expected in (
    (run, "sft", "sft"),
    (run, "", ""),
    (run / "sft", "sft", "sft"),
    (run / "policy", "tax", "policy/tax"),
    (run / "round_1" / "policy", "policy", "round_1/policy"),
    (tmp_path / "other", "sft", "sft"),
  ):
    assert trackers.phase_in(run, folder, phase) == expected


def test_a_killed_run_goes_on_with_the_same_and_sends_each_step_once(
  tmp_path, wandb, mlflow
):
  both = ["wandb", "mlflow"]
  with pytest.raises(RuntimeError), trackers.tracking(both, tmp_path, {"x": 1}):
    write(tmp_path, "sft", range(1, 6))
    raise RuntimeError
  assert wandb.runs["id0"].exit_code == 1
  assert mlflow.calls[-1] == ("end", "m1", "KILLED")
  with trackers.tracking(both, tmp_path, {"x": 2}):
    write(tmp_path, "sft", range(4, 8), resume=3)
  assert list(wandb.runs) == ["id0"]
  sent = [row["sft/step"] for row in wandb.runs["id0"].rows]
  assert sent == [1, 2, 3, 4, 5, 6, 7]
  logged = [call for call in mlflow.calls if call[0] == "log" and call[2]]
  assert [call[2] for call in logged] == [
    [("sft/a/loss", step / 2, 7000, step)] for step in range(1, 8)
  ]
  parameters = [
    call[3] for call in mlflow.calls if call[0] == "log" and call[3]
  ]
  assert parameters == [[("x", "1")]]  # MLflow lets none be changed
  assert ("update", "m1", "RUNNING") in mlflow.calls
  assert mlflow.calls[-1] == ("end", "m1", "FINISHED")
  rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]


def test_a_tracker_that_fails_is_told_and_tried_again(
  tmp_path, mlflow, monkeypatch, capsys
):
  now = [0.0]
  opened = trackers.Tracking(["mlflow"], tmp_path, {}, clock=lambda: now[0])
  mlflow.is_down = True
  opened.write(1, {"loss": 1.0}, "sft", 5.0)
  opened.write(2, {"loss": 2.0}, "sft", 6.0)  # within the minute: not tried
  assert capsys.readouterr().out.count("could not be sent") == 1
  mlflow.is_down, now[0] = False, 61.0
  opened.write(3, {"loss": 3.0}, "sft", 7.0)
  sent = [call[2][0] for call in mlflow.calls if call[0] == "log"]
  assert sent == [
    ("sft/loss", 1.0, 5000, 1),
    ("sft/loss", 2.0, 6000, 2),
    ("sft/loss", 3.0, 7000, 3),
  ]
  mlflow.is_down = True
  opened.write(4, {"loss": 4.0}, "sft", 8.0)
  opened.close(is_done=True)
  assert "rows not sent: 1; metrics.jsonl has" in capsys.readouterr().out
  state = json.loads((tmp_path / "tracker.json").read_text())
  assert state == {"mlflow": {"run": "m1", "sent": {"sft": 3}}}


def test_many_parameters_go_in_parts_and_long_texts_are_cut(tmp_path, mlflow):
  config = {"deep": {str(i): "y" * 900 for i in range(150)}}
  trackers.Tracking(["mlflow"], tmp_path, config).close(is_done=True)
  parts = [call[3] for call in mlflow.calls if call[0] == "log"]
  assert [len(part) for part in parts] == [100, 50]
  assert parts[0][0] == ("deep.0", "y" * 500)


def test_nothing_is_sent_outside_or_without_names(tmp_path, wandb):
  with trackers.tracking([], tmp_path, {}):
    write(tmp_path, "sft", (1,))
    assert trackers.current() is None
  assert wandb.runs == {} and not (tmp_path / "tracker.json").exists()


def test_what_cannot_be_opened_is_a_mistake(tmp_path, wandb, monkeypatch):
  def fails(**asked):
    raise ValueError("no API key")

  monkeypatch.setattr(wandb, "init", fails)
  with pytest.raises(UserError, match="wandb cannot be opened .*no API key"):
    trackers.Tracking(["wandb"], tmp_path, {})
  (tmp_path / "tracker.json").write_text('{"wandb": {"run": 3}}')
  with pytest.raises(UserError, match="tracker.json: is damaged. Delete it"):
    trackers.Tracking(["wandb"], tmp_path, {})


def test_names_of_the_option(monkeypatch, wandb, mlflow):
  assert trackers.parse("") == ()
  assert trackers.parse(" mlflow,wandb,mlflow") == ("mlflow", "wandb")
  with pytest.raises(UserError, match="'aim' is no tracker. Choose from wandb"):
    trackers.parse("wandb,aim")
  monkeypatch.setitem(sys.modules, "mlflow", None)
  with pytest.raises(UserError, match=r"pip install 'rlhf_jax\[mlflow\]'"):
    trackers.parse("mlflow")
  assert "track" in main.OPTIONS


@pytest.mark.slow
def test_real_wandb_offline(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb", reason="the extra wandb is not here")
  monkeypatch.setenv("WANDB_MODE", "offline")
  for steps, resume in ((range(1, 4), None), (range(3, 6), 2)):
    with trackers.tracking(["wandb"], tmp_path, {"seed": 1}):
      write(tmp_path, "sft", steps, resume)
  state = json.loads((tmp_path / "tracker.json").read_text())["wandb"]
  assert state["sent"] == {"sft": 5}
  files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
  assert files and all(state["run"] in file.name for file in files)
  content = b"".join(file.read_bytes() for file in files)
  assert b"sft/a/loss" in content and b"sft/step" in content
  assert wandb.run is None


@pytest.mark.slow
def test_real_mlflow_in_files(tmp_path, monkeypatch):
  mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not here")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  for steps, resume in ((range(1, 4), None), (range(3, 6), 2)):
    with trackers.tracking(["mlflow"], tmp_path, {"a": {"seed": 1}}):
      write(tmp_path, "sft", steps, resume)
  run = json.loads((tmp_path / "tracker.json").read_text())["mlflow"]["run"]
  client = mlflow.MlflowClient()
  found = client.get_metric_history(run, "sft/a/loss")
  assert [(x.step, x.value) for x in found] == [
    (step, step / 2) for step in range(1, 6)
  ]
  assert client.get_run(run).info.status == "FINISHED"
  assert client.get_run(run).data.params == {"a.seed": "1"}
