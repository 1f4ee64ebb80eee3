"""Whole runs whose weights rest in bfloat16: they train, stop and go on."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.models import pretrained, trees
from rlhf_jax.runs import stages
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

NARROW = dict(dtype="bfloat16", weights="bfloat16")


def run(config, folder, monkeypatch, killed_at=0):
  """Runs a configuration, killed once where a step is given."""
  if killed_at:
    with monkeypatch.context() as patch:
      kill_at(patch, killed_at)
      with pytest.raises(Killed):
        pipelines.run(config, folder)
  pipelines.run(config, folder)
  return folder


@pytest.mark.slow
def test_sft_of_whole_weights_learns_and_goes_on_bit_for_bit(
  files, tmp_path, monkeypatch
):
  config = tiny_runs.sft_config(files, "full")
  config.model.update(NARROW)
  config.samples = 0
  config.sample_prompts.source = ""
  whole = run(config, tmp_path / "a" / "sft", monkeypatch)
  again = run(config, tmp_path / "b" / "sft", monkeypatch, killed_at=7)
  assert_same_run(again, whole, 12)
  trained = tiny_runs.trained_arrays(whole)
  assert {x.dtype for x in trained.values()} == {jnp.dtype(jnp.bfloat16)}
  losses = [r["sft/loss"] for r in tiny_runs.rows_of(whole) if "sft/loss" in r]
  assert losses[-1] < losses[0] - 0.5
  # A run that rests in float32 starts from it.
  other = tiny_runs.sft_config(files, "full")
  base, world = tiny_runs.load_base(other), tiny_runs.world_of(other)
  found = stages.load(whole, stages.POLICY, base, world).variables["params"]
  for path, leaf in trees.flatten(found).items():
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(
      leaf, trained[f"params/{path}"].astype(np.float32)
    )


@pytest.mark.slow
def test_ppo_of_four_narrow_roles_with_all_on_the_host(
  files, sft_full, reward_full, tmp_path, monkeypatch
):
  """Stages before were trained in float32; moments of 8 bits besides."""
  found = {}
  for trees_, killed_at in (((), 0), (("reference", "reward", "optimizer"), 2)):
    config = tiny_runs.full_policy_config(files, sft_full, reward_full)
    config.model.update(NARROW)
    config.offload.trees = trees_
    config.policy_optimizer.moments = "8bit"
    config.schedule.update(steps=3, save_every=1)
    folder = tmp_path / str(len(trees_)) / "policy"
    found[trees_] = run(config, folder, monkeypatch, killed_at)
  plain, parked = found.values()
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(parked), tiny_runs.saved_arrays(plain)
  )
  params = tiny_runs.trained_arrays(plain, prefix=stages.BESIDE_CRITIC)
  before = tiny_runs.trained_arrays(sft_full)
  assert any(
    not np.array_equal(x, before[k].astype(x.dtype)) for k, x in params.items()
  )
  assert all(x.dtype == jnp.bfloat16 for x in params.values())
  pretrained.forget()
