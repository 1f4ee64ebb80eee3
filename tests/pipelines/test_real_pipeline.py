"""Over-optimisation on finished stages: what is trained, measured and kept."""

import dataclasses
import json

import pytest

from rlhf_jax import command, lab, overoptimise, pipelines
from rlhf_jax.experiments import curves, real_pipeline
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import trials

FILE = """
from tests.pipelines import tiny_runs
from pathlib import Path

FILES = tiny_runs.Files(**{files!r})


def get_config(stage="policy"):
  if stage == "reward":
    return tiny_runs.reward_config(FILES, "head", "", "")
  config = tiny_runs.policy_config(FILES, "lora", "", "")
  config.schedule.update(steps=4, eval_every=2, save_every=100,
                         asynchronous=False, keep_best="heldout/gold_score")
  config.value.pretrain_steps = 0
  config.heldout.update(source=FILES.prompts, format="prompt", max_length=24)
  config.evaluation.count = 8
  config.monitors.gold = ""
  return config


def rewards(seed):
  return {{
    "one": {{"stop_layer": 1}},
    "two": {{"stop_layer": 1, "ensemble.members": 2}},
  }}


def judges():
  return [
    {{"judge": "one", "reward": "one"}},
    {{"judge": "min", "reward": "two", "rule": "min", "single": "one"}},
    {{"judge": "mean", "reward": "two", "rule": "mean", "has_policy": False}},
  ]
"""


@pytest.fixture(scope="package")
def run(files, sft_lora, reward_head, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  (folder / "sft").symlink_to(sft_lora)
  (folder / "gold").symlink_to(reward_head)
  return folder


@pytest.fixture
def file(files, tmp_path):
  values = {k: str(x) for k, x in vars(files).items()}
  path = tmp_path / "lab_trials.py"
  path.write_text(FILE.format(files=values))
  return str(path)


def in_process(plan, stage, folder, settings):
  """Stands for the sweep: the same trials, in this process."""
  file = f"{plan.file}:{stage}"
  for trial in trials.make(settings, None, 1):
    line = ["x", *trials.arguments(trial, file, ())]
    pipelines.run(command.parse(line, {}, "").config, folder / trial.id)
  return 0


@pytest.mark.slow
def test_curves_of_policies_and_of_best_of_n(
  run, file, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(real_pipeline, "_sweep", in_process)
  workdir = tmp_path / "study"
  plan = real_pipeline.Plan(
    workdir, [run], seeds=1, file=file, prompts=4, samples=16
  )
  assert real_pipeline.run(plan) == 0
  found = {(x.judge, x.method): x for x in curves.read(workdir)}
  assert sorted(found) == [
    ("mean", "best_of_n"),
    ("min", "best_of_n"),
    ("min", "rl"),
    ("one", "best_of_n"),
    ("one", "rl"),
  ]
  policy = found["min", "rl"]
  assert len(policy.gold) == 4 and policy.proxy[0] == 0.0
  assert [x is None for x in policy.probe] == [True, False, True, False]
  assert policy.facts["single"] == "one"
  assert found["one", "rl"].facts["accuracy"] > 0.5
  bon = found["one", "best_of_n"]
  assert len(bon.distance) == 5 and bon.distance[0] == 0.0
  assert bon.proxy == sorted(bon.proxy)
  assert found["min", "best_of_n"].proxy != found["mean", "best_of_n"].proxy
  # The settings of the ensemble's policy reached its run.
  folder = policy.facts["folder"]
  info = json.loads(
    (plan.workdir / "policies" / "002" / "stage.json").read_text()
  )
  assert info["kl_coefficient"] >= 0.0 and folder.endswith("002")
  # The best step by the probe is kept, and is a start.
  best = lab.load(f"{folder}@best")
  assert isinstance(best, lab.Policy)
  line = ["x", f"--workdir={workdir}", "--page", "--level=pipeline"]
  assert overoptimise.main([*line, f"--runs={run}"]) == 0
  assert "@best" in (workdir / overoptimise.PAGE).read_text()
  with pytest.raises(UserError, match="samples=16, .* with 8"):
    real_pipeline.run(dataclasses.replace(plan, samples=8))


ONE = """

_both = rewards, judges


def rewards(seed):
  return {"one": _both[0](seed)["one"]}


def judges():
  return _both[1]()[:1]
"""


@pytest.mark.slow
def test_the_command_runs_its_trials_and_goes_on(run, file, tmp_path, capsys):
  with open(file, "a") as stream:
    stream.write(ONE)
  line = [
    "x",
    "--level=pipeline",
    "--smoke",
    "--seeds=1",
    f"--runs={run}",
    f"--trials={file}",
    f"--workdir={tmp_path / 'study'}",
  ]
  assert overoptimise.main(line) == 0, capsys.readouterr()
  states = (tmp_path / "study" / "policies").glob("00*.json")
  before = {x: json.loads(x.read_text())["starts"] for x in states}
  assert list(before.values()) == [1]
  assert overoptimise.main(line) == 0
  after = {x: json.loads(x.read_text())["starts"] for x in before}
  assert after == before


@pytest.mark.parametrize(
  ("judge", "says"),
  [
    ({"judge": "width-4"}, "one file, width_4_rl_0.json"),
    ({"judge": "x", "reward": "b"}, "names the reward 'b'"),
    ({"judge": "x", "single": "y"}, "against single='y'"),
    ({"judge": "x", "rule": "uwo"}, "uncertainty_weight=None"),
    ({"judge": "x", "rules": "min"}, "unexpected keyword"),
  ],
)
def test_judges_that_cannot_be_are_refused_before_anything_trains(
  judge, says, tmp_path
):
  path, good = tmp_path / "trials.py", {"judge": "width 4", "reward": "a"}
  both = [good, {"reward": "a"} | judge]
  path.write_text(
    "get_config = dict\nrewards = lambda seed: {'a': {}}\n"
    f"judges = lambda: {both!r}\n"
  )
  plan = real_pipeline.Plan(tmp_path, [], 1, str(path))
  with pytest.raises(UserError, match=says):
    _ = plan.judges
