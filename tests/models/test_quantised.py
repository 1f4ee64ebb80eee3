"""Matrices of few bits: their numbers, products and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import lora, quantised, roles, transformer, trees
from rlhf_jax.models.quantised import Quantised
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules

KINDS = ("int8", "int4")
MODEL = transformer.Config(
  vocab_size=40,
  width=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  mlp_width=64,
  lora_rank=2,
  lora_scale=3.0,
)
TOKENS = np.random.default_rng(0).integers(0, 40, (8, 6))
rng = np.random.default_rng


def of_role(**changes):
  return roles.Role(dataclasses.replace(MODEL, **changes), trainable="lora")


@functools.cache
def variables(**changes):
  """Returns a random base, and factors of which none is 0."""
  shapes = shapes_of(**changes)
  random = rng(0)
  return jax.tree.map(
    lambda x: (x.shape[-2:][0] ** -0.5 * random.normal(size=x.shape)).astype(
      np.float32
    ),
    shapes,
  )


def shapes_of(**changes):
  """Returns the abstract base and its factors."""
  role = of_role(**changes)
  plain = dataclasses.replace(role.model, lora_rank=0)

  def make(key):
    params = transformer.init(plain, key)["params"]
    return {"params": params, "lora": roles.fresh_lora(role, key)}

  return jax.eval_shape(make, jax.random.key(0))


def quantised_base(kind, **changes):
  found = variables(**changes)
  return found | {"params": quantised.quantise_tree(found["params"], kind)}


merged = jax.jit(quantised.merged)


def widened(params):
  """Returns the tree with the numbers of its matrices in float32."""
  return jax.tree.map(
    lambda x: merged(x) if isinstance(x, Quantised) else x,
    params,
    is_leaf=lambda x: isinstance(x, Quantised),
  )


@functools.partial(jax.jit, static_argnames="model")
def logits(tree, model=MODEL):
  network = transformer.Transformer(model)
  return network.apply(tree, TOKENS, jnp.ones(TOKENS.shape))


KERNEL = "mlp/up_proj/kernel"


@pytest.mark.parametrize(
  ("kind", "path"),
  [*((kind, KERNEL) for kind in KINDS), ("int8", quantised.TABLE)],
)
def test_numbers_are_within_a_step_of_their_block(kind, path):
  weight = rng(1).normal(size=(64, 32)).astype(np.float32)
  weight[:16, 2] = 0.0
  weight[3, 4] = 40.0  # far out: its block alone is coarse
  made = quantised.quantise(weight, path, kind)
  assert made.shape == weight.shape
  axis = 1 if path == quantised.TABLE else 0
  size = quantised.BLOCKS[kind]
  blocks = np.split(weight, weight.shape[axis] // size, axis)
  largest = [np.abs(x).max(axis, keepdims=True) for x in blocks]
  bound = [0.153 * x for x in largest]  # half of NF4 from -1 to -0.696
  if kind == "int8":  # half a step, and float16 of scale and offset
    step = [np.ptp(x, axis, keepdims=True) / 255 for x in blocks]
    pairs = zip(step, largest, strict=True)
    bound = [0.51 * x + 2.0**-10 * y for x, y in pairs]
  bound = np.concatenate([np.repeat(x, size, axis) for x in bound], axis)
  wide = quantised.widen(made, jnp.float32)
  error = np.abs(wide - weight)
  assert np.all(error <= bound)
  assert 0.0 < error.max()
  again = quantised.quantise(jnp.asarray(weight), path, kind)
  np.testing.assert_array_equal(wide, quantised.widen(again, jnp.float32))


def test_bytes_by_hand():
  """Lower halves of a block's bytes are its first inputs."""
  values = np.array([[0x10], [0x32], [0xF4], [0x8A]], np.uint8)
  scales = np.array([[2.0], [10.0]], np.float16)
  packed = Quantised(values, scales, is_packed=True)
  n = np.array([0, 2, 1, 3, 4, 10, 15, 8]) - 8.0
  expected = n * np.repeat([2.0, 10.0], 4)
  found = quantised.widen(packed, jnp.float32)[:, 0]
  np.testing.assert_array_equal(found, expected)
  offsets = np.array([[1.0], [-3.0]], np.float16)
  found = quantised.widen(packed.replace(offsets=offsets), jnp.float32)[:, 0]
  expected = (n + 8) * np.repeat([2.0, 10.0], 4) + np.repeat([1.0, -3.0], 4)
  np.testing.assert_array_equal(found, expected)
  found = quantised.widen(packed.replace(is_normal=True), jnp.float32)[:, 0]
  levels = np.asarray(quantised.NF4, np.float32)[[0, 2, 1, 3, 4, 10, 15, 8]]
  np.testing.assert_allclose(found, levels * np.repeat([2.0, 10.0], 4), 1e-6)


def test_which_matrices_have_which_bits():
  def abstract(kind, **changes):
    make = functools.partial(quantised.quantise_tree, kind=kind)
    return jax.eval_shape(make, shapes_of(**changes)["params"])

  made = abstract("int4", tie_embeddings=False)
  kinds = trees.flatten(made)
  kept = {p for p, x in kinds.items() if not isinstance(x, Quantised)}
  assert kept == {
    "final_norm/scale",
    *(
      f"layer_{i}/{n}_norm/scale" for i in (0, 1) for n in ("attention", "mlp")
    ),
  }
  packed = {p for p in set(kinds) - kept if kinds[p].is_packed}
  assert set(kinds) - kept - packed == {
    "embedding/embedding",
    "lm_head/kernel",
    "layer_0/attention/v_proj/kernel",
    "layer_1/attention/v_proj/kernel",
  }
  made = abstract("int8")
  assert made["layer_0"]["attention"]["v_proj"]["kernel"].scales is None
  for x in trees.flatten(abstract("none")).values():
    assert x.dtype == jnp.float32
  with pytest.raises(ValueError, match="20 inputs divide into blocks of 4 at"):
    quantised.quantise(np.ones((20, 4), np.float32), "up_proj/kernel", "int4")


@pytest.mark.parametrize(("kind", "scans"), [("int4", False), ("int8", True)])
def test_a_model_computes_what_its_numbers_say(kind, scans):
  options = {"scan_layers": scans, "tie_embeddings": not scans}
  model = dataclasses.replace(MODEL, **options)
  tree = quantised_base(kind, **options)
  wide = tree | {"params": widened(tree["params"])}
  found, expected = logits(tree, model), logits(wide, model)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  exact = logits(variables(**options), model)
  assert 1e-5 < np.std(found - exact) < 0.6 * np.std(exact)


def test_a_sampler_computes_what_trains_bit_for_bit():
  """Factors stay beside matrices of few bits; a second adapter too."""
  tree = quantised_base("int8")
  params = lora.merge(tree["params"], tree["lora"], MODEL.lora_scale)
  plain = dataclasses.replace(MODEL, lora_rank=0)
  expected = logits(tree)
  np.testing.assert_array_equal(logits({"params": params}, plain), expected)
  wide = lora.merge(
    jax.tree.map(jnp.asarray, widened(tree["params"])),
    tree["lora"],
    MODEL.lora_scale,
  )
  for path, matrix in trees.flatten(widened(params)).items():
    np.testing.assert_allclose(matrix, trees.flatten(wide)[path], atol=1e-6)
  twice = lora.merge(params, tree["lora"], 0.5)
  kernel = twice["layer_0"]["mlp"]["up_proj"]["kernel"]
  assert kernel.strengths == (3.0, 0.5)
  wide = lora.merge(wide, tree["lora"], 0.5)
  np.testing.assert_allclose(
    logits({"params": twice}, plain),
    logits({"params": wide}, plain),
    atol=2e-4,
  )


@pytest.mark.parametrize(
  "scans", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_factors_alone_have_gradients(scans):
  options = {"scan_layers": scans, "remat": scans}
  role = of_role(**options)
  tree = quantised_base("int4", **options)
  trained, frozen = roles.split(role, tree)
  assert set(trained) == {"lora"}

  @jax.jit
  def gradients(trained, frozen):
    def loss(trained):
      return jnp.sum(jnp.sin(logits(trees.merge(trained, frozen), role.model)))

    return jax.grad(loss)(trained)

  found = gradients(trained, frozen)
  wide = frozen | {"params": widened(frozen["params"])}
  expected = gradients(trained, wide)
  for ours, theirs in zip(
    *map(jax.tree.leaves, (found, expected)), strict=True
  ):
    scale = np.abs(theirs).max()
    assert scale > 0.0
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)


def test_what_has_few_bits_does_not_train():
  role = roles.Role(MODEL)
  with pytest.raises(ValueError, match="embedding/embedding would train"):
    roles.split(role, {"params": quantised_base("int8")["params"]})


@pytest.mark.parametrize(
  ("kind", "shape"),
  [
    ("int4", (2, 2, 2)),
    pytest.param("int8", (1, 8, 1), marks=pytest.mark.slow),
  ],
)
def test_sharded_is_unsharded(kind, shape):
  """Loss and gradients on meshes; scales that do not divide are whole."""
  role = of_role()
  parts = roles.split(role, quantised_base(kind))

  def gradients(trained, frozen):
    def loss(trained):
      tree = trees.merge(trained, frozen)
      network = transformer.Transformer(role.model)
      out = network.apply(tree, TOKENS, jnp.ones(TOKENS.shape))
      return jnp.mean(jnp.sin(out))

    return jax.value_and_grad(loss)(trained)

  expected = jax.jit(gradients)(*parts)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape))
  placed = mesh_lib.place(parts, rules.sharding_tree(mesh, parts))
  values = placed[1]["params"]["layer_0"]["mlp"]["up_proj"]["kernel"].values
  assert values.addressable_shards[0].data.size == values.size // (
    shape[1] * shape[2]
  )
  with mesh_lib.current(mesh):
    found = jax.jit(gradients)(*placed)
  for ours, theirs in zip(
    *map(jax.tree.leaves, (found, expected)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


WIDE = 4 * 512 * 512  # bytes of a matrix that is widened


@functools.cache
def stack(kind, count=4):
  weight = rng(0).normal(size=(512, 512)).astype(np.float32) / 23
  matrix = quantised.quantise(weight, KERNEL, kind)
  return jax.tree.map(jnp.asarray, [matrix] * count)


def temporaries(function, *arguments):
  """Returns the bytes that a compiled function needs beside its arrays."""
  made = jax.jit(function).lower(*arguments).compile()
  return made.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_one_matrix_is_wide_at_a_time(kind):
  """In a loop over tokens, and between a forward and a backward pass."""
  x, matrices = jnp.ones((4, 512)), stack(kind)

  def tokens(x, matrices, product):
    def token(_, x):
      for matrix in matrices:
        x = jnp.sin(product(x, matrix))
      return x

    return jax.lax.fori_loop(0, 9, token, x)

  def widened_first(x, matrix):
    return jnp.matmul(x, quantised.widen(matrix, x.dtype))

  many = temporaries(
    functools.partial(tokens, product=widened_first), x, matrices
  )
  one = temporaries(
    functools.partial(tokens, product=quantised.product), x, matrices
  )
  assert one < 2.5 * WIDE < many

  def update(x, matrices):
    def loss(x):
      for matrix in matrices:
        x = jnp.sin(quantised.product(x, matrix))
      return jnp.sum(x)

    return jax.grad(loss)(x)

  assert temporaries(update, x, matrices) < 2.5 * WIDE
