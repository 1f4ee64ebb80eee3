"""Attention programs: all agree with the plain one, and it with a loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import attention, pretrained, transformer
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.schema import FieldError

B, H, K, T, D = 4, 4, 2, 130, 8


def inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  query, key, value = (
    jax.random.normal(k, (B, n, T, D))
    for k, n in zip(keys, (H, K, K), strict=True)
  )
  valid = np.ones((B, T), np.float32)
  valid[0, :7] = 0  # left padding
  valid[1, 100:] = 0
  segments = np.zeros((B, T), np.int32)
  segments[2, 40:] = 1
  segments[2, 90:] = 2
  return query, key, value, jnp.asarray(valid), jnp.asarray(segments)


def test_einsum_against_a_loop():
  query, key, value, valid, segments = inputs()
  mask = attention.causal_mask(valid, segments)
  found = attention.einsum(query, key, value, mask)
  q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
  for b, h, t in ((0, 0, 7), (0, 3, 129), (1, 1, 99), (2, 2, 95), (3, 0, 0)):
    readable = [
      s
      for s in range(t + 1)
      if valid[b, s] > 0 and segments[b, s] == segments[b, t]
    ]
    scores = np.array([q[b, h, t] @ k[b, h // 2, s] for s in readable])
    weights = np.exp(scores / np.sqrt(D) - np.max(scores / np.sqrt(D)))
    weights /= weights.sum()
    expected = sum(
      w * v[b, h // 2, s] for w, s in zip(weights, readable, strict=True)
    )
    np.testing.assert_allclose(found[b, h, t], expected, atol=1e-5)


def both(program, query, key, value, valid):
  """Values on valid tokens and gradients of one number made of them."""

  def total(query, key, value):
    mixed = program(query, key, value) * valid[:, None, :, None]
    return jnp.sum(mixed * jnp.cos(mixed)), mixed

  (_, mixed), gradients = jax.jit(
    jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
  )(query, key, value)
  return mixed, gradients


def splash(valid, segments):
  ids = attention.make_mask("splash", valid, segments).ids
  return functools.partial(attention.splash, ids=ids, is_interpreted=True)


def plain(valid, segments):
  mask = attention.causal_mask(valid, segments)
  return functools.partial(attention.einsum, mask=mask)


def compare(found, expected):
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_is_the_plain_one_values_and_gradients():
  query, key, value, valid, segments = inputs()
  compare(
    both(splash(valid, segments), query, key, value, valid),
    both(plain(valid, segments), query, key, value, valid),
  )


@pytest.mark.parametrize(("window", "cap"), [(40, None), (None, 0.5)])
def test_splash_with_a_window_or_a_cap_is_the_plain_one(window, cap):
  query, key, value, valid, segments = inputs()
  mask = attention.causal_mask(valid, segments)
  if window is not None:
    order = jnp.arange(valid.shape[1])
    mask = mask & (order[:, None] - order[None, :] < window)[None]
  expected = functools.partial(attention.einsum, mask=mask, cap=cap)
  found = functools.partial(splash(valid, segments), window=window, cap=cap)
  compare(
    both(found, query, key, value, valid),
    both(expected, query, key, value, valid),
  )


@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 2, 2)])
def test_splash_on_a_mesh_is_the_plain_one(sizes):
  """Tensor 4 over 2 key heads: each device needs its own copy of a head."""
  data, fsdp, tensor = sizes
  mesh = mesh_lib.make_mesh(
    mesh_lib.Config(
      data=data, fsdp=fsdp, tensor=tensor, devices=data * fsdp * tensor
    )
  )
  query, key, value, valid, segments = inputs(1)
  expected = both(plain(valid, segments), query, key, value, valid)
  with mesh_lib.current(mesh):
    rows = mesh_lib.batch_sharding(mesh)
    arrays = [jax.device_put(x, rows) for x in (query, key, value)]
    program = splash(valid, segments)
    compare(both(program, *arrays, valid), expected)


def test_segments_only_where_splash_has_something_to_save():
  valid = jnp.ones((2, attention.BLOCK))
  assert isinstance(attention.make_mask("splash", valid), attention.Segments)
  assert attention.make_mask("splash", valid[:, 1:]).dtype == bool
  assert attention.make_mask("cudnn", valid).dtype == bool


@pytest.mark.slow
@pytest.mark.parametrize("scans", [False, True])
def test_a_transformer_with_splash_is_the_plain_one(scans, monkeypatch):
  monkeypatch.setattr(
    attention,
    "splash",
    functools.partial(attention.splash, is_interpreted=True),
  )
  config = transformer.Config(
    vocab_size=11, width=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8,
    mlp_width=24, attention="splash", local_layers=(1,), window=20,
    attention_cap=2.0,
  )  # fmt: skip
  config = dataclasses.replace(config, scan_layers=scans)
  variables = transformer.init(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 131), 0, 11)
  valid = jnp.ones((2, 131)).at[0, :5].set(0)

  plain_config = dataclasses.replace(config, attention="einsum")
  found, expected = (
    transformer.Transformer(c).apply(variables, tokens, valid)
    for c in (config, plain_config)
  )
  np.testing.assert_allclose(
    found * valid[..., None], expected * valid[..., None], atol=2e-5
  )


@pytest.mark.parametrize(
  "platform, dtype, expected",
  [
    ("cpu", "float32", "einsum"),
    ("cpu", "bfloat16", "einsum"),
    ("gpu", "float32", "einsum"),
    ("gpu", "bfloat16", "cudnn"),
    ("tpu", "float32", "splash"),
    ("tpu", "bfloat16", "splash"),
  ],
)
def test_auto_goes_by_platform(platform, dtype, expected):
  assert attention.resolve("auto", platform, dtype) == expected


@pytest.mark.parametrize(
  "kind, platform, dtype, words",
  [
    ("splash", "cpu", "float32", "runs on tpu and this is cpu"),
    ("cudnn", "tpu", "bfloat16", "runs on gpu and this is tpu"),
    ("cudnn", "gpu", "float32", "16-bit"),
    ("flash", "gpu", "float32", "must be 'auto' or one of"),
  ],
)
def test_what_a_platform_lacks_is_refused(kind, platform, dtype, words):
  with pytest.raises(ValueError, match=words):
    attention.resolve(kind, platform, dtype)


@pytest.mark.skipif(
  jax.default_backend() != "gpu", reason="cuDNN's kernel needs a GPU"
)
def test_cudnn_is_the_plain_one_within_bfloat16():
  query, key, value, valid, segments = inputs()
  half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
  mask = attention.causal_mask(valid, segments)
  found = both(functools.partial(attention.cudnn, mask=mask), *half, valid)
  expected = both(plain(valid, segments), query, key, value, valid)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=5e-2)


def test_scores_that_are_capped_do_not_go_to_cudnn(capsys):
  capped = transformer.Config(
    vocab_size=11, width=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8,
    mlp_width=24, attention_cap=2.0,
  )  # fmt: skip
  model = Model(source="gemma", dtype="bfloat16")
  found = pretrained.as_run(capped, model, "gpu")
  assert found.attention == "einsum"
  assert "gemma caps its scores" in capsys.readouterr().out
  asked = dataclasses.replace(model, attention="cudnn")
  with pytest.raises(FieldError, match="model.attention='cudnn': gemma caps"):
    pretrained.as_run(capped, asked, "gpu")


def test_splash_reads_whole_rows_where_no_layer_has_a_window():
  config = transformer.Config(
    vocab_size=8,
    width=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    head_dim=8,
    mlp_width=8,
    attention="splash",
  )
  valid = jnp.ones((2, attention.BLOCK))
  positions = jnp.tile(jnp.arange(attention.BLOCK)[None], (2, 1))
  found = attention.make_masks(config, valid, positions)
  assert isinstance(found, attention.Segments)
