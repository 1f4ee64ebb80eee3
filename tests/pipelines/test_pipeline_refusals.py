"""What a policy run refuses before it compiles, and what it warns of."""

import json
import shutil

import pytest

from rlhf_jax import pipelines
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.programs import actors
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError
from tests import tiny
from tests.pipelines import tiny_runs


@pytest.fixture
def config(files, sft_lora, reward_head):
  return tiny_runs.policy_config(files, "lora", sft_lora, reward_head)


def load(config):
  """Loads the actors as a run does."""
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  return actors.load(
    settings, base, world, settings.row_targets(1, "einsum"), settings.value
  )


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"generate.top_p": 0.9}, "top_p=0.9, min_p=0.0: truncated sampling"),
    ({"generate.min_p": 0.1}, "min_p=0.1: truncated sampling"),
    ({"generate.top_k": 5}, "top_k=5.*truncated sampling"),
    ({"generate.temperature": 0.0}, "temperature=0.0: greedy"),
    ({"reward": ""}, "config.reward is empty"),
    ({"reward": "nowhere"}, "wanted a finished reward run"),
    ({"init_from": "nowhere"}, "wanted a finished policy run"),
    ({"algorithm.ptx_coefficient": 1.0}, "Set ptx.source"),
    ({"trainable.mode": "head"}, "a policy has no head"),
    (
      {"trainable.mode": "lora", "model.lora_rank": 0, "init_from": ""},
      "Set --config.model.lora_rank",
    ),
    ({"value.init": "sft"}, "must be 'reward'"),
    ({"prompts.max_length": 7}, "leaves no room"),
    (
      {"packing.share_prompts": "always", "generate.num_samples": 1},
      "share_prompts='always': generate.num_samples=1",
    ),
    (
      {
        "packing.share_prompts": "always",
        "packing.row_tokens": 0,
        "packing.row_targets": 0,
      },
      "share_prompts='always': packing.row_tokens=0",
    ),
  ],
)
def test_settings_that_cannot_work(config, tmp_path, changes, words):
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=words):
    pipelines.run(config, tmp_path)


def test_a_stage_of_another_kind(config, tmp_path, sft_lora):
  config.reward = str(sft_lora)
  with pytest.raises(UserError, match="found a sft run"):
    pipelines.run(config, tmp_path)


def test_a_reward_model_near_chance_needs_force(
  config, tmp_path, reward_head, capsys
):
  folder = tmp_path / "chance"
  shutil.copytree(reward_head, folder)
  info = stages.read_stage(folder)
  info["diagnosis"] |= {
    "reward_model/accuracy": 0.54,
    "reward_model/accuracy_low": 0.42,
    "reward_model/accuracy_high": 0.66,
  }
  guards = diagnostics.guard(info["diagnosis"], 100_000, 1.0)
  assert [level for level, _ in guards].count("refuse") == 1
  (folder / stages.STAGE_FILE).write_text(json.dumps(info | {"guards": guards}))
  config.reward = str(folder)
  with pytest.raises(UserError, match=r"0\.54.*--config\.force=True"):
    load(config)
  config.force = True
  load(config)
  assert "refuse: reward_model/accuracy=0.540" in capsys.readouterr().out


def test_a_critic_as_a_reward_model_of_another_tokenizer(config, tmp_path):
  own = tiny.tiny_tokenizer_json(tmp_path / "tokenizer")
  path = own / "tokenizer.json"
  content = json.loads(path.read_text())
  words = content["model"]["vocab"]
  words["\u0120cat"], words["\u0120sat"] = (
    words["\u0120sat"],
    words["\u0120cat"],
  )
  path.write_text(json.dumps(content))
  config.model.tokenizer = str(own)
  config.init_from = ""
  with pytest.raises(FieldError, match="a critic reads the policy's tokens"):
    load(config)


def test_a_reward_model_of_another_model_is_said(
  config, files, tmp_path, capsys
):
  folder = tmp_path / "model"
  shutil.copytree(files.model, folder)
  path = folder / "model.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  config.model.source = str(folder)
  config.init_from = ""
  found = load(config)
  assert "reward" not in found.plan.shared and len(found.beside) == 1
  said = capsys.readouterr().out
  assert f"stands on {files.model} and reads the policy's tokens" in said


def test_a_random_critic_is_not_silent(config, capsys):
  load(config)
  assert "untrained critic" not in capsys.readouterr().out
  config.value.init = "random"
  load(config)
  assert "untrained critic" in capsys.readouterr().out
