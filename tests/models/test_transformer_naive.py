"""The GPT-like settings of the decoder against a naive forward in numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import transformer, trees

CONFIG = transformer.Config(
  vocab_size=23,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=6,
  mlp_width=20,
  max_length=32,
  norm="layer",
  positions="learned",
  activation="gelu",
  gated_mlp=False,
  attention_bias=True,
  tie_embeddings=False,
)


def naive_logits(config, params, tokens):
  """GPT-like forward of one row, position by position, in float64."""
  p = {k: np.asarray(v, np.float64) for k, v in trees.flatten(params).items()}

  def norm(x, name):
    x = (x - x.mean()) / math.sqrt(x.var() + config.norm_epsilon)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]

  def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])

  d, group = config.head_dim, config.n_heads // config.n_kv_heads
  stream = [
    p["embedding/embedding"][token] + p["position_embedding/embedding"][t]
    for t, token in enumerate(tokens)
  ]
  for i in range(config.n_layers):
    layer = f"layer_{i}"
    inputs = [norm(x, f"{layer}/attention_norm") for x in stream]
    query, key, value = (
      [
        x @ p[f"{layer}/attention/{n}/kernel"]
        + p[f"{layer}/attention/{n}/bias"]
        for x in inputs
      ]
      for n in ("q_proj", "k_proj", "v_proj")
    )
    for t in range(len(tokens)):
      mixed = []
      for head in range(config.n_heads):
        mine, shared = head * d, head // group * d
        score = np.array(
          [
            query[t][mine : mine + d] @ key[s][shared : shared + d]
            for s in range(t + 1)
          ]
        )
        weight = np.exp(score / math.sqrt(d))
        weight /= weight.sum()
        mixed.append(
          sum(w * value[s][shared : shared + d] for s, w in enumerate(weight))
        )
      o_proj = p[f"{layer}/attention/o_proj/kernel"]
      stream[t] = stream[t] + np.concatenate(mixed) @ o_proj
      up = norm(stream[t], f"{layer}/mlp_norm")
      up = gelu(up @ p[f"{layer}/mlp/up_proj/kernel"])
      stream[t] = stream[t] + up @ p[f"{layer}/mlp/down_proj/kernel"]
  return np.stack([norm(x, "final_norm") @ p["lm_head/kernel"] for x in stream])


def test_gpt_settings_equal_naive_forward():
  shapes = jax.eval_shape(
    functools.partial(transformer.init, CONFIG), jax.random.key(0)
  )
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.4 * random.normal(size=x.shape).astype(np.float32),
    shapes["params"],
  )
  tokens = random.integers(0, 23, (1, 7))
  found = jax.jit(transformer.Transformer(CONFIG).apply)(
    {"params": params}, tokens, jnp.ones((1, 7))
  )[0]
  expected = naive_logits(CONFIG, params, tokens[0])
  assert found.shape == (7, 23)
  assert np.abs(expected).max() > 1.0
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
