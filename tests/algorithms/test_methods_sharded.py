"""Trap 12: every method on eight devices takes the step it takes on one.

Statistics of the batch, of groups whose answers lie on several devices, and
counts of tokens are where a method would go wrong.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.algorithms.policy_gradient import registry as policy_gradient
from rlhf_jax.algorithms.policy_gradient import update as policy_update
from rlhf_jax.algorithms.preference import registry as preference
from rlhf_jax.algorithms.preference import update as preference_update
from rlhf_jax.types import TrainState
from tests.algorithms import bigram as policy_problem
from tests.algorithms import test_preference_update as preference_problem

OPTIMIZER = optax.sgd(0.5)
KEY = jax.random.key(3)
GROUP = 4


def split(tree, rows):
  """The tree, its leaves split over 8 devices along `rows` rows."""
  mesh = Mesh(np.array(jax.devices()), ("data",))

  def place(x):
    is_row = x.ndim > 0 and x.shape[0] == rows
    spec = PartitionSpec("data") if is_row else PartitionSpec()
    return jax.device_put(x, NamedSharding(mesh, spec))

  return jax.tree.map(place, tree)


def start(params):
  return TrainState(jnp.int32(0), params, OPTIMIZER.init(params), jnp.int32(0))


def compare(program, arguments, rows):
  expected = program(*arguments)
  found = program(*split(arguments, rows))
  moved = jax.tree.map(
    lambda a, b: jnp.abs(a - b).max(), found[0].params, arguments[0].params
  )
  assert max(jax.tree.leaves(moved)) > 5e-5
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )


def settings(name):
  config = policy_gradient.ALGORITHMS[name].Config
  is_grouped = "group_size" in config.__dataclass_fields__
  return config(group_size=GROUP) if is_grouped else config()


@pytest.mark.slow
@pytest.mark.parametrize("name", policy_gradient.ALGORITHMS)
def test_trap_12_policy_gradients(name):
  module, config = policy_gradient.ALGORITHMS[name], settings(name)
  is_one_step = name in ("reinforce", "remax")
  has_critic = policy_gradient.has_critic(module)
  params = policy_problem.parameters()
  rollout = policy_problem.make_rollout()
  if not has_critic:
    params = {"policy": params["policy"]}
    rollout = rollout.replace(values=None, returns=None, advantages=None)

  def apply(params, frozen, part):
    value = params.get("value", {"w": jnp.zeros(policy_problem.D)})
    found = policy_problem.apply(
      {"policy": params["policy"], "value": value}, frozen, part
    )
    return found if has_critic else (*found[:2], None)

  @jax.jit
  def program(state, rollout):
    further = {
      name: rollout.replace(score=0.5 * rollout.score)
      for name in policy_gradient.further_of(module, config)
    }
    rollout = rollout.replace(further=further)
    return policy_update.update(
      state,
      policy_problem.FROZEN,
      module.advantages(rollout, config),
      KEY,
      None,
      algorithm=module,
      algorithm_config=config,
      config=policy_update.Config(1, 1 if is_one_step else 2),
      apply=apply,
      optimizer=OPTIMIZER,
    )

  compare(program, (start(params), rollout), policy_problem.N)


@pytest.mark.slow
@pytest.mark.parametrize("name", preference.ALGORITHMS)
def test_trap_12_preference_methods(name):
  module = preference.ALGORITHMS[name]
  params, frozen, batch = preference_problem.problem()
  batch = jax.tree.map(  # 16 rows, all different
    lambda x: jnp.concatenate([x, jnp.roll(x, 1, 0), x])[:16], batch
  )
  batch = batch.replace(weight=batch.weight.at[5].set(0.0))

  @functools.partial(jax.jit, static_argnames="parts")
  def program(state, batch, parts=1):
    return preference_update.update(
      state,
      frozen,
      batch,
      KEY,
      algorithm=module,
      algorithm_config=module.Config(),
      config=preference_update.Config(parts),
      apply=preference_problem.apply,
      optimizer=OPTIMIZER,
    )

  compare(program, (start(params), batch), 16)
  compare(functools.partial(program, parts=2), (start(params), batch), 16)
