"""Adam with moments of 8 bits: codes, bytes, meshes, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import moments, optimizer
from rlhf_jax.models import trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import UserError

PATH = "layer_0/attention/q_proj/kernel"


def tree(leaf, path=PATH):
  return trees.unflatten({path: leaf})


def settings(**changes):
  given = {"learning_rate": 1e-2, "clip_norm": None} | changes
  return optimizer.Config(**given)


def test_map_is_the_papers():
  signed, unsigned = (moments.dynamic_map(is_signed=x) for x in (True, False))
  assert len(set(signed)) == len(set(unsigned)) == 256
  assert signed[-1] == unsigned[-1] == 1.0 and 0.0 in signed
  assert unsigned[0] == 0.0 and np.all(np.diff(signed) > 0)
  assert np.sum(signed > 0.1) == 65 and np.sum(unsigned > 0.1) == 129
  np.testing.assert_array_equal(signed[signed < 0], -signed[signed > 0][-2::-1])


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_are_the_nearest_of_their_block(axis):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(128, 192)) * 10.0 ** rng.uniform(-5, 3)).astype("f4")
  codes, scales = moments.quantise(jnp.asarray(x), axis, is_signed=True)
  back = moments.dequantise(codes, scales, axis, is_signed=True)
  table = moments.dynamic_map(is_signed=True).astype("f8")
  blocks = np.moveaxis(x, axis, -1).reshape(-1, moments.BLOCK)
  most = np.abs(blocks).max(axis=1, keepdims=True)
  nearest = np.abs((blocks / most)[..., None] - table).argmin(axis=-1)
  found = np.moveaxis(np.asarray(back), axis, -1).reshape(blocks.shape)
  np.testing.assert_allclose(found, table[nearest] * most, rtol=1e-5)


def test_what_is_above_0_never_becomes_0():
  x = jnp.zeros((64, 64)).at[0, :].set(1e-20).at[1, 0].set(1.0)
  x = x.at[:, 5].set(jnp.where(jnp.arange(64) == 3, 0.0, x[:, 5]))
  codes, scales = moments.quantise(x, 0, is_signed=False)
  back = moments.dequantise(codes, scales, 0, is_signed=False)
  np.testing.assert_array_equal(np.asarray(back > 0), np.asarray(x > 0))


def test_axis_of_blocks():
  for shape, axis in {
    (576, 1536): 1,
    (1536, 576): 0,
    (576, 576): 1,
    (4096, 16): 0,
    (30, 16, 4096): 2,
    (64, 48): None,
    (100, 100): None,
    (4096,): 0,
    (): None,
  }.items():
    assert moments.block_axis(shape) == axis, shape


def quadratic(config, steps=300):
  """Returns the loss after steps on a least-squares problem, and before."""
  key = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(key[0], (256, 64)) * jnp.logspace(-1, 0.5, 64)[None]
  best = jax.random.normal(key[1], (64, 64))
  noise = 0.1 * jax.random.normal(key[2], (256, 64))

  def loss(params):
    return jnp.mean(jnp.square(x @ params["kernel"] - x @ best - noise))

  params = {"kernel": jnp.zeros((64, 64)), "bias": jnp.zeros(64)}
  transformation = optimizer.make_optimizer(config)

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = transformation.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  start = params, transformation.init(params)
  (params, _), values = jax.jit(
    lambda c: jax.lax.scan(step, c, None, length=steps)
  )(start)
  least = loss({"kernel": jnp.linalg.lstsq(x, x @ best + noise)[0]})
  return np.asarray(values) - float(least)


def test_it_ends_where_adamw_ends():
  how = {"schedule": "linear", "total_steps": 300, "learning_rate": 0.1}
  plain = quadratic(settings(**how))
  small = quadratic(settings(**how, moments="8bit"))
  assert plain[-1] < 1e-3 * plain[0]
  np.testing.assert_allclose(
    np.log(small[[10, 50, 150, 299]] / small[0]),
    np.log(plain[[10, 50, 150, 299]] / plain[0]),
    rtol=0.05,
  )


def test_first_step_and_small_arrays_are_adams():
  params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(8)}
  grads = jax.tree.map(
    lambda p: jnp.sin(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape),
    params,
  )
  steps = {}
  for kind in ("float32", "8bit"):
    made = optimizer.make_optimizer(settings(moments=kind))
    first, state = made.update(grads, made.init(params), params)
    steps[kind] = first, made.update(grads, state, params)[0]
  one, other = steps["float32"], steps["8bit"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), one, one)
  np.testing.assert_allclose(other[0]["kernel"], one[0]["kernel"], rtol=1e-5)
  np.testing.assert_allclose(other[1]["bias"], one[1]["bias"], rtol=1e-6)
  assert not np.allclose(other[1]["kernel"], one[1]["kernel"], rtol=1e-4)


def test_bytes_of_both_moments():
  made = optimizer.make_optimizer(settings(moments="8bit"))
  state = jax.eval_shape(made.init, tree(jnp.ones((576, 1536))))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert size == 2 * 576 * 1536 * (1 + 4 / 64) + 8  # two counts


@pytest.mark.parametrize(
  "ways", [pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)]
)
def test_on_a_mesh_it_gives_the_same(ways):
  made = optimizer.make_optimizer(settings(moments="8bit", weight_decay=0.1))
  params = tree(jax.random.normal(jax.random.key(0), (256, 128)))
  grads = tree(jax.random.normal(jax.random.key(1), (256, 128)))
  axes = dict(zip(("fsdp", "tensor"), ways, strict=True))
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=1, **axes))

  def two_steps(params, grads):
    state = made.init(params)
    updates, state = made.update(grads, state, params)
    return made.update(updates, state, params)

  alone = jax.jit(two_steps)(params, grads)
  spread = rules.init_sharded(mesh, two_steps, params, grads)
  jax.tree.map(np.testing.assert_array_equal, alone, spread)
  state = spread[1]
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  codes = next(v for k, v in found.items() if f"mu_codes/{PATH}" in k)
  scales = next(v for k, v in found.items() if f"mu_scales/{PATH}" in k)
  assert codes == jax.sharding.PartitionSpec("fsdp", "tensor")
  assert scales == jax.sharding.PartitionSpec(
    None if ways[0] == 8 else "fsdp", "tensor"
  )


def test_settings_that_are_refused():
  with pytest.raises(UserError, match="moments='4bit'"):
    settings(moments="4bit")
  with pytest.raises(UserError, match="adam_tf_style"):
    settings(moments="8bit", adam_tf_style=True)
