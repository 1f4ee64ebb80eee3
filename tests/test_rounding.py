"""bfloat16 weights that are trained: rounding by chance, right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import optimizer, rounding
from rlhf_jax.notebook import learner
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules

PATH = "layer_0/attention/q_proj/kernel"
CONSTANT = optimizer.Config(learning_rate=1e-4, clip_norm=None)


def steps(made, params, grads, count):
  def step(carry, _):
    params, state = carry
    updates, state = made.update(grads, state, params)
    params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    return (params, state), None

  run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=count)[0])
  return run((params, made.init(params)))


def test_either_neighbour_by_chance_and_the_mean_is_right():
  x = jnp.full((200, 500), 1.0 + 0.3 * 2**-7, jnp.float32)
  for sign in (1.0, -1.0):
    found = rounding.stochastic_bfloat16(sign * x, jax.random.key(0))
    found = np.asarray(found, np.float32) * sign
    assert set(np.unique(found)) == {1.0, 1.0 + 2**-7}
    share = np.mean(found > 1.0)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / x.size) ** 0.5


def test_exact_numbers_and_those_that_are_none_stay():
  x = jnp.array([0.0, -1.5, 2.0**-126, jnp.inf, -jnp.inf, jnp.nan])
  for seed in range(20):
    found = rounding.stochastic_bfloat16(x, jax.random.key(seed))
    np.testing.assert_array_equal(np.asarray(found, np.float32), x)


def test_tiny_updates_move_weights_where_the_nearest_does_not():
  params = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
  grads = jax.tree.map(jnp.ones_like, params)  # Adam: a step of 1e-4 each
  moved, _ = steps(optimizer.make_optimizer(CONSTANT), params, grads, 100)
  weight = np.asarray(moved["kernel"], np.float32)
  error = 100**0.5 * 2**-8 / 64  # deviation of the mean, at most
  assert abs(weight.mean() - 0.99) < 4 * error
  assert weight.std() < 0.01  # 0.06 if each update drew the same
  stuck, _ = steps(optax.adam(1e-4), params, grads, 100)
  np.testing.assert_array_equal(stuck["kernel"], params["kernel"])


def test_a_notebooks_own_optimizer_is_rounded_so_too():
  made = learner.check_optimizer(optax.sgd(1e-4))
  params = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
  moved, _ = steps(made, params, jax.tree.map(jnp.ones_like, params), 100)
  assert abs(np.asarray(moved["kernel"], np.float32).mean() - 0.99) < 0.003


def test_moments_are_float32_and_float32_weights_are_as_before():
  narrow = {"a": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones(8)}
  made = optimizer.make_optimizer(CONSTANT)
  state = made.init(narrow)
  assert {x.dtype for x in jax.tree.leaves(state)} == {
    jnp.dtype(jnp.float32),
    jnp.dtype(jnp.int32),
  }
  grads = jax.tree.map(jnp.ones_like, narrow)
  mixed, _ = made.update(grads, state, narrow)
  wide = {"b": jnp.ones(8)}
  alone, kept = made.update({"b": grads["b"]}, made.init(wide), wide)
  np.testing.assert_allclose(mixed["b"], alone["b"], rtol=1e-6)
  assert not isinstance(kept, rounding.State)


def test_what_is_added_is_what_was_drawn():
  weight = jnp.asarray(
    np.random.default_rng(0).normal(size=(64, 64)), jnp.bfloat16
  )
  wide = weight.astype(jnp.float32)
  for size in (1e-6, 1e-3, 1.0, 1e6):
    key = jax.random.key(1)
    update = size * jax.random.normal(jax.random.key(2), weight.shape)
    found = wide + rounding._to_bfloat16(wide, update, key)
    wanted = rounding.stochastic_bfloat16(wide + update, key)
    np.testing.assert_array_equal(found.astype(jnp.bfloat16), wanted)


def test_a_run_that_goes_on_and_one_on_a_mesh_draw_the_same():
  key = jax.random.split(jax.random.key(0))
  draw = lambda k: {  # noqa: E731
    "layer_0": {
      "attention": {
        "q_proj": {
          "kernel": jax.random.normal(k, (64, 64)).astype(jnp.bfloat16)
        }
      }
    }
  }
  params, grads = draw(key[0]), draw(key[1])
  made = optimizer.make_optimizer(CONSTANT)
  whole, _ = steps(made, params, grads, 4)

  def two(params, state):
    for _ in range(2):
      updates, state = made.update(grads, state, params)
      params = jax.tree.map(
        lambda p, u: (p + u).astype(p.dtype), params, updates
      )
    return params, state

  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=4, tensor=2))
  params, state = rules.init_sharded(mesh, lambda p: (p, made.init(p)), params)
  found = jax.jit(two)(*jax.jit(two)(params, state))[0]
  jax.tree.map(np.testing.assert_array_equal, whole, found)
  again = steps(made, *[jax.tree.map(jnp.copy, draw(key[0]))], grads, 4)[0]
  jax.tree.map(np.testing.assert_array_equal, whole, again)
