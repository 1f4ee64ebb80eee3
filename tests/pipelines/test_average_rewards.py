"""WARM as a pipeline: one reward model of runs that began as one."""

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import trees
from rlhf_jax.pipelines import defaults
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs


@pytest.fixture(scope="module")
def another(files, sft_full, reward_full):
  """The run of reward_full with its data in another order."""
  folder = files.root / "warm" / "other_order"
  config = tiny_runs.reward_config(
    files, "full", sft_full, sft_full / "samples.npz"
  )
  config.seed, config.head_seed = 1, 0
  pipelines.run(config, folder)
  return folder


def average_config(files, *runs):
  config = defaults.average_rewards()
  config.mesh.devices = 1
  config.runs = ",".join(str(run) for run in runs)
  config.heldout.update(
    source=files.comparisons, max_length=24, end_token=False
  )
  config.reference_samples = str(files.root / "sft_full" / "samples.npz")
  return config


@pytest.mark.slow
def test_the_average_is_a_reward_model(files, reward_full, another):
  folder = files.root / "warm" / "average"
  info = pipelines.run(average_config(files, reward_full, another), folder)
  assert info["diagnosis"]["reward_model/accuracy"] > 0.8
  runs = [tiny_runs.trained_arrays(x) for x in (reward_full, another)]
  found = tiny_runs.trained_arrays(folder)
  assert sorted(found) == sorted(runs[0])
  assert any(np.abs(runs[0][x] - runs[1][x]).max() > 1e-3 for x in found)
  for path, leaf in found.items():
    wanted = (runs[0][path] + runs[1][path]) / 2.0
    np.testing.assert_allclose(leaf, wanted, atol=1e-6, err_msg=path)
  config = tiny_runs.reward_config(files, "full", "", "")
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  scorer, weights, _ = reward_model.load(folder, base, world)
  samples = tiny_runs.load_samples(files.root / "sft_full" / "samples.npz")
  scores = np.asarray(reward_model.make_score(scorer)(weights, samples))
  np.testing.assert_allclose(scores.mean(), 0.0, atol=5e-5)
  np.testing.assert_allclose(scores.std(), 1.0, atol=5e-5)
  assert "head/output/kernel" in trees.flatten(weights.variables)
  again = pipelines.run(average_config(files, reward_full, another), folder)
  assert again == info and stages.kind_of(info) == stages.REWARD


def test_what_has_no_mean_is_refused(files, reward_full, reward_head, tmp_path):
  for runs, message in (
    ((reward_full,), "name two different runs"),
    ((reward_full, reward_full), "name two different runs"),
    ((reward_head, f"{reward_head}@60"), "trained only a head"),
    ((reward_full, reward_head), "trained only a head"),
  ):
    with pytest.raises(UserError, match=message):
      pipelines.run(average_config(files, *runs), tmp_path)


def test_another_start_is_refused(reward_full):
  from rlhf_jax.pipelines.average_rewards import check_alike

  info = stages.read_stage(reward_full)
  check_alike(["a", "b"], [info, info])
  for change, message in (
    ({"head_seed": 5}, "a and b have not the same head at their start"),
    ({"merged_from_fingerprint": "x"}, "not the same start"),
    ({"role": info["role"] | {"members": 4}}, "b trained 4 members"),
  ):
    with pytest.raises(UserError, match=message):
      check_alike(["a", "b"], [info, info | change])
  old = {k: x for k, x in info.items() if k != "head_seed"}
  with pytest.raises(UserError, match="a does not say which head"):
    check_alike(["a", "b"], [old, info])
