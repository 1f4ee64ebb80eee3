"""SFT -> reward -> PPO on a tiny model: every role, resume, loading back."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.models import (
  huggingface,
  outputs,
  pretrained,
  roles,
  transformer,
  trees,
)
from rlhf_jax.models.rows import Rows
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import checkpoint, loop, stages
from tests import tiny
from tests.pipelines import tiny_runs

pytestmark = pytest.mark.slow  # other tests run these on a smaller model

WORDS = ["good", "bad", "film", "the", "a", "nice", "story", "dull"]
TOKENS = 6


def _write(path, rows):
  path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
  return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  root = tmp_path_factory.mktemp("stages")
  folder = root / "model"
  folder.mkdir()
  tiny.tiny_tokenizer_json(folder)
  size = len(
    json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
  )
  config = transformer.Config(
    vocab_size=size + 12,  # padded beyond the tokenizer's, as real models are
    width=16,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    mlp_width=24,
    max_length=64,
  )
  params = transformer.init(config, jax.random.key(0))["params"]
  huggingface.save(folder, config, jax.tree.map(np.asarray, params))
  rng = np.random.default_rng(0)

  def text(n):
    return " ".join(rng.choice(WORDS, n))

  demos = [{"prompt": text(2), "response": " " + text(4)} for _ in range(40)]
  pairs = [
    {
      "prompt": text(2) + str(i),
      "chosen": f" {text(2)} good",
      "rejected": f" {text(2)} bad",
    }
    for i in range(60)
  ]
  prompts = [{"prompt": text(2)} for _ in range(20)]
  return {
    "root": root,
    "model": str(folder),
    "demos": _write(root / "demos.jsonl", demos),
    "pairs": _write(root / "pairs.jsonl", pairs),
    "prompts": _write(root / "prompts.jsonl", prompts),
  }


def sft_config(files, mode):
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.update(source=files["model"], lora_rank=2 * (mode == "lora"))
  config.trainable.mode = mode
  config.data.update(
    source=files["demos"], format="demonstration", max_length=40
  )
  config.schedule.update(batch_size=8, steps=4, save_every=2)
  config.optimizer.learning_rate = 1e-2
  config.samples = 16
  config.sample_prompts.update(
    source=files["prompts"], format="prompt", max_length=40
  )
  config.generate.max_new_tokens = TOKENS
  return config


def reward_config(files, mode, start):
  config = defaults.reward()
  config.mesh.devices = 1
  config.model.update(source=files["model"], lora_rank=2 * (mode == "lora"))
  config.trainable.mode = mode
  config.data.update(source=files["pairs"], max_length=40, end_token=False)
  config.init_from = str(start)
  config.reference_samples = str(start / "samples.npz")
  config.heldout_fraction = 0.2
  config.schedule.update(batch_size=8, epochs=4.0)
  config.optimizer.learning_rate = 3e-2
  return config


def policy_config(files, mode, start, scorer):
  config = defaults.policy()
  config.mesh.devices = 1
  config.model.update(source=files["model"], lora_rank=2 * (mode == "lora"))
  config.trainable.mode = mode
  config.init_from, config.reward = str(start), str(scorer)
  config.prompts.update(source=files["prompts"], format="prompt", max_length=40)
  config.generate.max_new_tokens = TOKENS
  config.value.update(mode="head", hidden_units=3, pretrain_steps=1)
  config.schedule.update(batch_size=8, steps=3, save_every=2)
  config.policy_optimizer.learning_rate = 1e-2
  config.value_optimizer.learning_rate = 1e-2
  config.shaping.halt_nats = 1e6
  config.shaping.warn_nats = 1e5
  return config


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, files):
  """Runs SFT and two reward models; the head one reads the SFT weights."""
  mode = request.param
  root = files["root"] / mode
  pipelines.run(sft_config(files, mode), root / "sft")
  for kind in ("head", mode):
    pipelines.run(reward_config(files, kind, root / "sft"), root / f"rm_{kind}")
  return mode, root


def load(files, mode, folder):
  """Returns the base model and the policy that a stage left."""
  world = tiny_runs.world_of(sft_config(files, mode))
  base = tiny_runs.load_base(sft_config(files, mode))
  return base, stages.load(folder, stages.POLICY, base, world)


def rows_of(path, drop=("time", "sys/")):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {
      k: v
      for k, v in row.items()
      if not k.startswith(drop) and k != "rollout/tokens_per_second"
    }
    for row in rows
  ]


def test_reward_models_score_the_same_after_loading(files, trained):
  """A frozen trunk that started from SFT weights is found again on loading."""
  mode, root = trained
  for kind in ("head", mode):
    config = reward_config(files, kind, root / "sft")
    scorer, weights, _ = reward_model.load(
      root / f"rm_{kind}",
      tiny_runs.load_base(config),
      tiny_runs.world_of(config),
    )
    samples = tiny_runs.load_samples(root / "sft" / "samples.npz")
    scores = np.asarray(reward_model.score(scorer, weights, samples))
    np.testing.assert_allclose(scores.mean(), 0.0, atol=1e-4)
    np.testing.assert_allclose(scores.std(), 1.0, atol=1e-4)


def test_t03_t20_trap_23_ppo_first_ratio_and_bitwise_resume(
  files, trained, monkeypatch
):
  mode, root = trained
  config = policy_config(files, mode, root / "sft", root / "rm_head")
  pipelines.run(config, root / "whole")
  rows = rows_of(root / "whole" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert abs(rows[0]["rollout/kl_k1_sum"]) < 1e-4
  for row in rows[1:]:
    assert row["ppo/first_ratio_error"] < 1e-4
    assert row["ppo/first_clip_fraction"] == 0.0
  assert abs(rows[-1]["rollout/kl_k1_sum"]) > 1e-4

  class Killed(BaseException):
    pass

  real, calls = loop.system_metrics, []

  def killer():
    calls.append(0)
    if len(calls) == 4:
      raise Killed
    return real()

  monkeypatch.setattr(loop, "system_metrics", killer)
  with pytest.raises(Killed):
    pipelines.run(config, root / "killed")
  monkeypatch.setattr(loop, "system_metrics", real)
  pipelines.run(config, root / "killed")
  assert rows_of(root / "killed" / "metrics.jsonl") == rows
  assert rows_of(root / "killed" / "samples.jsonl") == rows_of(
    root / "whole" / "samples.jsonl"
  )
  whole, again = (
    checkpoint.restore_params(
      str(root / name / "checkpoints"),
      pretrained.with_shardings(
        roles.split(stage.role, pretrained.variable_shapes(stage.role))[0],
        tiny_runs.world_of(config).mesh,
      ),
      prefix="train/params/policy",
    )
    for name in ("whole", "killed")
    for stage in [load(files, mode, root / name)[1]]
  )
  for path, leaf in trees.flatten(whole).items():
    np.testing.assert_array_equal(leaf, trees.flatten(again)[path])


def test_trap_30_frozen_weights_are_untouched_by_ppo(files, trained):
  mode, root = trained
  base, start = load(files, mode, root / "sft")
  before = jax.tree.map(np.array, (base.params, start.variables))
  config = policy_config(files, mode, root / "sft", root / "rm_head")
  config.value.pretrain_steps = 0
  config.schedule.steps = 1
  pipelines.run(config, root / "frozen")
  after = (base.params, load(files, mode, root / "sft")[1].variables)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  trained = load(files, mode, root / "frozen")[1]
  changed = [
    path
    for path, leaf in trees.flatten(trained.variables).items()
    if not np.array_equal(leaf, trees.flatten(start.variables)[path])
  ]
  assert changed and all(roles.is_trainable(trained.role, p) for p in changed)


def test_shared_trunk_and_packing_change_no_number(files, trained):
  """The judge: one shared pass, separate passes, packed rows: the same."""
  mode, root = trained
  if mode == "full":
    pytest.skip("full roles share no trunk; nothing to compare")
  config = policy_config(files, mode, root / "sft", root / "rm_head")
  config.init_from = ""
  config.trainable.first_layer = 2
  scorer_config = reward_config(files, "head", root / "sft")
  scorer_config.update(init_from="", stop_layer=1)
  pipelines.run(scorer_config, root / "rm_base")
  config.reward = str(root / "rm_base")
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  cast = actors.load(settings, base, world, TOKENS, settings.value)
  assert cast.plan.shared == {"policy", "reference", "value", "reward"}
  samples = tiny_runs.load_samples(root / "sft" / "samples.npz")
  value = trees.merge(cast.params["value"], cast.frozen["value"])
  alone = dataclasses.replace(cast.plan, shared=frozenset())
  wide = dataclasses.replace(cast.plan, row_targets=40)
  layout = packing.plan(samples, packing.Shape(40, 40, 8, 8))
  streams = outputs.frozen_streams(
    cast.plan.policy.model, base.params, Rows.of(samples), (1, 2)
  )
  assert cast.plan.taps() == cast.plan.taps("reference") == (1, 2)
  lower = {1: streams[1]}  # the others are computed from there
  expected, scores = judge.judge(cast.weights, value, samples, plan=alone)
  for found, found_scores in (
    judge.judge(cast.weights, value, samples, plan=cast.plan),
    judge.judge(cast.weights, value, samples, layout, plan=wide),
    judge.judge(cast.weights, value, samples, None, lower, plan=cast.plan),
    judge.judge(cast.weights, value, samples, layout, streams, plan=wide),
  ):
    np.testing.assert_allclose(
      found.reference_logprobs, expected.reference_logprobs, atol=2e-5
    )
    np.testing.assert_allclose(found.values, expected.values, atol=2e-5)
    np.testing.assert_allclose(
      found_scores["reward"], scores["reward"], atol=2e-5
    )
