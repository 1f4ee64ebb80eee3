"""PPO whose critic is a head on the policy's trunk, from start to end."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import export
from rlhf_jax.algorithms.policy_gradient import importance
from rlhf_jax.interrupt import Stopped
from rlhf_jax.models import huggingface, roles, transformer
from rlhf_jax.programs import policy_step
from rlhf_jax.rewards import judge
from rlhf_jax.runs import loop, stages
from rlhf_jax.schema import UserError
from tests.pipelines import test_pipeline_resume as resume
from tests.pipelines import tiny_runs

PRETRAIN, STEPS = 1, 2
HEAD = "train/params/value/head"


def shared(config):
  """Returns the configuration with a critic on the policy's trunk."""
  config.value.update(
    trunk="shared", init="random", mode="full", pretrain_steps=PRETRAIN
  )
  config.schedule.update(steps=STEPS, save_every=1)
  return config


def full_config(files, start, scorer):
  config = tiny_runs.policy_config(files, "full", start, scorer)
  config.packing.update(row_tokens=48, row_targets=24, row_multiple=8)
  config.generate.num_samples = 2
  config.policy_optimizer.learning_rate = 2e-3
  return shared(config)


@pytest.fixture(scope="module")
def finished(files, sft_full, reward_full, run_policy):
  """One rollout for the head alone, two for both; rows are packed."""
  folder = files.root / "policy_shared"
  run_policy(full_config(files, sft_full, reward_full), folder)
  return folder


def test_a_head_trains_alone_and_then_with_the_policy(
  files, finished, sft_full, records, tmp_path
):
  """What it starts from, what a checkpoint holds, and the export."""
  first, last = (tiny_runs.saved_arrays(finished, i) for i in (1, 3))
  start = tiny_runs.saved_arrays(sft_full)
  trained = [path for path in last if path.startswith("train/params/policy/")]
  for path in trained:
    old = start[path.replace("/policy/", "/", 1)]
    np.testing.assert_array_equal(first[path], old, err_msg=path)
    assert np.abs(last[path] - old).max() > 0.0, path
  held = [path for path in last if path.startswith("train/params/value/")]
  assert sorted(held) == [f"{HEAD}/output/bias", f"{HEAD}/output/kernel"]
  for path in held:
    head = path.replace("train/params/value", "critic/params")
    np.testing.assert_array_equal(first[path], first[head])
    assert np.abs(first[path]).max() > 0.0
    assert np.abs(last[path] - first[path]).max() > 0.0
  values = [after.values for _, after in records[finished.name].rollouts]
  assert all(np.abs(x).max() > 0.0 for x in values)  # judged by the head
  written = export.export(finished, tmp_path / "hf")
  params = huggingface.load(written)[1]
  config = tiny_runs.policy_config(files, "full", sft_full, "")
  base = tiny_runs.load_base(config)
  stage = stages.load(finished, stages.POLICY, base, tiny_runs.world_of(config))
  assert stage.role.head is None
  tiny_runs.assert_equal_arrays(
    {"w": np.asarray(params["final_norm"]["scale"])},
    {"w": last["train/params/policy/params/final_norm/scale"]},
  )


@pytest.mark.slow
def test_t20_trap_23_stopped_in_both_parts(
  files, finished, sft_full, reward_full, monkeypatch
):
  config = full_config(files, sft_full, reward_full)
  folder = files.root / "policy_shared_resumed"
  for step in (1, 2):
    with monkeypatch.context() as patch:
      patch.setattr(
        loop.Interrupt, "should_stop", lambda self, now, at=step: now == at
      )
      with pytest.raises(Stopped, match=f"stopped after step {step}"):
        resume.pipelines.run(config, folder)
  resume.pipelines.run(config, folder)
  resume.assert_same_run(folder, finished, PRETRAIN + STEPS)


@pytest.mark.slow
def test_t16_trap_12_split_weights(
  files, finished, sft_full, reward_full, run_policy, records, capfd
):
  """mesh 2 x 2 x 2: the same tokens and the same numbers."""
  config = full_config(files, sft_full, reward_full)
  config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
  config.schedule.steps = 1
  folder = files.root / "policy_shared_2_2_2"
  run_policy(config, folder)
  pairs = zip(
    records[folder.name].tokens, records[finished.name].tokens[:2], strict=True
  )
  for found, expected in pairs:
    np.testing.assert_array_equal(found, expected)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(finished)[:2]
  )
  assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("start", ["sft_lora", "sft_full"])
def test_factors_of_lora_train_under_both_losses(
  files, start, request, reward_head, run_policy, records
):
  """Frozen layers below, a stream computed once, one device and eight."""
  runs, stage = [], request.getfixturevalue(start)
  for devices in (1, 8):
    config = tiny_runs.policy_config(files, "lora", stage, reward_head)
    config.mesh.update(devices=devices, data=devices)
    shared(config).value.hidden_units = 3
    folder = files.root / f"policy_shared_{start}_{devices}"
    run_policy(config, folder)
    runs.append(folder)
  record = records[runs[0].name]
  assert record.actors.plan.is_value_on_policy
  for _, rollout in record.rollouts:
    assert sorted(rollout.hidden) == ["policy"]
  tiny_runs.assert_close_rows(*(tiny_runs.rows_of(folder) for folder in runs))
  trained = tiny_runs.trained_arrays(runs[0], prefix="train/params/policy")
  assert all(path.startswith("lora/layer_1/") for path in trained)


@pytest.mark.slow
def test_values_come_with_recomputed_logprobs(
  files, sft_full, reward_full, run_policy, records
):
  """bfloat16: the judge gives none, the head in training is read."""
  config = full_config(files, sft_full, reward_full)
  config.model.dtype = "bfloat16"
  config.value.stops_gradient = True
  folder = files.root / "policy_shared_bfloat16"
  run_policy(config, folder)
  for _, rollout in records[folder.name].rollouts:
    assert np.abs(rollout.values).max() > 0.0
  assert "rollout/sampler_gap" in tiny_runs.rows_of(folder)[0]


def test_recomputed_values_are_0_beside_the_answers():
  mask = jnp.asarray([[0.0, 1.0, 1.0]])
  rollout = types.SimpleNamespace(
    response_mask=mask, behaviour_logprobs=-mask, replaced={}
  )

  def replace(**changes):
    rollout.replaced |= changes
    return rollout

  rollout.replace = replace
  values = jnp.asarray([[9.0, 2.0, 3.0]])
  policy_step.recompute(
    {},
    {},
    rollout,
    apply=lambda *_: (-mask, None, values),
    weights=importance.Config(),
    has_values=True,
  )
  np.testing.assert_array_equal(rollout.replaced["values"], [[0.0, 2.0, 3.0]])


def test_the_judge_leaves_values_to_the_pass_that_recomputes():
  model = transformer.Config(
    vocab_size=9,
    width=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    head_dim=4,
    mlp_width=8,
    max_length=8,
  )
  role = roles.Role(model)
  plan = judge.Plan(
    role, None, role, (), frozenset(), 1.0, 4, is_value_on_policy=True
  )
  rewards = types.SimpleNamespace(token_rewards="none")
  settings = types.SimpleNamespace(shaping=rewards)
  assert policy_step.judge_plan(plan, settings) is plan
  low = dataclasses.replace(
    plan, policy=roles.Role(dataclasses.replace(model, dtype="bfloat16"))
  )
  assert policy_step.judge_plan(low, settings).value is None
  own = dataclasses.replace(low, is_value_on_policy=False)
  assert policy_step.judge_plan(own, settings) is own


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"init": "reward"}, "value.init='reward': .* Set init='random'"),
    ({"mode": "lora"}, "value.mode='lora': .* trainable.mode"),
    ({"mode": "head"}, "value.mode='head': .* stops_gradient=True"),
    ({"first_layer": 1}, "value.first_layer=1: .* trainable.first_layer"),
    ({"trunk": "common"}, "value.trunk='common': must be one of own, shared"),
    (
      {"trunk": "own", "stops_gradient": True},
      "value.stops_gradient=True: .* trunk='shared'",
    ),
  ],
)
def test_settings_that_do_not_apply_are_refused(files, changes, words):
  config = shared(tiny_runs.policy_config(files, "full", "a", "b"))
  config.value.update(changes)
  with pytest.raises(UserError, match=f"^config.{words}"):
    tiny_runs.settings_of(config)


def test_a_method_without_a_critic_shares_nothing():
  config = tiny_runs.defaults.policy("rloo")
  config.value.update(trunk="shared", init="random")
  with pytest.raises(UserError, match="trunk='shared': 'rloo' has no critic"):
    tiny_runs.settings_of(config)
