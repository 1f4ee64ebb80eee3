"""What a step of policy training is made of, by hand and without a model."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate, metrics
from rlhf_jax.algorithms.policy_gradient import (
  importance,
  packing,
  shaping,
)
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import roles, transformer
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import policy_programs, policy_step, rollouts
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.types import FINISH_EOS, Rollout
from tests import tiny
from tests.pipelines import tiny_runs

MASK = np.float32([[0, 1, 1, 0], [0, 1, 1, 1]])


def rollout_of(score, behaviour=-0.5, reference=-0.25):
  """Returns a judged rollout of two answers of 2 and 3 tokens."""
  return Rollout(
    tokens=jnp.zeros((2, 4), jnp.int32),
    valid_mask=jnp.ones((2, 4)),
    response_mask=jnp.asarray(MASK),
    behaviour_logprobs=behaviour * jnp.asarray(MASK),
    finish_reason=jnp.full((2,), FINISH_EOS),
    reference_logprobs=reference * jnp.asarray(MASK),
    score=jnp.asarray(score, jnp.float32),
  )


def test_the_trainer_recomputes_and_weighs_against_the_sampler():
  trainer = jnp.asarray([[9.0, -0.4, -0.7, 9.0], [9.0, -0.5, -0.1, -0.6]])
  found, row = policy_step.recompute(
    {},
    {},
    rollout_of([0.0, 0.0]),
    apply=lambda *_: (trainer, None, None),
    weights=importance.Config(cap=1.2),
  )
  np.testing.assert_allclose(
    found.behaviour_logprobs, np.asarray(trainer) * MASK
  )
  ratios = np.exp((np.asarray(trainer) + 0.5) * MASK)
  weights = np.minimum(ratios, 1.2) * MASK
  np.testing.assert_allclose(found.importance_weights, weights, rtol=1e-6)
  expected = {
    "rollout/sampler_gap": (0.1 + 0.2 + 0.0 + 0.4 + 0.1) / 5,
    "rollout/sampler_capped": 1 / 5,  # exp(0.4)
    "rollout/sampler_weight_mean": weights.sum() / 5,
    "rollout/sampler_ratio_mean": (ratios * MASK).sum() / 5,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(row[name], value, rtol=1e-5)


def make_config(name="ppo"):
  config = defaults.policy(name)
  config.generate.update(temperature=0.7, max_new_tokens=3, num_samples=1)
  if name != "ppo":  # no ratio, so one update a rollout
    config.epochs.update(epochs=1, minibatches=1)
  return config


def test_the_baseline_of_remax_is_shaped_as_the_reward_is():
  """Scores of 9 and -1, and of greedy answers 8 and 0; all cut at 5."""
  config = make_config("remax")
  config.shaping.update(
    clip=5.0, kl_coefficient=0.5, kl_controller="fixed", length_penalty=1.0
  )
  found, _, row = policy_step.prepare(
    rollout_of([9.0, -1.0]),
    shaping.init_moments(),
    jnp.float32(0.5),
    None,
    {"greedy": rollout_of([8.0, 0.0])},
    settings=tiny_runs.settings_of(config),
  )
  # s' = clip(score - length): 5 and -4; greedy 5 and -3. KL: -1/8 a token
  # gained, 1/4 nats less likely than the reference.
  expected = np.float32([[0, 0.25, 0.125, 0], [0, -0.625, -0.75, -0.875]])
  np.testing.assert_allclose(found.advantages, expected, atol=1e-6)
  np.testing.assert_allclose(row["reward/shaped"], 0.5)
  assert found.further == {}


def test_advantages_of_an_import_path_are_used(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "def twice(rollout, config):\n"
    "  both = 2.0 * rollout.rewards\n"
    "  return rollout.replace(advantages=both, returns=both)\n"
  )
  config = make_config("reinforce")
  config.update(advantage_fn=f"{path}:twice")
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  found, _, _ = policy_step.prepare(
    rollout_of([1.0, -3.0]),
    shaping.init_moments(),
    jnp.float32(0.0),
    None,
    {},
    settings=tiny_runs.settings_of(config),
  )
  np.testing.assert_allclose(found.advantages, [[0, 0, 2, 0], [0, 0, 0, -6]])


def steps_of(transform, params, count):
  """Returns by how much each update moves a weight, its gradient always 1."""
  state, moved = transform.init(params), []
  for _ in range(count):
    updates, state = transform.update(
      jax.tree.map(jnp.ones_like, params), state, params
    )
    moved.append([-float(x) for x in jax.tree.leaves(updates)])
  return np.asarray(moved)


def test_schedules_count_the_updates_of_their_own_part():
  """4 rollouts of 2 updates, the first for the critic alone."""
  config = make_config()
  config.value.pretrain_steps = 1
  config.epochs.update(epochs=2, minibatches=1)
  linear = {"schedule": "linear", "warmup_steps": 0}
  config.policy_optimizer.update(learning_rate=1.0, **linear)
  config.value_optimizer.update(learning_rate=0.5, **linear)
  found = policy_step.make_transforms(tiny_runs.settings_of(config), 4)
  weights = {"policy": jnp.ones(()), "value": jnp.ones(())}
  both = steps_of(found["both"], weights, 7)
  share = np.maximum(1.0 - np.arange(7) / 6, 0.0)  # of 6 updates
  np.testing.assert_allclose(both[:, 0], share, atol=1e-5)
  np.testing.assert_allclose(both[:, 1], 0.5 * share, atol=1e-5)
  alone = steps_of(found["value"], jnp.ones(()), 3)[:, 0]
  np.testing.assert_allclose(alone, [0.5, 0.25, 0.0], atol=1e-5)


def test_further_answers_are_the_methods():
  assert policy_step.further(tiny_runs.settings_of(make_config())) == {}
  config = make_config("remax")
  config.generate.num_samples = 2
  found = policy_step.further(tiny_runs.settings_of(config))
  assert list(found) == ["greedy"]
  assert found["greedy"].temperature == 0.0
  assert found["greedy"].num_samples == 1
  assert found["greedy"].max_new_tokens == 3


def test_a_sampler_samples_as_it_is_told(monkeypatch):
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
  asked = []
  monkeypatch.setattr(
    generate,
    "with_streams",
    lambda *a, **settings: asked.append((a, settings)) or ("samples", {}),
  )
  tokenizer = types.SimpleNamespace(eos_id=5, pad_id=6)
  usual, other = generate.Config(num_samples=2), generate.Config(num_samples=1)
  sampler = Sampler(
    roles.Role(model), {}, types.SimpleNamespace(tokenizer=tokenizer), usual
  )
  params = {"params": {"w": jnp.ones(2)}}
  tapping = dataclasses.replace(sampler, taps=(3,))
  sampler(params, "prompts", "key")
  assert tapping(params, "prompts", "key", other) == "samples"
  tapping.with_streams(params, "prompts", "key", other)
  for (found, *rest), settings in asked:
    np.testing.assert_array_equal(found["w"], np.ones(2))
    assert rest == ["prompts", "key"]
    assert settings["model"] == model
    assert (settings["eos_ids"], settings["pad_id"]) == ((5,), 6)
  assert [how["config"] for _, how in asked] == [usual, other, other]
  assert [how["taps"] for _, how in asked] == [(), (), (3,)]


def test_trap_37_the_sampler_stops_at_every_end_token(tmp_path):
  """Those of the folder, of the template and of the settings."""
  folder = tiny.tiny_tokenizer_json(tmp_path, eos_token="<|endoftext|>")
  (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
  base = types.SimpleNamespace(tokenizer=load_tokenizer(folder))
  role = types.SimpleNamespace(model=types.SimpleNamespace(vocab_size=350))
  how = generate.Config(stop_tokens=("<|im_start|>",), stop_strings=("cat",))
  ends = Sampler(role, {}, base, how).end
  assert ends["eos_ids"] == (0, 9, 2, 1)
  assert ends["stops"].shape == (4, 350)


def test_further_answers_are_sampled_and_judged_beside_the_samples():
  """With keys of their own; only the samples are packed."""
  greedy = generate.Config(temperature=0.0)
  asked, judged = [], []

  def sampler(policy, prompts, key, how):
    assert (policy, prompts) == ("policy", "prompts")
    asked.append((tuple(np.asarray(jax.random.key_data(key)).tolist()), how))
    name = "usual" if how is None else "greedy"
    return name, {2: f"{name} streams"}

  def judge(weights, critic, samples, layout, streams):
    assert (weights, critic) == ("weights", "critic")
    assert streams == {2: f"{samples} streams"}
    judged.append((samples, layout))
    return f"{samples} rollout", {"reward": f"{samples} scores"}

  source = rollouts.Source(
    loader=None,
    sampler=types.SimpleNamespace(with_streams=sampler),
    judge=judge,
    actors=types.SimpleNamespace(weights="weights"),
    verifier=None,
    name="",
    mesh=None,
    packing=packing.Config(row_tokens=0),
    unit=1,
    timer=metrics.Timer(),
    further={"greedy": greedy},
  )
  found = source.answer("policy", "critic", "prompts", jax.random.key(1))
  assert [how for _, how in asked] == [None, greedy]
  assert asked[0][0] != asked[1][0]
  assert judged == [("usual", None), ("greedy", None)]
  assert found.rollout == "usual rollout"
  assert found.scores == {"reward": "usual scores"}
  assert found.further == {"greedy": "greedy rollout"}


@pytest.mark.parametrize(
  ("changes", "is_said"),
  [
    ({"kl_target": 6.0}, False),
    ({"kl_target": 5.0}, False),
    ({"kl_target": 4.0}, True),
    ({"kl_target": 9.0}, True),
    ({"kl_target": 9.0, "kl_controller": "fixed"}, False),
  ],
)
def test_an_unusual_target_of_the_kl_is_told(changes, is_said, capsys):
  config = defaults.policy("ppo")
  config.shaping.update(changes)
  policy_programs.warn_of_shaping(tiny_runs.settings_of(config))
  assert ("5 to 8 nats" in capsys.readouterr().out) == is_said
