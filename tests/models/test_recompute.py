"""Recomputed layers: the same gradients, and memory for one layer at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import compiling
from rlhf_jax.models import transformer
from rlhf_jax.models.architecture import Config
from rlhf_jax.models.recompute import recomputed

MODEL = Config(
  vocab_size=23,
  width=16,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
)
TOKENS = np.random.default_rng(0).integers(0, 23, (4, 6))


def assert_close(found, expected):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    found,
    expected,
  )


def gradient_of(config, trained):
  """Returns the gradient in the layers that are named, and in the stream."""
  variables = transformer.init(config, jax.random.key(0))
  module = transformer.Transformer(config)

  @jax.jit
  def gradient(chosen, rest):
    def loss(chosen):
      given = {"params": rest["params"] | chosen["params"]}
      logits = module.apply(given, TOKENS, jnp.ones(TOKENS.shape))
      return jnp.mean(jnp.square(logits))

    return jax.grad(loss)(chosen)

  params = variables["params"]
  chosen = {k: v for k, v in params.items() if k in trained}
  return gradient({"params": chosen}, variables)


@pytest.mark.parametrize(
  "trained",
  [
    ("embedding", "layer_0", "layer_1", "layer_2", "final_norm"),
    ("layer_1", "layer_2"),  # nothing below moves
    ("layer_0",),  # only a stream moves above
  ],
)
def test_gradients_are_those_of_layers_that_are_kept(trained):
  again = dataclasses.replace(MODEL, remat=True)
  assert_close(gradient_of(again, trained), gradient_of(MODEL, trained))


def test_integers_and_outputs_that_nobody_reads():
  def run(weights, x, index, nothing):
    assert nothing is None
    y = jnp.tanh(x @ weights["w"])[index]
    return y, x * 2.0, index + 1

  def loss(weights, x, run):
    y, _, counted = run(weights, x, jnp.array([2, 0]), None)
    return jnp.sum(y * counted[:, None])

  key = jax.random.key(0)
  weights, x = {"w": jax.random.normal(key, (3, 3))}, jnp.ones((4, 3))
  found = jax.grad(loss, argnums=(0, 1))(weights, x, recomputed(run))
  assert_close(found, jax.grad(loss, argnums=(0, 1))(weights, x, run))


def test_slopes_that_are_no_numbers_are_not_hidden():
  def loss(x, factor):
    return jnp.sum(recomputed(jnp.sin)(x) * factor)

  slopes = jnp.array([jnp.nan, 1.0, 1.0])
  assert np.isnan(jax.jit(jax.grad(loss))(jnp.ones(3), slopes)).all()
  slopes = jnp.array([1.0, 1.0, jnp.nan])
  found = jax.jit(jax.grad(loss))(jnp.ones(3), slopes)
  np.testing.assert_array_equal(np.isnan(found), [False, False, True])


def memory(layers, **changes):
  """Returns bytes that a step of a larger model takes while it runs."""
  config = dataclasses.replace(
    MODEL, width=64, mlp_width=256, n_layers=layers, **changes
  )
  rows = jax.ShapeDtypeStruct((16, 64), jnp.int32)

  def step(variables, tokens):
    def loss(variables):
      mask = jnp.ones(tokens.shape)
      logits = transformer.Transformer(config).apply(variables, tokens, mask)
      return jnp.mean(jnp.square(logits))

    slopes = jax.grad(loss)(variables)
    norm = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(slopes))
    return jax.tree.map(lambda p, g: p - g / norm, variables, slopes)

  jitted = jax.jit(
    step, donate_argnums=0, compiler_options=compiling.for_training()
  )
  init = functools.partial(transformer.init, config)
  variables = jax.eval_shape(init, jax.random.key(0))
  compiled = jitted.lower(variables, rows).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_one_layer_at_a_time():
  """A barrier alone let twelve layers hold all that they hold without it."""
  stream, weights = (
    16 * 64 * 64 * 4,
    4 * (2 * 64 * 16 + 2 * 64 * 8 + 3 * 64 * 256),
  )
  more = (memory(12, remat=True) - memory(4, remat=True)) / 8
  assert more < 2 * stream + weights
  assert (memory(12) - memory(4)) / 8 > 8 * stream
