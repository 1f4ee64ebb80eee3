"""Runs that were started before stage.json said where the policy is.

It had no `trained` (the place of the trained tree in a checkpoint), no `best`
(which score is the best one) and no `role.lora_targets` (which maps have
factors: all of them did); nothing else is different there.
"""

import json
import shutil

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import trees
from rlhf_jax.pipelines import summary
from rlhf_jax.programs import starts
from rlhf_jax.runs import stages
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  kill_at,
)

NEW = ("trained", "best")


def make_old(folder, name):
  """Returns a copy of a stage's folder, as it was written before."""
  old = shutil.copytree(folder, folder.with_name(name))
  info = stages.read_stage(old)
  assert "best" in info
  info = {key: value for key, value in info.items() if key not in NEW}
  del info["role"]["lora_targets"]
  (old / stages.STAGE_FILE).write_text(json.dumps(info, indent=2) + "\n")
  return old


def variables_of(folder, config, kind=stages.POLICY):
  world = tiny_runs.world_of(config)
  base = tiny_runs.load_base(config)
  return trees.flatten(stages.load(folder, kind, base, world).variables)


@pytest.mark.parametrize(
  "stage",
  [
    "sft_lora",
    "policy_lora",
    pytest.param("policy_full", marks=pytest.mark.slow),
  ],
)
def test_it_loads(stage, files, request):
  folder = request.getfixturevalue(stage)
  config = tiny_runs.policy_config(files, stage[-4:], "", "")
  old = make_old(folder, f"{stage}_old")
  tiny_runs.assert_equal_arrays(
    variables_of(old, config), variables_of(folder, config)
  )
  saved = tiny_runs.saved_arrays(old)
  place = "train/params"
  if stage.startswith("policy"):
    assert any(path.startswith("train/params/value/") for path in saved)
    place += "/policy"
  found, is_trained = variables_of(old, config), False
  for path, leaf in found.items():
    if f"{place}/{path}" in saved:
      np.testing.assert_array_equal(leaf, saved[f"{place}/{path}"])
      is_trained = True
  assert is_trained


def test_a_run_on_old_stages_goes_on_and_ends_the_same(
  files, sft_lora, reward_head, policy_lora, monkeypatch, capsys
):
  """Its checkpoints know the start and the judge by what stage.json said."""
  start = make_old(sft_lora, "sft_lora_begun")
  judge = make_old(reward_head, "reward_head_begun")
  config = tiny_runs.policy_config(files, "lora", start, judge)
  folder = files.root / "policy_lora_begun"
  with monkeypatch.context() as patch:
    kill_at(patch, 5)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  assert stages.read_stage(folder) is None
  capsys.readouterr()
  pipelines.run(config, folder)
  assert "policy: goes on from step 4 of 6" in capsys.readouterr().out
  rows = tiny_runs.rows_of(folder)
  assert rows == tiny_runs.rows_of(policy_lora)[: len(rows)]
  assert len(rows) == 6


def test_the_diagnosis_of_a_reward_stage_has_one_name():
  before = {"diagnosis": {"rm/accuracy": 0.75, "rm/length_spearman": 0.5}}
  assert summary.diagnosis(before) == {
    "accuracy": 0.75,
    "length_spearman": 0.5,
  }


def test_a_finished_one_is_not_repeated(files, policy_lora, capsys):
  config = tiny_runs.policy_config(
    files, "lora", files.root / "sft_lora", files.root / "reward_head"
  )
  config.schedule.steps = 18
  old = make_old(policy_lora, "policy_lora_finished")
  info = stages.read_stage(old)
  assert pipelines.run(config, old) == info == stages.read_stage(old)
  assert "is finished, nothing to do" in capsys.readouterr().out


def test_it_is_a_start(files, policy_lora):
  """Of a run that goes on with its factors, and of one that merges them."""
  old = make_old(policy_lora, "policy_lora_start")
  config = tiny_runs.policy_config(files, "lora", old, "")
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = tiny_runs.load_base(config)
  stage = starts.starting_policy(settings, base, world)
  saved = tiny_runs.saved_arrays(old)
  flat = trees.flatten({"lora": stage.variables["lora"]})
  assert flat
  for path, leaf in flat.items():
    np.testing.assert_array_equal(leaf, saved[f"train/params/policy/{path}"])
  config.trainable.update(mode="full", first_layer=0)
  config.model.lora_rank = 0
  whole = starts.starting_policy(
    tiny_runs.settings_of(config), tiny_runs.load_base(config), world
  )
  assert whole.info["merged_from"] == str(old)
  before = trees.flatten(base.params)
  found = trees.flatten(whole.variables["params"])
  moved = [p for p, x in found.items() if not np.array_equal(x, before[p])]
  assert moved and all(path.startswith("layer_1") for path in moved)
