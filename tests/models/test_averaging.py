"""Averages of weights: whole ones, and factors whose product is averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import averaging, heads, lora, roles, transformer, trees

MODEL = transformer.Config(
  vocab_size=11,
  width=8,
  n_layers=2,
  n_heads=2,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=12,
  max_length=8,
)


def moved(tree, seed):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return structure.unflatten(
    [
      x + jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ]
  )


def test_the_product_of_averaged_factors_is_the_mean_product():
  """Ranks add up; the scale stays."""
  config = dataclasses.replace(MODEL, lora_rank=3, lora_scale=0.5)
  role = roles.Role(config, "lora", head=heads.Config())
  key = jax.random.key(0)
  base = transformer.init(MODEL, key)["params"]
  start = {
    "lora": roles.fresh_lora(role, key),
    "head": roles.fresh_head(role, key),
  }
  runs = [moved(start, seed) for seed in (1, 2, 3)]
  found, tree = averaging.average(role, iter(runs), 3)
  assert found.model.lora_rank == 9 and found.model.lora_scale == 0.5
  merged = lora.merge(base, tree["lora"], 0.5)
  each = [lora.merge(base, run["lora"], 0.5) for run in runs]
  wanted = jax.tree.map(lambda *x: sum(x) / 3.0, *each)
  for path, leaf in trees.flatten(wanted).items():
    np.testing.assert_allclose(
      trees.flatten(merged)[path], leaf, atol=2e-5, err_msg=path
    )
  kernel = [run["head"]["output"]["kernel"] for run in runs]
  np.testing.assert_allclose(
    tree["head"]["output"]["kernel"], sum(kernel) / 3.0, rtol=1e-5
  )
  shapes = roles.fresh_lora(found, key)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
    jnp.shape, tree["lora"]
  )


def test_whole_weights_keep_their_dtype_and_are_summed_in_float32():
  role = roles.Role(MODEL, head=heads.Config())
  runs = [{"params": {"x": jnp.full(4, v, jnp.bfloat16)}} for v in (1, 1.0078)]
  _, tree = averaging.average(role, runs, 2)
  assert tree["params"]["x"].dtype == jnp.bfloat16
  same = [{"params": {"x": jnp.float32([0.1])}}] * 2
  _, tree = averaging.average(role, same, 2)
  np.testing.assert_allclose(tree["params"]["x"], 0.1, rtol=1e-6)
