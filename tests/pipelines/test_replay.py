"""Rollouts on disk, learned from again by later steps and by other runs."""

import json
import shutil

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.programs import policy_training, replay, rollouts
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_methods import method_config


def make_config(files, start, scorer, steps=4, **buffer):
  config = method_config(files, "rloo", start, scorer)
  config.schedule.update(steps=steps, save_every=2, keep=20)
  config.buffer.update(buffer)
  return config


@pytest.fixture(scope="module")
def kept(files, sft_lora, reward_head):
  folder = files.root / "replay_kept"
  config = make_config(files, sft_lora, reward_head, keep=2, updates=2)
  pipelines.run(config, folder)
  return folder


def test_a_step_learns_from_the_newest_rollouts_too(kept):
  rows = tiny_runs.rows_of(kept)
  assert [row["buffer/rollouts"] for row in rows] == [0, 2, 2, 2]
  assert "buffer/effective" not in rows[0]
  for row in rows[1:]:
    assert 0.0 < row["buffer/effective"] <= 1.0
    assert row["ppo/first_ratio_error"] < 1e-4  # of the step's own rollout
  names = sorted(path.name for path in (kept / "rollouts").glob("*.npz"))
  assert names == ["0.npz", "1.npz", "2.npz", "3.npz"]
  stored = replay.read(kept / "rollouts" / "3.npz")
  np.testing.assert_allclose(
    np.mean(stored["score"]), rows[3]["rollout/score_mean"], rtol=1e-4
  )
  saved = tiny_runs.saved_meta(kept, 4)
  assert "buffer_fingerprint" not in json.dumps(saved)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(
  files, sft_lora, reward_head, kept, monkeypatch
):
  """It dies after step 3, before a checkpoint of it."""
  folder = files.root / "replay_killed"
  config = make_config(files, sft_lora, reward_head, keep=2, updates=2)
  call = policy_training.Step.__call__

  def dies(self, step, arrays, facts):
    found = call(self, step, arrays, facts)
    if step == 2:
      raise KeyboardInterrupt
    return found

  monkeypatch.setattr(policy_training.Step, "__call__", dies)
  with pytest.raises(KeyboardInterrupt):
    pipelines.run(config, folder)
  assert (folder / "rollouts" / "2.npz").is_file()
  monkeypatch.undo()
  pipelines.run(config, folder)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(folder), tiny_runs.saved_arrays(kept)
  )


def test_another_run_learns_from_them_without_sampling(
  files, sft_lora, reward_head, kept, monkeypatch
):
  """Of one rollout of the start itself: weights 1 at first, then less."""
  source = files.root / "replay_source"
  shutil.copytree(kept / "rollouts", source / "rollouts")
  for step in (1, 2, 3):
    (source / "rollouts" / f"{step}.npz").unlink()
  config = make_config(
    files, sft_lora, reward_head, source=str(source), fresh=False, cap=5.0
  )
  config.shaping.kl_controller = "fixed"
  config.schedule.asynchronous = False

  def never(*args, **options):
    raise AssertionError("it samples")

  monkeypatch.setattr(rollouts.Source, "batch", never)
  folder = files.root / "replay_offline"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  effective = [row["buffer/effective"] for row in rows]
  np.testing.assert_allclose(effective[0], 1.0, atol=1e-4)
  assert effective[-1] < effective[0] - 1e-3
  np.testing.assert_allclose(rows[0]["buffer/ratio"], 1.0, atol=1e-4)
  # What was liked becomes likelier: more of the stored answers' weight.
  start = tiny_runs.trained_arrays(sft_lora)
  ends = tiny_runs.trained_arrays(folder, prefix="train/params/policy")
  assert max(np.max(np.abs(ends[k] - start[k])) for k in ends) > 1e-3


def test_rollouts_of_another_judge_are_refused(
  files, sft_lora, reward_head, reward_lora, kept, tmp_path
):
  config = make_config(files, sft_lora, reward_lora, source=str(kept))
  with pytest.raises(UserError, match="buffer.source=.*: the judge of"):
    pipelines.run(config, tmp_path / "run")
  config = make_config(files, sft_lora, reward_head, source=str(sft_lora))
  with pytest.raises(UserError, match="no stored rollouts are there"):
    pipelines.run(config, tmp_path / "run")


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"temperature": 0.5}, "the temperature of .* is '0.9', and .* '0.5'"),
    ({"max_new_tokens": 5}, "the max_new_tokens of .* is"),
  ],
)
def test_rollouts_that_were_sampled_otherwise_are_refused(
  files, sft_lora, reward_head, kept, tmp_path, changes, words
):
  """Their reference has that temperature, their answers that many tokens."""
  config = make_config(files, sft_lora, reward_head, source=str(kept))
  config.generate.update(changes)
  with pytest.raises(UserError, match=words):
    pipelines.run(config, tmp_path / "run")
  config = make_config(files, sft_lora, reward_head, keep=2, steps=9)
  config.generate.update(changes)
  stored = tmp_path / "goes_on" / "rollouts"
  shutil.copytree(kept / "rollouts", stored)
  with pytest.raises(UserError, match=f"buffer.keep=2: {words}"):
    pipelines.run(config, stored.parent)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"algorithm.name": "ppo"}, "the run has a critic"),
    ({"algorithm.name": "remax"}, "the run has further answers"),
    ({"shaping.normalise": "scale"}, "the run has running moments"),
    ({"buffer.cap": 0.0}, "cap=0.0: must be > 0"),
    ({"buffer.fresh": False}, "nothing to learn from"),
    ({"buffer.keep": 0, "buffer.updates": 2}, "updates=2 with keep=0"),
    ({"buffer.keep": 0, "buffer.cap": None}, "cap=None with keep=0"),
    (
      {"buffer.fresh": False, "buffer.source": "x", "buffer.keep": 0}
      | {"shaping.kl_controller": "adaptive"},
      "the run has adaptive KL",
    ),
  ],
)
def test_what_a_buffer_cannot_hold_is_refused(
  files, sft_lora, reward_head, changes, words
):
  name = changes.get("algorithm.name", "rloo")
  config = method_config(files, name, sft_lora, reward_head)
  config.buffer.keep = 2
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)
