"""The critic that policy training starts with is the reward model."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import heads, outputs, roles, transformer
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import actors
from rlhf_jax.programs import critic as critics
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError

MODEL = transformer.Config(
  vocab_size=19,
  width=16,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=16,
)
MEAN, STD = 0.5, 2.0
WORLD = World.open(mesh_lib.Config(devices=1), "")


def noisy(tree, size=0.2):
  """Returns the tree with noise, so that no weight is at its start value."""
  return jax.tree.map(
    lambda x: x + size * jax.random.normal(jax.random.key(x.size), x.shape),
    tree,
  )


def reward(trainable="head", hidden_units=0, rank=0, first_layer=0):
  """Returns (Scorer, Weights) of a reward model."""
  role = roles.Role(
    dataclasses.replace(MODEL, lora_rank=rank),
    trainable=trainable,
    first_layer=first_layer,
    head=heads.Config(hidden_units=hidden_units),
  )
  key = jax.random.key(0)
  variables = {
    "params": transformer.init(MODEL, key)["params"],
    "head": noisy(heads.init(role.head, MODEL.width, key)),
  }
  if trainable == "lora":
    variables["lora"] = noisy(roles.fresh_lora(role, key))
  weights = reward_model.Weights(variables, jnp.float32(MEAN), jnp.float32(STD))
  return reward_model.Scorer(role, reads_end_token=True), weights


def values(stage):
  """Returns the critic's values [2, L] of all prefixes of two rows."""
  mask = jnp.ones((2, 7))
  tokens = jnp.arange(14).reshape(2, 7) % 19
  rows = Rows(tokens, mask, jnp.tile(jnp.arange(7), (2, 1)))
  return outputs.prefix_scores(stage.role, stage.variables, rows)[..., 0]


@pytest.mark.parametrize("hidden_units", [0, 3])
@pytest.mark.parametrize(
  "trained, rank, mode",
  [
    ("head", 0, "full"),
    ("head", 0, "head"),
    ("full", 0, "head"),
    ("lora", 2, "lora"),
    ("lora", 2, "full"),
    ("head", 0, "lora"),
  ],
)
def test_trap_31_the_critic_starts_as_the_reward_model(
  trained, rank, mode, hidden_units
):
  """Also with an MLP in the head, and whatever trains of either."""
  scorer, weights = reward(trained, hidden_units, rank)
  model = dataclasses.replace(MODEL, lora_rank=4)
  critic = critics.starting_critic(
    critics.Value(mode=mode), scorer, weights, model, jax.random.key(3), WORLD
  )
  judged = stages.Stage(scorer.role, weights.variables, {})
  np.testing.assert_allclose(
    values(critic), (values(judged) - MEAN) / STD, atol=2e-5
  )
  assert float(jnp.std(values(critic))) > 0.01


def test_an_mlp_beside_a_plain_head_starts_at_nothing():
  scorer, weights = reward()
  key = jax.random.key(3)
  plain, deeper = (
    critics.starting_critic(
      critics.Value(hidden_units=units), scorer, weights, MODEL, key, WORLD
    )
    for units in (0, 5)
  )
  np.testing.assert_allclose(values(deeper), values(plain), atol=1e-6)
  assert deeper.variables["head"]["hidden"]["kernel"].shape == (16, 5)


@pytest.mark.parametrize(
  "made, settings, message",
  [
    ({"hidden_units": 3}, {"hidden_units": 5}, "hidden_units=5.*has 3"),
    (
      {"trainable": "lora", "rank": 2, "first_layer": 1},
      {"mode": "lora", "first_layer": 0},
      "first_layer=0.*begin at layer 1",
    ),
    ({}, {"mode": "lora"}, "lora_rank=0"),
  ],
)
def test_a_critic_that_would_forget_the_reward_model_is_refused(
  made, settings, message
):
  scorer, _ = reward(**made)
  with pytest.raises(UserError, match=message):
    critics.critic_role(critics.Value(**settings), scorer, MODEL)


def test_a_reward_model_at_chance_is_refused_unless_forced(capsys):
  info = {"guards": [("warn", "few pairs."), ("refuse", "at chance.")]}
  with pytest.raises(UserError, match="at chance. Pass --config.force=True"):
    actors.check_reward(info, force=False)
  actors.check_reward(info, force=True)
  assert (
    "model: force=True goes on past refuse: at chance."
    in capsys.readouterr().out
  )
  actors.check_reward({"guards": info["guards"][:1]}, force=False)


def test_the_reference_is_the_policy_as_it_starts():
  """With the factors it starts from, where it has some."""
  role = roles.Role(
    dataclasses.replace(MODEL, lora_rank=2), trainable="lora", first_layer=1
  )
  names = ("embedding", "layer_0", "layer_1")
  params = {name: {"w": jnp.ones(1)} for name in names}
  variables = {"params": params, "lora": {"layer_1": {"a": jnp.ones(2)}}}
  start = stages.Stage(role, variables, {"merged_from": "sft"})
  base = types.SimpleNamespace(params=params)
  found = actors.assemble(base, start, None, {}, 0.7, 4)
  assert found.weights.reference is variables
  assert found.weights.base is params  # read by both below the first layer
  assert found.plan.shared == {"policy", "reference"}
  assert (found.plan.temperature, found.plan.row_targets) == (0.7, 4)
  assert found.params == {"policy": {"lora": variables["lora"]}}
  assert found.frozen == {"policy": {"params": params}}
  assert found.merged_from == "sft"
