"""Trials: read, numbered, checked as their runs would, recorded."""

import pytest

from rlhf_jax import sweep
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import trials
from rlhf_jax.sweeps.trials import Trial

HALVED = ["--halving=2", "--metric=sft/loss"]
EXPERIMENT = """
import numpy as np
from rlhf_jax import sweeps
from rlhf_jax.pipelines import defaults

def get_config(argument="x"):
  config = defaults.sft()
  config.model.source = "{folder}"
  config.data.source = "{folder}"
  config.schedule.steps = 8
  return config

def sweep():
  return sweeps.grid({{"optimizer.learning_rate": np.array([0.1, 0.2])}})

def named(argument):
  return [{{"schedule.keep_best": argument}}, {{"optimizer.clip_norm": None}}]

def wrong():
  return [{{"schedule.batch_size": 0}}]

def unknown():
  return [{{"schedule.stepps": 1}}]

def other():
  return {{"seed": 3}}

def nothing():
  return [3]

def broken():
  return sweeps.grid({{"a": []}})
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(EXPERIMENT.format(folder=tmp_path))
  return path


def command(file, *more):
  argv = ["sweep", f"--config={file}", *map(str, more)]
  return sweep.main(argv)


def test_values_are_written_as_the_command_line_takes_them():
  trial = Trial("001", {"a.b": 1e-05, "c": (1, 2), "d": None, "e": True}, 4)
  assert trial.options == [
    "--config.a.b=1e-05",
    "--config.c=(1, 2)",
    "--config.d=None",
    "--config.e=True",
    "--config.seed=4",
  ]
  assert trial.label == "b=1e-05 c=(1, 2) d=None e=True seed=4"


def test_short_names_are_as_long_as_it_takes_to_tell_them():
  names = ["a.rate", "b.rate", "c.steps", "steps", "algorithm.name"]
  assert trials.short_names(names) == {
    "algorithm.name": "algorithm.name",
    "a.rate": "a.rate",
    "b.rate": "b.rate",
    "c.steps": "c.steps",
    "steps": "steps",
  }


def test_seeds_follow_all_settings():
  found = trials.make([{"a": 1}, {"a": 2}], seed=5, seeds=2)
  assert [(t.id, t.settings["a"], t.seed) for t in found] == [
    ("001", 1, 5),
    ("002", 2, 5),
    ("003", 1, 6),
    ("004", 2, 6),
  ]


@pytest.mark.parametrize(
  ("found", "seeds", "given", "words"),
  [
    ([], 1, (), "returned no trials"),
    ([{"a": 1}, {"a": 1}], 1, (), "trial 002 .* is trial 001 again"),
    ([{"seed": 1}], 2, (), "sets the seed itself"),
    ([{"a": 1}], 1, ("a",), "--config.a: sweep.. sets it too"),
  ],
)
def test_what_cannot_be_a_sweep_is_refused(found, seeds, given, words):
  with pytest.raises(UserError, match=words):
    trials.make(found, seed=0, seeds=seeds, given=given)


def test_lines_are_what_sweep_sh_reads(file, capsys):
  assert command(file, "--lines", "--seeds=2", "--config.schedule.steps=4") == 0
  assert capsys.readouterr().out.splitlines() == [
    f"--config.schedule.steps=4 --config.optimizer.learning_rate={rate} "
    f"--config.seed={seed}"
    for seed in (0, 1)
    for rate in (0.1, 0.2)
  ]


def test_another_function_with_the_argument_and_a_seed_of_all(file, capsys):
  more = ("--sweep=named", "--lines", "--config.seed=9")
  assert command(f"{file}:sft/loss", *more) == 0
  assert capsys.readouterr().out.splitlines() == [
    "--config.schedule.keep_best=sft/loss --config.seed=9",
    "--config.optimizer.clip_norm=None --config.seed=9",
  ]


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("wrong", "trial 001 (batch_size=0 seed=0): "),
    ("nothing", "nothing(): holds 3, which is no trial"),
    ("broken", "mine.py:32: UserError: grid: a has no values"),
    ("gone", "it has no gone()"),
  ],
)
def test_mistakes_are_found_before_anything_runs(file, capsys, name, words):
  assert command(file, f"--sweep={name}", f"--workdir={file.parent}/s") == 2
  assert words in capsys.readouterr().err
  assert not (file.parent / "s").exists()


def test_an_unknown_field_is_told_as_everywhere(file, capsys):
  with pytest.raises(SystemExit) as caught:
    command(file, "--sweep=unknown", f"--workdir={file.parent}/s")
  assert caught.value.code == 2
  assert "Did you mean --config.schedule.steps?" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--jobs=0"], "--jobs=0: must be a whole number >= 1"),
    (["--seeds=two"], "--seeds=two: must be a whole number"),
    (["--halving=3"], "what are trials told by"),
    (
      [*HALVED, "--config.optimizer.schedule=constant"],
      "--least=0: must be",
    ),
    ([*HALVED, "--steps_field=schedule.stepps"], "no field with a number"),
    (["--metric=sft/loss:worst"], "must be one of last, best, mean, tail"),
    (
      [*HALVED, "--least=2"],
      "config.optimizer: schedule=",
    ),
  ],
)
def test_options_that_cannot_be_are_refused(file, capsys, options, words):
  assert command(file, f"--workdir={file.parent}/s", *options) == 2
  assert words in capsys.readouterr().err


def test_a_sweep_does_not_stand_in_the_folder_of_a_run(file, capsys):
  folder = file.parent / "run"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  assert command(file, f"--workdir={folder}") == 2
  assert "holds a run (config.json)" in capsys.readouterr().err
  assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_trial_cannot_become_another_and_more_may_follow(tmp_path):
  old, facts = trials.make([{"a": 1}], 0, 1), {"options": []}
  trials.record(tmp_path, old, facts)
  trials.record(tmp_path, trials.make([{"a": 1}, {"a": 2}], 0, 1), facts)
  with pytest.raises(UserError, match=r"trial 001 was .* and is .* now"):
    trials.record(tmp_path, trials.make([{"a": 3}, {"a": 2}], 0, 1), facts)
  with pytest.raises(UserError, match="trial 002 was .* and is 'gone' now"):
    trials.record(tmp_path, old, facts)


def test_options_of_all_trials_cannot_change(tmp_path):
  found = trials.make([{"a": 1}], 0, 1)
  trials.record(tmp_path, found, {"options": ["--config.b=1"]})
  with pytest.raises(UserError, match=r"was begun with options="):
    trials.record(tmp_path, found, {"options": []})
