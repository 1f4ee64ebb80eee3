"""Every policy-gradient method through the pipeline, as its recipe has it.

The methods are those of the registry, so a new one is trained here without
being named, and is refused without a recipe in configs/.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.algorithms.policy_gradient import registry
from rlhf_jax.algorithms.policy_gradient.registry import ALGORITHMS
from rlhf_jax.pipelines import defaults
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

CONFIGS = Path(__file__).parent.parent.parent / "configs"
METHOD = runpy.run_path(str(CONFIGS / "method.py"))
QUICK = ("grpo",)


def recipe(name):
  """Returns the experiment file's configuration of a method."""
  if name in METHOD["METHODS"]:
    return METHOD["get_config"](name)
  config = runpy.run_path(str(CONFIGS / "ppo.py"))["get_config"]()
  assert config.algorithm.name == name, (
    f"{name} has no recipe: add it to METHODS of configs/method.py"
  )
  return config


def method_config(files, name, start, scorer):
  """A tiny run with the method, the reward and the epochs of its recipe."""
  chosen = recipe(name)
  config = tiny_runs.policy_config(files, "lora", start, scorer)
  for section in ("algorithm", "epochs", "shaping"):
    config[section] = chosen[section]
  config.shaping.update(halt_nats=1e6, warn_nats=1e5)
  config.generate.num_samples = min(4, chosen.generate.num_samples)
  config.value.pretrain_steps = 0
  config.schedule.update(steps=3, save_every=3, asynchronous=False)
  return config


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_of_the_registry_has_a_recipe(name, tmp_path):
  """Its own settings pass all checks of a run; only files are put in."""
  config = recipe(name)
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"prompt": "1 + 1?", "reference": "2"}\n')
  config.prompts.source = str(path)
  config.verifier.name = "exact"
  if registry.has_critic(ALGORITHMS[name]):  # there is no reward model
    config.value.init = "random"
  config.mesh.devices = 1
  settings = tiny_runs.checked(config)
  assert settings.algorithm.module is ALGORITHMS[name]


def test_a_method_without_a_recipe_fails():
  with pytest.raises(AssertionError, match="brand_new has no recipe"):
    recipe("brand_new")


@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ALGORITHMS
  ],
)
def test_every_method_of_the_registry_trains(
  files, sft_lora, reward_head, name
):
  """First ratio 1, a critic where one belongs, the policy moves."""
  config = method_config(files, name, sft_lora, reward_head)
  folder = files.root / f"policy_{name}"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  assert len(rows) == 3
  has_groups = tiny_runs.settings_of(config).group_size is not None
  has_critic = registry.has_critic(ALGORITHMS[name])
  for row in rows:
    assert np.isfinite(row["ppo/policy_loss"])
    assert row["ppo/first_ratio_error"] < 1e-4
    assert ("ppo/explained_variance" in row) == has_critic
    assert ("group/std" in row) == has_groups
  saved = tiny_runs.saved_arrays(folder)
  assert any("/value/" in path for path in saved) == has_critic
  start = tiny_runs.trained_arrays(sft_lora)
  trained = tiny_runs.trained_arrays(folder, prefix=stages.BESIDE_CRITIC)
  moved = [np.max(np.abs(leaf - start[path])) for path, leaf in trained.items()]
  assert moved and max(moved) > 1e-4
  assert stages.read_stage(folder)["steps"] >= 3


def test_a_method_learns_the_planted_word(files, sft_lora, reward_head):
  config = method_config(files, "rloo", sft_lora, reward_head)
  config.schedule.update(steps=16, save_every=16)
  folder = files.root / "policy_rloo_learns"
  pipelines.run(config, folder)
  score = [row["rollout/score_mean"] for row in tiny_runs.rows_of(folder)]
  assert np.mean(score[-4:]) > np.mean(score[:4]) + 0.3


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("gropo", {}, "algorithm.name='gropo'.*grpo"),
    ("grpo", {"algorithm.value_clip": 0.1}, "value_clip=0.1: 'grpo' has no"),
    ("rloo", {"generate.num_samples": 1}, "group_size=1"),
    ("rloo", {"algorithm.group_size": 3}, "num_samples is 4"),
    ("grpo", {"shaping.kl_coefficient": 0.1}, "count twice"),
    ("rloo", {"algorithm.kl_loss": "k1"}, "kl_loss='k1'"),
    ("rloo", {"shaping.kl_estimator": "k3"}, "kl_estimator='k3'"),
    ("remax", {"epochs.epochs": 2}, "2 steps per rollout"),
    ("grpo", {"value.pretrain_steps": 2}, "no critic to train"),
    ("remax", {"shaping.whitening": "scale"}, "greedy answers off, which"),
  ],
)
def test_what_is_known_to_be_wrong_is_refused(
  files, sft_lora, reward_head, name, changes, message
):
  known = name if name in ALGORITHMS else "ppo"
  config = method_config(files, known, sft_lora, reward_head)
  config.algorithm.name = name
  for field, value in changes.items():
    config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)


def test_what_none_would_mean_can_be_set():
  """None in a section is the method's default; its other meanings are open."""
  config = _untouched("dr_grpo")
  config.algorithm.aggregation = "token-mean"
  found = tiny_runs.settings_of(config).method
  assert (found.aggregation, found.aggregation_tokens) == ("token-mean", None)
  config = _untouched("ppo")
  config.algorithm.value_clip = float("inf")
  assert tiny_runs.settings_of(config).method.value_clip == np.inf


def test_settings_left_alone_are_the_methods_own():
  for name, module in ALGORITHMS.items():
    settings = tiny_runs.settings_of(_untouched(name))
    if settings.group_size is None:
      assert settings.method == module.Config()
    else:
      assert settings.method == module.Config(group_size=4)


def _untouched(name):
  """Returns a method with nothing set; four answers, one step, no KL."""
  config = defaults.policy(name)
  config.generate.num_samples = 4
  config.epochs.update(epochs=1, minibatches=1)
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  return config


def test_a_verifier_judges_instead_of_a_reward_model(files, sft_lora):
  """Answers that hold the planted word are right; the policy learns it."""
  config = method_config(files, "rloo", sft_lora, "")
  has_word = {"pattern": rf"\b{tiny_runs.PLANTED}\b", "mode": "search"}
  config.verifier.name = "sum"
  config.verifier.settings.parts = (
    {"verifier": "pattern", "weight": 1.0, "settings": has_word},
    {
      "verifier": "pattern",
      "weight": 0.0,  # reported, not rewarded
      "settings": {"pattern": ".", "mode": "search"},
    },
  )
  config.prompts.source = questions(files)
  config.schedule.update(steps=12, save_every=12)
  folder = files.root / "policy_verified"
  pipelines.run(config, folder)
  share = [row["rollout/score_mean"] for row in tiny_runs.rows_of(folder)]
  assert np.mean(share[-3:]) > np.mean(share[:3]) + 0.2
  for row in tiny_runs.rows_of(folder, "samples.jsonl"):
    assert row["sum"] == float(tiny_runs.PLANTED in row["response"])
    assert row["component/pattern"] == row["sum"]
  for row in tiny_runs.rows_of(folder):
    assert row["reward/component/pattern"] == pytest.approx(
      row["rollout/score_mean"]
    )
    assert row["reward/component/pattern_2"] > 0.5
    assert row["group/pass1"] == pytest.approx(row["rollout/score_mean"])
    assert row["group/passG"] >= row["group/pass1"]


def questions(files):
  """Returns prompts that bring a reference."""
  path = files.root / "questions.jsonl"
  prompts = tiny_runs.rows_of(files.root, "prompts.jsonl")
  path.write_text(
    "".join(json.dumps(row | {"reference": ""}) + "\n" for row in prompts)
  )
  return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora", "head"])
def test_ppo_takes_a_verifier_and_a_critic_of_its_own(
  files, sft_lora, mode, capsys
):
  config = tiny_runs.policy_config(files, "lora", sft_lora, "")
  config.verifier.name = "pattern"
  config.verifier.settings.update(
    pattern=rf"\b{tiny_runs.PLANTED}\b", mode="search"
  )
  config.prompts.source = questions(files)
  config.value.update(init="random", mode=mode, first_layer=0)
  config.schedule.update(batch_size=24, steps=12, save_every=12)
  config.shaping.kl_horizon = 240.0
  folder = files.root / f"policy_verified_ppo_{mode}"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  share = [row["rollout/score_mean"] for row in rows]
  assert np.mean(share[-3:]) > np.mean(share[:3]) + 0.1
  # values of 0 explain nothing, and nothing wrongly
  assert rows[0]["ppo/explained_variance"] == pytest.approx(0.0, abs=1e-3)
  capsys.readouterr()


@pytest.mark.parametrize(
  "name, verifier, judge, message",
  [
    ("rloo", "patern", "", "verifier='patern' is unknown"),
    ("rloo", "exact", "here", "one of them judges"),
    ("ppo", "exact", "", "needs a critic"),
    ("rloo", "", "", "config.reward is empty"),
  ],
)
def test_judges_that_cannot_be_are_refused(
  files, sft_lora, reward_head, name, verifier, judge, message
):
  config = method_config(files, name, sft_lora, "")
  config.verifier.name = verifier
  config.reward = str(reward_head) if judge else ""
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)


def test_prompts_without_references_are_refused(files, sft_lora):
  config = method_config(files, "rloo", sft_lora, "")
  config.verifier.name = "exact"
  with pytest.raises(UserError, match="prompts.jsonl:1.*reference"):
    pipelines.run(config, files.root / "policy_unjudged")


def test_references_that_cannot_judge_are_named_by_file_and_line(
  files, sft_lora, tmp_path
):
  """Before anything is drawn, not when the prompt comes up."""
  path = tmp_path / "questions.jsonl"
  prompts = tiny_runs.rows_of(files.root, "prompts.jsonl")
  path.write_text(
    "".join(
      json.dumps(row | {"reference": "many" if line == 7 else "3"}) + "\n"
      for line, row in enumerate(prompts, 1)
    )
  )
  config = method_config(files, "rloo", sft_lora, "")
  config.verifier.name = "number"
  config.prompts.source = str(path)
  with pytest.raises(UserError, match="questions.jsonl:7: reference='many'"):
    pipelines.run(config, tmp_path / "run")
