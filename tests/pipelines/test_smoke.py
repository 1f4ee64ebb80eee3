"""--smoke cuts an experiment, and only so far as it can be cut."""

import json

import pytest

from rlhf_jax import command, pipelines
from rlhf_jax.pipelines import provenance, smoke, workdir
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs


def policy(files, start, scorer):
  config = tiny_runs.policy_config(files, "lora", start, scorer)
  config.schedule.update(batch_size=64, steps=0, epochs=3.0)
  config.generate.max_new_tokens = 18
  config.prompts.max_length = 40
  config.packing.update(row_tokens=0, row_targets=0, row_multiple=None)
  return config


def test_lengths_sizes_and_answers(
  files, sft_lora, reward_head, tmp_path, capsys
):
  config = policy(files, sft_lora, reward_head)
  smoke.shorten(config, tmp_path)
  assert config.schedule.steps == 2 and config.schedule.epochs == 0.0
  assert config.schedule.batch_size == 4
  assert config.prompts.limit == 64
  assert config.generate.max_new_tokens == 16
  assert config.value.pretrain_steps == 1
  assert config.force  # two steps make no good reward model
  assert config.generate.num_samples == 4  # what a method is, stays
  said = capsys.readouterr().out
  assert said.startswith("--smoke: a short trial")
  assert "schedule.batch_size 64 -> 4" in said
  assert "schedule.epochs 3.0 -> 0.0" in said


def test_the_next_size_is_taken_where_rows_must_divide(
  files, sft_lora, reward_head, tmp_path
):
  config = policy(files, sft_lora, reward_head)
  config.epochs.update(minibatches=8, microbatches=4)  # of batch_size x 4
  smoke.shorten(config, tmp_path)
  assert config.schedule.batch_size == 8
  config = policy(files, sft_lora, reward_head)
  config.schedule.batch_size = 24
  config.epochs.update(minibatches=3, microbatches=8)  # 8 x 4, 16 x 4: no
  smoke.shorten(config, tmp_path)
  assert config.schedule.batch_size == 24


def test_what_the_command_line_sets_stays(
  files, sft_lora, reward_head, tmp_path
):
  config = policy(files, sft_lora, reward_head)
  config.schedule.epochs = 5.0
  given = command.given(
    ["main", "--config=x.py", "--config.schedule.epochs=5", "--workdir=w"]
    + ["--config.schedule.batch_size", "64", "--noconfig.force"]
  )
  assert given == {"schedule.epochs", "schedule.batch_size", "force"}
  smoke.shorten(config, tmp_path, given)
  assert (config.schedule.steps, config.schedule.epochs) == (0, 5.0)
  assert config.schedule.batch_size == 64 and not config.force
  assert config.prompts.limit == 64


def test_small_settings_stay_and_wrong_ones_are_refused(files, tmp_path):
  config = tiny_runs.sft_config(files, "lora")
  config.schedule.update(batch_size=2, steps=1)
  config.data.limit = 5
  smoke.shorten(config, tmp_path)
  assert (config.schedule.batch_size, config.schedule.steps) == (2, 1)
  assert config.data.limit == 5
  config.schedule.batch_size = 0
  with pytest.raises(UserError, match="batch_size=0"):
    smoke.shorten(config, tmp_path)


def test_a_trial_and_a_whole_run_share_no_folder(
  files, sft_lora, tmp_path, monkeypatch
):
  config = tiny_runs.sft_config(files, "lora")
  (tmp_path / "stage.json").write_text((sft_lora / "stage.json").read_text())
  record = json.loads(workdir.describe(config, {}))
  assert record["is_smoke"] is False
  record["is_smoke"] = True
  (tmp_path / "config.json").write_text(json.dumps(record))
  job = pipelines.read(config, tmp_path)
  with pytest.raises(UserError, match="holds a short trial"):
    workdir.prepare(config, job, tmp_path)
  monkeypatch.setattr(provenance, "is_smoke", lambda: True)
  assert workdir.prepare(config, job, tmp_path) == {}
