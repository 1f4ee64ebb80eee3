"""Gathering by stages: the order of parts, and the numbers of one stage."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules, torus


def places(*shape: int) -> list[tuple[int, ...]]:
  return list(itertools.product(*map(range, shape)))


@pytest.mark.parametrize(
  ("shape", "stages"),
  [
    ((2, 2, 1), ()),  # a small plane
    ((2, 2, 4), ()),
    ((4, 4), ()),
    ((1, 1, 8), ()),  # a line
    ((16, 1), ()),
    ((8, 8), (8, 8)),
    ((16, 16), (16, 16)),
    ((4, 4, 4), (16, 4)),
    ((4, 4, 8), (16, 8)),
    ((8, 8, 8), (8, 8, 8)),
  ],
)
def test_stages_are_lines_or_small_planes(shape, stages):
  assert torus.split(places(*shape)) == stages


def test_an_order_that_is_no_torus_has_one_stage():
  found = places(8, 8)
  found[3], found[9] = found[9], found[3]
  assert torus.split(found) == ()
  snake = [(x, y if x % 2 == 0 else 7 - y) for x, y in places(8, 8)]
  assert torus.split(snake) == ()


def test_another_order_of_dimensions_is_as_good():
  assert torus.split([(y, x) for x, y in places(4, 8)]) == (4, 8)


def test_a_cpu_has_no_stages():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(fsdp=8, data=1))
  assert torus.stages_of(mesh) == torus.stages_of(mesh.abstract_mesh) == ()
  with mesh_lib.current(mesh):
    assert torus.stages() == ()


@pytest.mark.parametrize("path", ["mlp/up_proj/kernel", "mlp/down_proj/kernel"])
@pytest.mark.parametrize(
  ("shape", "stages"),
  [
    ((1, 8, 1), (2, 4)),
    ((1, 8, 1), (2, 2, 2)),
    ((2, 4, 1), (2, 2)),
    ((1, 4, 2), (2, 2)),
  ],
)
def test_staged_products_are_those_of_one_device(
  path, shape, stages, monkeypatch
):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape))
  monkeypatch.setattr(torus, "stages_of", lambda _: stages)
  weight = jax.random.normal(jax.random.key(0), (16, 32))
  x = jax.random.normal(jax.random.key(1), (16, 16))

  def loss(x, weight):
    y = rules.matmul(path, x, weight, 8) if mesh_lib.is_split() else x @ weight
    return jnp.sum(jnp.tanh(y)), y

  program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  (_, y), gradients = program(x, weight)
  split = rules.sharding_tree(mesh, {path: weight})[path]
  owned = jax.device_put(weight, split)
  with mesh_lib.current(mesh):
    rows = jax.device_put(x, mesh_lib.batch_sharding(mesh))
    (_, found), others = program(rows, owned)
    text = program.lower(rows, owned).as_text()
    whole = jax.jit(lambda w: rules.gather(path, w))(owned)
  assert text.count('"stablehlo.all_gather"') == 2 * len(stages)
  assert text.count('"stablehlo.reduce_scatter"') == len(stages)
  np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)
  for one, other in zip(gradients, others, strict=True):
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
  assert others[1].sharding.is_equivalent_to(split, 2)
  np.testing.assert_array_equal(whole, weight)


@pytest.mark.slow
def test_a_model_has_the_same_gradients_by_stages(monkeypatch):
  """All weights, scanned and recomputed, where data, fsdp and tensor split."""
  config = transformer.Config(
    vocab_size=24,
    width=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    mlp_width=32,
    scan_layers=True,
    remat=True,
  )
  params = transformer.init(config, jax.random.key(0))["params"]
  tokens = jax.random.randint(jax.random.key(1), (8, 6), 0, 24)
  net = transformer.Transformer(config)

  def loss(params, tokens):
    logits = net.apply({"params": params}, tokens, jnp.ones(tokens.shape))
    return jnp.mean(jnp.square(jax.nn.log_softmax(logits)[..., 0]))

  program = jax.jit(jax.value_and_grad(loss))
  value, gradients = program(params, tokens)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(1, 4, 2))
  monkeypatch.setattr(torus, "stages_of", lambda _: (2, 2))
  split = jax.device_put(params, rules.sharding_tree(mesh, params))
  with mesh_lib.current(mesh):
    found, others = program(split, mesh_lib.shard_batch(mesh, tokens))
  np.testing.assert_allclose(found, value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    gradients,
    others,
  )
