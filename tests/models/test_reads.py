"""The last layer at the columns that are read: the same numbers, less work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops
from rlhf_jax.models import attention, heads, outputs, roles, transformer
from rlhf_jax.models.rows import Rows

MODEL = transformer.Config(
  vocab_size=40,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
)
KINDS = {
  "plain": MODEL,
  "remat": dataclasses.replace(MODEL, remat=True),
  "learned": dataclasses.replace(
    MODEL, positions="learned", norm="layer", attention_bias=True
  ),
  "lora": dataclasses.replace(MODEL, lora_rank=2),
  "scanned": dataclasses.replace(MODEL, scan_layers=True),
}
ROWS, LENGTH, READ = 3, 12, 5


def rows_of(seed=0):
  rng = np.random.default_rng(seed)
  valid = np.arange(LENGTH) >= rng.integers(0, 3, (ROWS, 1))
  tokens = rng.integers(1, 40, (ROWS, LENGTH)) * valid
  positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
  return Rows(
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(valid, jnp.float32),
    jnp.asarray(positions, jnp.int32),
  )


def columns(seed=1):
  rng = np.random.default_rng(seed)
  found = [rng.permutation(np.arange(3, LENGTH))[:READ] for _ in range(ROWS)]
  return jnp.asarray(np.stack(found), jnp.int32)


def drawn(config):
  """Returns variables whose LoRA factors are not 0."""
  variables = transformer.init(config, jax.random.key(0))
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    x + 0.1 * jax.random.normal(key, x.shape)
    for x, key in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_at_columns_and_its_gradient(kind):
  config, rows = KINDS[kind], rows_of()
  network = transformer.Transformer(config)
  weight = jax.random.normal(jax.random.key(2), (ROWS, READ, MODEL.width))

  def loss(variables, is_part):
    x = network.apply(variables, rows.tokens, rows.positions, method="embed")
    mask = attention.causal_mask(rows.valid_mask)
    how = {"reads": columns()} if is_part else {}
    x, _, _ = network.apply(
      variables, x, rows.positions, mask, method="run_layers", **how
    )
    x = x if is_part else ops.take_columns(x, columns())
    return jnp.sum(x * weight), x

  run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  variables = drawn(config)
  (_, expected), grads = run(variables, False)
  (_, found), found_grads = run(variables, True)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  both = map(jax.tree.leaves, (found_grads, grads))
  for one, other in zip(*both, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def critic():
  role = roles.Role(model=MODEL, head=heads.Config())
  head = heads.init(role.head, MODEL.width, jax.random.key(3))
  return role, drawn(MODEL) | {"head": head}


def test_values_of_answers_alone():
  role, variables = critic()
  rows = rows_of()
  mask = jnp.zeros((ROWS, LENGTH)).at[:2, 7:].set(1.0)
  expected = outputs.values(role, variables, rows)
  found = outputs.values(role, variables, rows, mask=mask, targets=READ)
  np.testing.assert_allclose(found, expected * mask, atol=1e-5)


def test_less_is_computed():
  """Of 2 layers, one does 5 / 12 of all but keys and values."""
  role, variables = critic()
  rows, mask = rows_of(), jnp.zeros((ROWS, LENGTH)).at[:, 7:].set(1.0)

  def flops(**how):
    run = jax.jit(lambda v: outputs.values(role, v, rows, **how))
    return run.lower(variables).compile().cost_analysis()["flops"]

  assert flops(mask=mask, targets=READ) < 0.82 * flops()
