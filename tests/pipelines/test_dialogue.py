"""configs/dialogue.py on a small model and small talk in the asset's place."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.runs import stages
from tests.data import test_dialogues
from tests.pipelines import tiny_runs

FILE = Path(__file__).parent.parent.parent / "configs" / "dialogue.py"
asset = test_dialogues.asset  # a fixture


def shortened(config, model, length=140):
  """Makes a stage that two layers and a second are enough for."""
  config.mesh.devices = 1
  config.model.source = model
  if config.model.lora_rank:
    config.model.lora_rank = 2
  for name in ("data", "heldout", "prompts", "sample_prompts"):
    if name in config and config[name].source:
      config[name].update(max_length=length, duplicates="keep")
      if config[name].max_prompt_tokens:
        config[name].update(max_prompt_tokens=length - 24, max_turns=1)
      if config[name].pairs:
        config[name].pairs = 64
  if "trainable" in config and config.trainable.first_layer:
    config.trainable.first_layer = 1
  if "stop_layer" in config:
    config.stop_layer = 1
  if "schedule" in config:
    config.schedule.update(batch_size=8, steps=3, save_every=3)
  if "generate" in config:
    config.generate.update(max_new_tokens=8, batch_size=None)


@pytest.mark.slow
def test_the_whole_run(asset, tmp_path):
  """SFT, two reward models, PPO, evaluation: chained, small."""
  del asset
  model = tiny_runs.make_model(tmp_path / "model", max_length=192)
  config = runpy.run_path(str(FILE))["get_config"]()
  for name in ("sft", "reward", "gold", "policy", "evaluation"):
    shortened(config[name], model)
  assert config.reward.objectives == ("witty", "interesting", "upbeat")
  config.reward.objectives = ("witty", "upbeat")  # all are as interesting
  config.sft.samples = 8
  config.policy.shaping.kl_horizon = 80.0
  config.policy.shaping.update(warn_nats=1e5, halt_nats=1e6)
  config.policy.force = True  # a reward model of three steps
  config.evaluation.update(count=4, batch_size=4)
  pipelines.run(config, tmp_path / "run")
  info = stages.read_stage(tmp_path / "run" / "reward")
  assert info["reads_end_token"] and info["comparisons"] == 2 * 64
  names = ["witty", "upbeat"]
  assert [x["name"] for x in info["outputs"]] == names == info["objectives"]
  assert all(np.isfinite(x["mean"]) for x in info["outputs"])
  assert (tmp_path / "run" / "summary.json").is_file()
  rows = tiny_runs.rows_of(tmp_path / "run" / "policy")
  assert len(rows) == 3 and np.isfinite(rows[-1]["rollout/score_mean"])
  lines = (tmp_path / "run" / "sft" / "samples.jsonl").read_text().splitlines()
  assert len(lines) == 8 and "prompt" in json.loads(lines[0])


def test_one_objective_is_a_reward_run():
  get_config = runpy.run_path(str(FILE))["get_config"]
  config = get_config("witty")
  assert config.pipeline == "reward" and config.data.objective == "witty"
  with pytest.raises(ValueError, match="'kind': must be one of witty, intere"):
    get_config("kind")
