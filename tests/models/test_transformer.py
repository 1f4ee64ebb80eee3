"""The decoder: padding, cache, scan, layer ranges, bfloat16, LoRA, packing.

What the logits should be is tested elsewhere: the llama family against
transformers in test_huggingface.py, the GPT-like settings against a naive
forward in test_transformer_naive.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import likelihood, ops
from rlhf_jax.models import attention, rotary, transformer, trees
from rlhf_jax.models import cache as cache_lib
from tests import plain

Transformer = transformer.Transformer
ROPE = transformer.Config(
  vocab_size=23,
  width=16,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=6,
  mlp_width=20,
  max_length=32,
)
LEARNED = dataclasses.replace(
  ROPE,
  norm="layer",
  positions="learned",
  activation="gelu",
  gated_mlp=False,
  attention_bias=True,
  tie_embeddings=False,
)
KINDS = pytest.mark.parametrize("config", [ROPE, LEARNED], ids=["rope", "gpt"])


@functools.cache
def weights(config):
  """Returns random numpy variables: no gain at one, no bias or factor at 0."""
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config), jax.random.key(0)
  )
  random = np.random.default_rng(0)

  def draw(path, leaf):
    noise = random.normal(size=leaf.shape).astype(np.float32)
    if path.endswith("scale"):
      return 1 + 0.3 * noise
    return noise * (0.3 if leaf.ndim == 1 else leaf.shape[0] ** -0.5)

  flat = trees.flatten(shapes)
  return trees.unflatten({k: draw(k, v) for k, v in sorted(flat.items())})


@functools.cache
def jitted(config, method=None):
  return jax.jit(functools.partial(Transformer(config).apply, method=method))


def tokens_of(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 23, shape)


def forward(config, variables, tokens, mask=None):
  mask = np.ones(tokens.shape) if mask is None else mask
  return np.asarray(jitted(config)(variables, tokens, jnp.asarray(mask)))


def stack(variables, n_layers):
  """Returns the variables with all layers stacked, as scan_layers has them."""
  out = {}
  for name, tree in variables.items():
    layers = [tree[f"layer_{i}"] for i in range(n_layers)]
    out[name] = {k: v for k, v in tree.items() if not k.startswith("layer_")}
    out[name]["layers"] = jax.tree.map(lambda *x: np.stack(x), *layers)
  return out


@KINDS
def test_trap_09_padding_does_not_change_logits(config):
  tokens = tokens_of((3, 6))
  expected = forward(config, weights(config), tokens)
  padded, mask = tokens_of((3, 9), seed=1), np.zeros((3, 9))
  for row, left in enumerate((0, 3, 2)):
    padded[row, left : left + 6] = tokens[row]
    mask[row, left : left + 6] = 1
  found = forward(config, weights(config), padded, mask)
  assert np.isfinite(found).all()
  np.testing.assert_allclose(
    found[mask > 0], expected.reshape(-1, 23), rtol=0, atol=1e-5
  )


def test_trap_09_learned_positions_would_show_the_bug():
  tokens = tokens_of((3, 6))
  shifted = jnp.broadcast_to(jnp.arange(6) + 3, (3, 6))
  arguments = (tokens, jnp.ones((3, 6)), shifted)
  for config, changes in ((ROPE, False), (LEARNED, True)):
    found = jitted(config)(weights(config), *arguments)
    expected = forward(config, weights(config), tokens)
    assert (np.abs(found - expected).max() > 1e-2) == changes


def cached_logits(config, variables, tokens, mask, prompt):
  """Prefill of `prompt` columns, then one token at a time."""
  rows, length = tokens.shape
  positions = ops.positions_from_mask(jnp.asarray(mask))
  order = jnp.arange(length)

  @jax.jit
  def step(cache, tokens, positions, mask, slot):
    def run(module):
      x = module.embed(tokens, positions)
      x, _, written = module.run_layers(
        x, positions, mask, cache=cache, slot=slot
      )
      return module.unembed(x), written

    return Transformer(config).apply(variables, method=run)

  cache = cache_lib.make_cache(config, rows, length)
  logits, start = [], 0
  for stop in (prompt, *range(prompt + 1, length + 1)):
    queries = order[start:stop]
    readable = (queries[:, None] >= order[None, :])[None] & (mask > 0)[:, None]
    part, cache = step(
      cache,
      tokens[:, start:stop],
      positions[:, start:stop],
      readable,
      jnp.int32(start),
    )
    logits.append(part)
    start = stop
  return np.concatenate(logits, axis=1)


@KINDS
@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_equals_uncached(config, scan_layers):
  tokens = tokens_of((3, 9))
  mask = np.ones((3, 9))
  mask[1, :2] = 0
  mask[2, :4] = 0
  expected = forward(config, weights(config), tokens, mask)
  variables = weights(config)
  if scan_layers:
    variables = stack(variables, config.n_layers)
    config = dataclasses.replace(config, scan_layers=True)
  found = cached_logits(config, variables, tokens, mask, prompt=5)
  np.testing.assert_allclose(
    found[mask > 0], expected[mask > 0], rtol=0, atol=1e-5
  )


def test_take_rows_keeps_whole_rows_of_the_cache():
  cache = cache_lib.make_cache(ROPE, 4, 5)
  cache = [
    layer.write(
      jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 2, 3, 6)),
      jnp.ones((4, 2, 3, 6)),
      jnp.int32(1),
    )
    for layer in cache
  ]
  taken = cache_lib.take_rows(cache, jnp.array([3, 1]))
  assert len(taken) == 3 and taken[0].key.shape == (2, 2, 5, 6)
  np.testing.assert_array_equal(taken[2].key[0, 0, :, 0], [0, 3, 3, 3, 0])
  np.testing.assert_array_equal(taken[2].key[1, 0, :, 0], [0, 1, 1, 1, 0])


def test_scanned_and_recomputed_equals_unrolled_with_gradients():
  config = dataclasses.replace(ROPE, lora_rank=2)
  variables = weights(config)
  tokens, mask = tokens_of((3, 6)), jnp.ones((3, 6))

  def logits_and_gradient(config, variables):
    def loss(variables):
      logits = Transformer(config).apply(variables, tokens, mask)
      return jnp.mean(jnp.square(logits)), logits

    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, logits = run(variables)
    return logits, gradient

  expected, gradient = logits_and_gradient(config, variables)
  scanned = dataclasses.replace(config, scan_layers=True, remat=True)
  found, scanned_gradient = logits_and_gradient(scanned, stack(variables, 3))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    scanned_gradient,
    stack(gradient, 3),
  )


@pytest.mark.parametrize("remat", [False, True])
def test_layers_are_traced_once_and_compile_as_written_out(remat, monkeypatch):
  config = dataclasses.replace(ROPE, remat=remat, n_layers=2)
  tokens, variables = tokens_of((2, 5)), weights(config)
  shared, traced = transformer.run_block, []

  def rotate(*args):
    traced.append(args)
    return rotated(*args)

  def written_out(*args):
    return shared.__wrapped__(*args)

  def compiled():
    traced.clear()

    def loss(given):
      logits = Transformer(config).apply(given, tokens, np.ones((2, 5)))
      return jnp.sum(logits**2)

    program = jax.jit(jax.value_and_grad(loss)).lower(variables).compile()
    return len(traced), program.cost_analysis()["flops"], program(variables)

  rotated = rotary.rotate
  monkeypatch.setattr(rotary, "rotate", rotate)
  once = compiled()
  monkeypatch.setattr(transformer, "run_block", written_out)
  every = compiled()
  # queries and keys; forward alone and with gradients, backward in two ways
  assert once[0] == (8 if remat else 2)
  assert every[0] > once[0]
  assert once[1] == every[1]
  jax.tree.map(np.testing.assert_array_equal, once[2], every[2])


def test_scan_init_has_the_shapes_of_the_stack():
  config = dataclasses.replace(ROPE, lora_rank=2)
  scanned = dataclasses.replace(config, scan_layers=True)
  found = jax.eval_shape(
    functools.partial(transformer.init, scanned), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, found) == jax.tree.map(
    np.shape, stack(weights(config), 3)
  )


@pytest.mark.parametrize("split", [0, 1, 3])
def test_layers_in_two_parts_equal_the_whole(split):
  tokens, mask = tokens_of((3, 6)), jnp.ones((3, 6))
  positions = ops.positions_from_mask(mask)

  def in_parts(module):
    readable = attention.causal_mask(mask)
    x = module.embed(tokens, positions)
    run = functools.partial(
      module.run_layers, positions=positions, mask=readable
    )
    lower, _, _ = run(x, stop=split)
    upper, _, _ = run(lower, start=split)
    _, tapped, _ = run(x, taps=(split,))
    return lower, tapped[split], module.unembed(upper)

  lower, tapped, logits = jitted(ROPE, in_parts)(weights(ROPE))
  np.testing.assert_allclose(tapped, lower, rtol=0, atol=1e-6)
  expected = forward(ROPE, weights(ROPE), tokens)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_scanned_layers_refuse_to_run_in_part():
  config = dataclasses.replace(ROPE, scan_layers=True)
  x, positions = jnp.zeros((1, 2, 16)), jnp.zeros((1, 2), jnp.int32)
  for options in ({"stop": 2}, {"start": 1}, {"taps": (1,)}):
    with pytest.raises(ValueError, match="Set scan_layers=False"):
      Transformer(config).apply(
        stack(weights(ROPE), 3),
        x,
        positions,
        jnp.ones((1, 2, 2), bool),
        method="run_layers",
        **options,
      )


@KINDS
def test_trap_22_bfloat16_compute_keeps_float32_logprobs(config):
  tokens, mask = tokens_of((3, 6)), jnp.ones((3, 6))

  def logprobs(module):
    positions = ops.positions_from_mask(mask)
    x = module.embed(tokens, positions)
    x, _, _ = module.run_layers(x, positions, attention.causal_mask(mask))
    hidden = module.normed(x)[:, :-1].reshape(-1, config.width)
    found, _ = likelihood.token_logprobs(
      hidden, module.unembedding(), tokens[:, 1:].reshape(-1), chunk_bytes=10**4
    )
    return hidden, found, module.unembed(x)

  half = dataclasses.replace(config, dtype="bfloat16")
  exact_hidden, exact, logits = jitted(config, logprobs)(weights(config))
  hidden, found, half_logits = jitted(half, logprobs)(weights(config))
  assert (exact_hidden.dtype, hidden.dtype) == (jnp.float32, jnp.bfloat16)
  assert found.dtype == exact.dtype == half_logits.dtype == jnp.float32
  assert (found <= 0).all()
  dense = plain.logprobs_of_logits(logits[:, :-1], tokens[:, 1:]).reshape(-1)
  np.testing.assert_allclose(exact, dense, rtol=0, atol=1e-5)
  np.testing.assert_allclose(found, exact, rtol=0, atol=0.15)
  assert np.abs(found - exact).max() > 1e-4


def test_t17_lora_with_b_zero_equals_the_base_exactly():
  base = dataclasses.replace(ROPE, n_layers=1)
  config = dataclasses.replace(base, lora_rank=2, lora_scale=4.0)
  fresh = jax.jit(functools.partial(transformer.init, config))(
    jax.random.key(3)
  )
  assert all(
    (leaf == 0).all() == path.endswith("lora_b")
    for path, leaf in trees.flatten(fresh["lora"]).items()
  )
  tokens = tokens_of((3, 6))
  expected = forward(base, weights(base), tokens)
  adapted = forward(config, weights(base) | {"lora": fresh["lora"]}, tokens)
  np.testing.assert_array_equal(adapted, expected)
  without = forward(config, weights(base), tokens)
  np.testing.assert_array_equal(without, expected)


def test_lora_equals_adding_s_a_b_to_the_kernels():
  config = dataclasses.replace(
    ROPE, lora_rank=2, lora_scale=0.5, lora_first_layer=1
  )
  lora = weights(config)["lora"]
  assert lora.keys() == {"layer_1", "layer_2"}
  flat, factors = trees.flatten(weights(ROPE)["params"]), trees.flatten(lora)
  pairs = [p.removesuffix("/lora_a") for p in factors if p.endswith("lora_a")]
  assert len(pairs) == 2 * 7
  for stem in pairs:
    product = factors[f"{stem}/lora_a"] @ factors[f"{stem}/lora_b"]
    flat[f"{stem}/kernel"] = flat[f"{stem}/kernel"] + 0.5 * product
  tokens = tokens_of((3, 6))
  found = forward(config, weights(ROPE) | {"lora": lora}, tokens)
  merged = forward(ROPE, {"params": trees.unflatten(flat)}, tokens)
  np.testing.assert_allclose(found, merged, rtol=0, atol=1e-4)
  base = forward(ROPE, weights(ROPE), tokens)
  assert np.abs(found - base).max() > 0.1


WINDOW = dataclasses.replace(ROPE, local_layers=(0, 2), window=3)


@pytest.mark.parametrize(
  "config", [ROPE, LEARNED, WINDOW], ids=["rope", "gpt", "window"]
)
def test_t14_packed_rows_equal_separate_rows(config):
  lengths, padding = (4, 1, 5), 2
  tokens = tokens_of((1, sum(lengths) + padding))
  segments = np.repeat([1, 2, 3, 0], [*lengths, padding])[None]
  positions = np.concatenate([np.arange(n) for n in (*lengths, padding)])[None]
  mask = (segments > 0).astype(np.float32)

  def packed(module):
    x = module.embed(tokens, positions)
    readable = attention.make_masks(config, mask, positions, segments)
    x, _, _ = module.run_layers(x, positions, readable)
    return module.unembed(x)

  found = np.asarray(jitted(config, packed)(weights(config)))[0]
  alone_tokens, alone_mask = np.zeros((3, 5), np.int32), np.zeros((3, 5))
  for row, length in enumerate(lengths):
    alone_tokens[row, :length] = tokens[segments == row + 1]
    alone_mask[row, :length] = 1
  alone = forward(config, weights(config), alone_tokens, alone_mask)
  np.testing.assert_allclose(
    found[:-padding], alone[alone_mask > 0], rtol=0, atol=1e-5
  )


def test_a_window_counts_tokens_of_a_text_and_not_columns():
  """Behind a shared prompt the second branch begins far from it."""
  segments = np.ones((1, 6), np.int32)
  branches = np.array([[0, 0, 1, 1, 2, 2]])
  positions = np.array([[0, 1, 2, 3, 2, 3]])
  masks = attention.make_masks(
    WINDOW, np.ones((1, 6)), positions, segments, branches
  )
  expected = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [0, 1, 0, 0, 1, 1],
  ]
  np.testing.assert_array_equal(masks.near[0], np.array(expected, bool))
  assert masks.full[0, 3, 0] and masks.full[0, 5, 0]


def test_causal_mask_by_hand():
  found = attention.causal_mask(
    jnp.array([[0.0, 1.0, 1.0]]), jnp.array([[1, 1, 2]])
  )
  expected = [[[0, 0, 0], [0, 1, 0], [0, 0, 1]]]
  np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"n_kv_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
    ({"positions": "alibi"}, "positions='alibi'"),
    ({"dtype": "float16"}, "dtype='float16'"),
    ({"scan_layers": True, "lora_first_layer": 1}, "lora_first_layer=1"),
  ],
)
def test_config_refuses(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(ROPE, **changes)
