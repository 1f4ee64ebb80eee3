"""Runs on a base of few bits: what is refused, and that they end the same."""

import numpy as np
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.integrity import CheckpointError
from rlhf_jax.models import pretrained
from rlhf_jax.rewards import judge
from rlhf_jax.runs import stages
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)
from tests.planning.tiny_plans import load


def with_bits(config, kind="int4"):
  config.model.quantize = kind
  return config


@pytest.mark.parametrize(
  ("mode", "changes", "words"),
  [
    (
      "full",
      {},
      "'int4' with trainable.mode='full'.*Set trainable.mode='lora'",
    ),
    (
      "lora",
      {"model.quantize": "int3"},
      "quantize='int3': must be one of none, int8, int4",
    ),
    ("lora", {"value.mode": "full"}, "value.mode='full' with model.quantize="),
  ],
)
def test_what_cannot_be_frozen_is_refused(files, mode, changes, words):
  config = with_bits(tiny_runs.policy_config(files, mode, "x", "y"))
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=words):
    tiny_runs.settings_of(config)


def test_a_stage_belongs_to_the_bits_it_was_trained_on(files, sft_lora):
  config = with_bits(tiny_runs.sft_config(files, "lora"))
  base, info = tiny_runs.load_base(config), stages.read_stage(sft_lora)
  assert info["quantize"] == "none" and base.config.quantize == "int4"
  with pytest.raises(CheckpointError, match="another model.*model.quantize"):
    stages.check_same_base(info, base, sft_lora)


def test_the_quickstart_has_one_word_for_all_its_stages():
  settings = pipelines.read(load("configs/quickstart.py", "int8")).settings
  found = {job.settings.model.quantize for job in settings.jobs.values()}
  assert found == {"int8"}


@pytest.mark.slow
def test_a_whole_run_on_four_bits(files, tmp_path, monkeypatch):
  """SFT, a reward head, PPO: shared base, resumed bit for bit, on a mesh."""
  sft = with_bits(tiny_runs.sft_config(files, "lora"))
  pipelines.run(sft, tmp_path / "sft")
  samples = tmp_path / "sft" / "samples.npz"
  head = with_bits(tiny_runs.reward_config(files, "head", "", samples))
  pipelines.run(head, tmp_path / "head")
  config = with_bits(
    tiny_runs.policy_config(files, "lora", tmp_path / "sft", tmp_path / "head")
  )
  record = tiny_runs.Record()
  with monkeypatch.context() as patch:
    record.watch(patch)
    pipelines.run(config, tmp_path / "whole")
  base = record.actors.weights.base
  assert judge.reads(
    record.actors.plan.reference, record.actors.weights.reference, base
  )
  assert not any(
    "params" in name.split("/")[3:]
    for name in (tiny_runs.saved_arrays(tmp_path / "whole"))
  )
  first = tiny_runs.rows_of(tmp_path / "whole")[0]
  assert abs(first["rollout/kl_k1_sum"]) < 1e-5
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(config, tmp_path / "resumed")
  pipelines.run(config, tmp_path / "resumed")
  assert_same_run(tmp_path / "resumed", tmp_path / "whole", 6)
  policy = lab.load(tmp_path / "whole")
  assert policy.base.config.quantize == "int4"
  again = pretrained.load_base(tiny_runs.settings_of(config).model, policy.mesh)
  assert again.fingerprint == policy.base.fingerprint


@pytest.mark.slow
def test_sft_on_a_mesh_is_sft_on_one_device(files, tmp_path):
  """Training, and sampling afterwards."""
  rows, tokens = {}, {}
  for devices, mesh in ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})):
    config = with_bits(tiny_runs.sft_config(files, "lora"), "int8")
    config.mesh.update(devices=devices, **mesh)
    folder = tmp_path / str(devices)
    pipelines.run(config, folder)
    rows[devices] = tiny_runs.rows_of(folder)
    tokens[devices] = tiny_runs.load_samples(folder / "samples.npz").tokens
  tiny_runs.assert_close_rows(rows[8], rows[1])
  np.testing.assert_array_equal(tokens[8], tokens[1])
