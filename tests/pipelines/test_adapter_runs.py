"""Runs of chosen factors, and of those of a PEFT folder: what is held, kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.integrity import CheckpointError
from rlhf_jax.models import (
  huggingface,
  model_sources,
  peft,
  roles,
  trees,
)
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors, starts
from rlhf_jax.programs.pipeline import check_stages
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.drawn_stages import draw, save_stage
from tests.pipelines.test_pipeline_resume import Killed, kill_at

RANK, SCALE = 2, 0.5
CHOSEN = {"attention/q_proj", "mlp/down_proj"}


@pytest.fixture(scope="module")
def adapter(files):
  """Returns a PEFT folder, factors of layer 1 alone, and the factors."""
  base = tiny_runs.load_base(tiny_runs.sft_config(files, "full"))
  model = dataclasses.replace(base.config, lora_rank=RANK)
  role = roles.Role(model, "lora", tiny_runs.LORA_LAYER)
  factors = draw(role, "lora", 5, 0.3)
  folder = files.root / "adapter"
  folder.mkdir()
  peft.write(folder, model, factors["lora"], scale=SCALE, base=files.model)
  return folder, trees.flatten(factors)


def chosen_config(files, targets="q_proj,down_proj"):
  """SFT of some factors of layer 1, 6 steps."""
  config = tiny_runs.sft_config(files, "lora")
  config.model.update(lora_alpha=6.0, lora_targets=targets)
  config.schedule.update(steps=6, save_every=2)
  config.update(samples=0)
  config.sample_prompts.source = ""
  return config


@pytest.fixture(scope="module")
def chosen(files):
  folder = files.root / "sft_chosen"
  pipelines.run(chosen_config(files), folder)
  return folder


def test_chosen_factors_learn_and_nothing_else_is_kept_or_moved(files, chosen):
  rows = tiny_runs.rows_of(chosen)
  assert rows[-1]["sft/loss"] < rows[0]["sft/loss"] - 0.1
  saved = tiny_runs.saved_arrays(chosen)
  trained = {
    path.removeprefix("train/params/lora/"): leaf
    for path, leaf in saved.items()
    if path.startswith("train/params/")
  }
  assert set(trained) == {
    f"layer_1/{kind}/lora_{x}" for kind in CHOSEN for x in "ab"
  }
  # By hand: width 16, inner width 24; q is 16 x 16, down 24 x 16, rank 2.
  weights = 2 * (16 + 16) + 2 * (24 + 16)
  held = sum(leaf.nbytes for leaf in saved.values() if leaf.size > 1)
  assert held == 3 * 4 * weights  # and two moments of Adam, nothing frozen
  assert all(np.abs(leaf).max() > 0 for leaf in trained.values())
  base = tiny_runs.load_base(chosen_config(files)).params
  _, stored = huggingface.load(files.model)
  for path, leaf in trees.flatten(base).items():
    np.testing.assert_array_equal(leaf, trees.flatten(stored)[path])


def test_t20_trap_23_chosen_factors_resume_bit_for_bit(
  files, chosen, monkeypatch
):
  folder = files.root / "again" / chosen.name
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(chosen_config(files), folder)
  pipelines.run(chosen_config(files), folder)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(folder), tiny_runs.saved_arrays(chosen)
  )
  assert tiny_runs.rows_of(folder) == tiny_runs.rows_of(chosen)


@pytest.mark.slow
def test_t16_trap_12_chosen_factors_on_eight_devices(files, chosen):
  config = chosen_config(files)
  config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
  folder = files.root / "chosen_2_2_2" / chosen.name
  pipelines.run(config, folder)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(chosen)
  )
  found = tiny_runs.trained_arrays(folder)
  for path, leaf in tiny_runs.trained_arrays(chosen).items():
    np.testing.assert_allclose(found[path], leaf, atol=2e-4, err_msg=path)


def test_a_finished_stage_of_chosen_factors_is_loaded_as_it_was(files, chosen):
  config = chosen_config(files)
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  stage = stages.load(chosen, stages.POLICY, base, world)
  assert set(stage.role.model.lora_targets) == CHOSEN
  assert stage.role.model.lora_scale == 3.0  # 6 / 2
  config.init_from = str(chosen)
  start = starts.starting_policy(tiny_runs.settings_of(config), base, world)
  assert start.role == stage.role
  tiny_runs.assert_equal_arrays(
    trees.flatten(start.variables["lora"]),
    trees.flatten(stage.variables["lora"]),
  )


def policy_config(files, **changes):
  """REINFORCE, or PPO with a critic of factors, of a verifier's score."""
  method = changes.pop("method", "ppo")
  config = defaults.policy(method)
  if method == "reinforce":
    config.epochs.update(epochs=1, minibatches=1)
  config.model.source = files.model
  config.trainable.mode = "lora"
  config.mesh.devices = 1
  config.verifier.name = "pattern"
  config.verifier.settings.update(pattern=".*cat.*")
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = 4
  config.update(changes)
  return config


def load_actors(config):
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  value = getattr(settings, "value", None) if settings.has_critic else None
  return base, actors.load(settings, base, world, 4, value)


def bytes_held(*held):
  """Returns the bytes of all arrays, each once, by where they lie."""
  places = {
    leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(held)
  }
  return sum(places.values())


def test_policy_critic_and_reference_stand_on_one_base(files):
  """Two adapters and a head beside one tree of weights; no third copy."""
  config = policy_config(files)
  config.model.update(lora_rank=RANK, lora_targets="q_proj,v_proj")
  config.value.update(init="random", mode="lora")
  base, found = load_actors(config)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  both = found.params["policy"], found.params["value"]
  assert set(found.params["policy"]) == {"lora"}
  assert set(found.params["value"]) == {"lora", "head"}
  assert set(found.weights.reference) == {"params"}  # without factors
  # q is 16 x 16, v 16 x 8, in two layers.
  factors = 4 * 2 * 2 * RANK * (16 + 16 + 16 + 8) // 2
  assert size(found.params["policy"]) == factors
  everything = found.params, found.frozen, found.weights
  assert bytes_held(base.params, everything) == size(base.params) + size(both)


def test_a_peft_folder_is_a_start_and_a_reference(files, adapter, capsys):
  """Its factors train on; what the KL is to is named."""
  folder, factors = adapter
  for field, made in (
    ("init_from", defaults.sft()),
    ("init_from", defaults.reward()),
    ("init_from", defaults.preference()),
    ("init_from", defaults.policy()),
    ("reference", defaults.policy()),
    ("policy", defaults.evaluate()),
  ):
    made[field] = str(folder)
    check_stages(pipelines.read(made).settings)
  config = policy_config(files, method="reinforce", init_from=str(folder))
  base, found = load_actors(config)
  said = capsys.readouterr().out
  assert "its factors (rank 2, scale 0.5, on all linear maps from" in said
  assert "warning" not in said  # made for this model
  role = found.plan.policy
  assert (role.first_layer, role.model.lora_rank) == (1, RANK)
  tiny_runs.assert_equal_arrays(trees.flatten(found.params["policy"]), factors)
  held = found.params, found.frozen, found.weights
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(base.params))
  own = sum(leaf.nbytes for leaf in factors.values())
  assert bytes_held(base.params, held) == size + own
  settings = tiny_runs.settings_of(config)
  starts.say_reference(settings, "policy")
  what = f"the reference is {folder}, the start (peft run)"
  assert what in capsys.readouterr().out
  # The same settings, written out, mean the same; other ones merge it.
  config.model.update(lora_rank=RANK, lora_alpha=1.0)
  config.trainable.first_layer = 1
  assert load_actors(config)[1].plan.policy == role
  config.model.lora_targets = "q_proj"
  merged = load_actors(config)[1]
  assert (
    "are merged into the weights, and fresh ones" in capsys.readouterr().out
  )
  assert merged.merged_from == str(folder)
  start = found.frozen["policy"]["params"]
  flat = trees.flatten(merged.frozen["policy"]["params"])
  for path, leaf in trees.flatten(start).items():
    stem = f"lora/{path.removesuffix('/kernel')}"
    if f"{stem}/lora_a" in factors:
      leaf = leaf + SCALE * (
        factors[f"{stem}/lora_a"] @ factors[f"{stem}/lora_b"]
      )
    np.testing.assert_allclose(flat[path], leaf, atol=1e-6)


def test_a_stage_that_was_built_on_a_folder_finds_it_again(
  files, adapter, tmp_path
):
  """Merged into its weights; and it notices another folder there."""
  folder = tmp_path / "adapter"
  folder.mkdir()
  for path in adapter[0].iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  config = tiny_runs.sft_config(files, "lora")
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  role = roles.Role(base.config, "lora")
  built = tmp_path / "built"
  save_stage(
    built,
    "sft",
    base,
    role,
    draw(role, "lora", 1, 0.3),
    merged_from=str(folder),
  )
  stage = stages.load(built, stages.POLICY, base, world)
  kernel = "layer_1/mlp/up_proj/kernel"
  moved = trees.flatten(stage.variables["params"])[kernel]
  assert np.abs(moved - trees.flatten(base.params)[kernel]).max() > 0.01
  path = folder / peft.CONFIG_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
  with pytest.raises(CheckpointError, match="another run is there now"):
    stages.load(built, stages.POLICY, base, world)


def test_sft_and_a_notebook_go_on_with_a_folders_factors(
  files, adapter, tmp_path
):
  folder, factors = adapter
  config = chosen_config(files, "all-linear")
  config.model.update(lora_rank=0, lora_alpha=None)
  config.trainable.first_layer = 0
  config.init_from = str(folder)
  config.schedule.update(steps=2, save_every=2)
  info = pipelines.run(config, tmp_path / "sft")
  assert info["init_from"] and not info["merged_from"]
  trained = tiny_runs.trained_arrays(tmp_path / "sft")
  assert trained.keys() == factors.keys()
  assert all((trained[path] != leaf).any() for path, leaf in factors.items())
  policy = lab.load(folder, mesh=lab.mesh_lib.Config(devices=1))
  assert policy.role.model.lora_scale == SCALE
  tiny_runs.assert_equal_arrays(trees.flatten(policy.params), factors)


def test_another_model_under_a_folder_is_said(files, adapter, capsys):
  config = tiny_runs.sft_config(files, "full")
  base, world = tiny_runs.load_base(config), tiny_runs.world_of(config)
  other = dataclasses.replace(base, source="models/other")
  stages.load(adapter[0], stages.POLICY, other, world)
  assert "and is put on 'models/other', whose shapes fit" in (
    capsys.readouterr().out
  )


@pytest.mark.parametrize(
  ("start", "changes", "words"),
  [
    ("", {}, "needs factors, and model.lora_rank=0"),
    ("full", {}, "trained as 'full' and has no factors to go on with"),
    ("peft", {"trainable.first_layer": 2}, "first_layer=2: the factors of"),
    (
      "peft",
      {"model.lora_targets": "q_proj"},
      "all of this is as in init_from",
    ),
    ("peft", {"model.lora_dropout": 0.1}, "lora_dropout=0.1: must be 0"),
  ],
)
def test_starts_that_cannot_go_on(
  files, adapter, sft_full, start, changes, words
):
  folder = {"": "", "full": sft_full, "peft": adapter[0]}[start]
  config = policy_config(files, method="reinforce", init_from=str(folder))
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    load_actors(config)


def test_what_is_said_of_factors_is_read_or_refused(files):
  config = tiny_runs.sft_config(files, "full")
  config.model.lora_targets = "q_proj"
  with pytest.raises(UserError, match="lora_targets='q_proj': nothing reads"):
    tiny_runs.checked(config)
  config.trainable.mode, config.model.lora_rank = "lora", 2
  config.model.lora_targets = "c_attn"
  with pytest.raises(UserError, match="config.model.lora_targets='c_attn': no"):
    pipelines.run(config, files.root / "refused")


def test_a_model_folder_that_is_an_adapter_names_the_way(adapter):
  with pytest.raises(FileNotFoundError, match="this folder in init_from"):
    model_sources.read_weights(adapter[0])


def test_a_reward_model_goes_on_with_factors_beside_the_same_base(
  files, sft_lora
):
  """Not merged: PPO then holds one base for all roles."""
  config = tiny_runs.reward_config(files, "lora", sft_lora, "")
  config.model.lora_rank = 0
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  role, variables, merged = starts.starting_reward(settings, base, world)
  assert not merged and role.head is not None and role.first_layer == 1
  kernels = trees.flatten(variables["params"])
  for path, leaf in trees.flatten(base.params).items():
    assert kernels[path] is leaf
  start = stages.load(sft_lora, stages.POLICY, base, world).variables
  tiny_runs.assert_equal_arrays(
    trees.flatten(variables["lora"]), trees.flatten(start["lora"])
  )
  config.model.lora_rank = 2
  settings = tiny_runs.settings_of(config)
  base = world.base(settings.model)
  _, variables, merged = starts.starting_reward(settings, base, world)
  assert merged == str(sft_lora)
  kernel = "layer_1/mlp/up_proj/kernel"
  assert trees.flatten(variables["params"])[kernel] is not kernels[kernel]


@pytest.mark.slow
def test_four_roles_of_one_folder_hold_one_base(files, adapter, tmp_path):
  """Policy, reference, reward model and critic, all begun from an adapter."""
  folder, factors = adapter
  config = tiny_runs.reward_config(files, "lora", folder, "")
  config.model.lora_rank = 0
  config.schedule.update(steps=12, save_every=6)
  info = pipelines.run(config, tmp_path / "reward")
  assert (tmp_path / "reward" / info["init_from"]).resolve() == folder
  assert info["role"]["lora_rank"] == RANK and not info["merged_from"]
  config = policy_config(
    files, init_from=str(folder), reward=str(tmp_path / "reward"), force=True
  )
  config.verifier.name = ""
  config.verifier.settings = {}
  config.value.update(mode="lora", first_layer=1)
  base, found = load_actors(config)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(base.params))
  own = sum(leaf.nbytes for leaf in factors.values())
  heads = 3 * 4 * (16 + 1)  # of the reward model and the critic, and change
  held = bytes_held(base.params, found.params, found.frozen, found.weights)
  # The critic starts with the reward model's factors, the same arrays.
  assert size + 2 * own < held < size + 2 * own + 2 * heads
  result = pipelines.run(config_of_one_step(config), tmp_path / "policy")
  assert result["steps"] == 1
  saved = tiny_runs.saved_arrays(tmp_path / "policy")
  trained = {p for p in saved if p.startswith("train/params/")}
  assert trained and all("/lora_" in p or "/head/" in p for p in trained)


def config_of_one_step(config):
  config.schedule.update(batch_size=8, steps=1)
  config.epochs.update(epochs=1, minibatches=1)
  return config


@pytest.mark.slow
def test_a_folder_is_evaluated_against_its_base(
  files, adapter, reward_head, tmp_path
):
  config = defaults.evaluate()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policy, config.reward = str(adapter[0]), str(reward_head)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = 4
  config.update(count=8, batch_size=8)
  result = pipelines.run(config, tmp_path / "evaluation")
  assert 0.01 < result["kl_nats"] < 20.0
