"""Trap 12, T16: a policy run on one device and on eight is the same run."""

import numpy as np
import pytest

from rlhf_jax.interrupt import Stopped
from rlhf_jax.runs import loop
from tests.pipelines import tiny_runs


@pytest.mark.slow
def test_t16_trap_12_split_batches_and_a_stop_between(
  files, sft_lora, reward_head, policy_lora, run_policy, records, monkeypatch
):
  """mesh.data=8: the same tokens and numbers, also when it was stopped."""
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.mesh.update(devices=8, data=8)
  config.schedule.steps = 1  # after two for the critic
  folder = files.root / "policy_data_8"
  with monkeypatch.context() as patch:
    patch.setattr(loop.Interrupt, "should_stop", lambda self, now: now == 2)
    with pytest.raises(Stopped):
      run_policy(config, folder)
  run_policy(config, folder)
  pairs = zip(
    records[folder.name].tokens, records["policy_lora"].tokens[:3], strict=True
  )
  for found, expected in pairs:
    np.testing.assert_array_equal(found, expected)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(policy_lora)[:3]
  )


def test_t16_trap_12_split_weights(
  files, sft_full, reward_full, policy_full, run_policy, records, capfd
):
  """mesh 2 x 2 x 2: weights split in two directions, batches in four.

  XLA complains where it must gather a whole activation to split it anew.
  """
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
  config.schedule.steps = 2
  folder = files.root / "policy_2_2_2"
  run_policy(config, folder)
  pairs = zip(
    records[folder.name].tokens, records["policy_full"].tokens[:2], strict=True
  )
  for found, expected in pairs:
    np.testing.assert_array_equal(found, expected)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(policy_full)[:2]
  )
  assert "rematerialization" not in capfd.readouterr().err
