"""A policy run that starts from another policy run, and on merged weights.

Frozen weights are in no checkpoint: stage.json names the run, and the step, on
whose whole weights a stage was trained.
"""

import shutil

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import roles, trees
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_any_step import (
  assert_trained,
  differs,
  load,
  load_actors,
  policy_config,
)
from tests.pipelines.tiny_runs import trained_arrays


@pytest.fixture(scope="module")
def from_merged(files, sft_full, reward_head):
  """A LoRA policy on the whole weights of step 8 of 12."""
  config = policy_config(files, f"{sft_full}@8", reward_head)
  pipelines.run(config, files.root / "policy_from_8")
  return files.root / "policy_from_8"


def test_whole_weights_of_a_step_are_found_again(files, sft_full, from_merged):
  """They are in no checkpoint of the policy; stage.json names the step."""
  info = stages.read_stage(from_merged)
  assert info["merged_from"] == info["init_from"] == "../sft_full@8"
  stage, _ = load(files, from_merged)
  flat = trees.flatten(stage.variables)
  frozen = trained_arrays(sft_full, 8)
  for path, leaf in frozen.items():
    np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
  assert differs(frozen, trained_arrays(sft_full, 12))
  trained = trained_arrays(from_merged, prefix=stages.BESIDE_CRITIC)
  assert trained and all("/lora_" in path for path in trained)
  assert_trained(stage, trained)


def test_both_folders_may_be_moved(files, sft_full, from_merged, tmp_path):
  for folder in (sft_full, from_merged):
    shutil.copytree(folder, tmp_path / folder.name)
  moved, _ = load(files, tmp_path / from_merged.name)
  stage, _ = load(files, from_merged)
  tiny_runs.assert_equal_arrays(
    trees.flatten(moved.variables), trees.flatten(stage.variables)
  )
  shutil.rmtree(tmp_path / "sft_full" / "checkpoints" / "8")
  with pytest.raises(UserError, match="sft_full@8.*no step 8 was kept"):
    load(files, tmp_path / from_merged.name)


def test_a_policy_run_starts_from_a_policy_run(
  files, policy_lora, reward_head, run_policy, records
):
  """It goes on with the factors; the first run's critic is not among them."""
  config = policy_config(files, f"{policy_lora}@best", reward_head)
  folder = files.root / "policy_further"
  info = run_policy(config, folder)
  best = stages.step_of(f"{policy_lora}@best")
  expected = trained_arrays(policy_lora, best, stages.BESIDE_CRITIC)
  actors_of_run = records[folder.name].actors
  reference = trees.flatten(actors_of_run.weights.reference)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(reference[path], leaf, err_msg=path)
  assert info["init_from"] == f"../{policy_lora.name}@best"
  assert not info["merged_from"]  # factors on the base model, as in both runs
  (row,) = tiny_runs.rows_of(folder)
  assert row["rollout/kl_k3_sum"] < 1e-5
  assert row["ppo/first_ratio_error"] < 1e-4
  scores = [r["rollout/score_mean"] for r in tiny_runs.rows_of(policy_lora)]
  assert row["rollout/score_mean"] > np.mean(scores[:3]) + 0.25
  moved = trained_arrays(folder, prefix=stages.BESIDE_CRITIC)
  assert sorted(moved) == sorted(expected) and differs(moved, expected)
  assert_trained(load(files, folder)[0], moved)


def test_a_chain_of_policies_on_merged_weights(
  files, sft_full, from_merged, reward_head
):
  """Factors of the second run go on in the third, on the first's weights."""
  config = policy_config(files, from_merged, reward_head)
  folder = files.root / "deeper" / "policy_third"
  info = pipelines.run(config, folder)
  assert info["merged_from"] == "../../sft_full@8"
  assert info["init_from"] == "../../policy_from_8"
  stage, _ = load(files, folder)
  flat = trees.flatten(stage.variables)
  for path, leaf in trained_arrays(sft_full, 8).items():
    np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
  moved = trained_arrays(folder, prefix=stages.BESIDE_CRITIC)
  before = trained_arrays(from_merged, prefix=stages.BESIDE_CRITIC)
  assert_trained(stage, moved)
  assert differs(moved, before)


def test_a_policy_of_another_role_is_merged_first(
  files, policy_lora, reward_head
):
  """Whole weights after LoRA: kernels with the factors, and none left."""
  config = tiny_runs.policy_config(files, "full", f"{policy_lora}@4", "")
  config.reward = str(reward_head)
  found = load_actors(config)
  stage, _ = load(files, f"{policy_lora}@4")
  merged = roles.sampling_params(stage.role, *stage.parts)
  tiny_runs.assert_equal_arrays(
    trees.flatten(found.params["policy"]), trees.flatten({"params": merged})
  )
  assert found.merged_from == f"{policy_lora}@4"
