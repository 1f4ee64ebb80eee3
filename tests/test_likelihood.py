"""Log-probabilities by chunks of bytes: values, gradients, memory, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import likelihood, ops
from rlhf_jax.parallel import mesh as mesh_lib
from tests import plain

ROWS, WIDTH, VOCABULARY = 24, 6, 40
KEYS = jax.random.split(jax.random.key(5), 4)
HIDDEN = jax.random.normal(KEYS[0], (ROWS, WIDTH))
WEIGHT = jax.random.normal(KEYS[1], (WIDTH, VOCABULARY))
TOKENS = jax.random.randint(KEYS[2], (ROWS,), 0, VOCABULARY)
SHARES = jax.random.normal(KEYS[3], (ROWS,)).at[::5].set(0.0)
FIVE_ROWS = 5 * VOCABULARY * 4  # bytes


def dense(hidden, weight, soft_cap, temperature=0.7):
  logits = hidden @ weight
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  logits = logits / temperature
  logprobs = plain.logprobs_of_logits(logits, TOKENS)
  return jnp.sum(SHARES * logprobs), (logprobs, ops.entropy(logits))


def weighted(hidden, weight, soft_cap=None, **kwargs):
  total, *rest = likelihood.weighted_logprobs(
    hidden,
    weight,
    TOKENS,
    SHARES,
    temperature=0.7,
    soft_cap=soft_cap,
    **kwargs,
  )
  return total, tuple(rest)


def close(found, expected, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    found,
    expected,
  )


def gradient_of(function, **kwargs):
  function = functools.partial(function, **kwargs)
  return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("soft_cap", [None, 2.5])
@pytest.mark.parametrize("chunk_bytes", [FIVE_ROWS, likelihood.CHUNK_BYTES])
def test_trap_21_the_weighted_sum_is_that_of_full_logits(chunk_bytes, soft_cap):
  run = gradient_of(weighted, soft_cap=soft_cap, chunk_bytes=chunk_bytes)
  plainly = gradient_of(dense, soft_cap=soft_cap)
  close(run(HIDDEN, WEIGHT), plainly(HIDDEN, WEIGHT))


def test_only_the_sum_has_a_gradient():
  def others(hidden):
    _, (logprobs, entropies) = weighted(hidden, WEIGHT)
    return jnp.sum(logprobs + entropies)

  assert not jax.grad(others)(HIDDEN).any()


@pytest.mark.parametrize(
  "slopes", [(1.0, 0.0), (0.0, 1.0), (0.3, -0.5)], ids=str
)
@pytest.mark.parametrize("chunk_bytes", [FIVE_ROWS, likelihood.CHUNK_BYTES])
def test_either_output_alone_has_the_gradient_of_full_logits(
  chunk_bytes, slopes
):
  """An output that nothing reads is passed over in the backward pass."""

  def value(outputs):
    parts = [s * jnp.sum(x**2) for s, x in zip(slopes, outputs, strict=True)]
    return sum(part for part, s in zip(parts, slopes, strict=True) if s)

  def chunked(hidden, weight):
    found = likelihood.token_logprobs(
      hidden, weight, TOKENS, temperature=0.7, chunk_bytes=chunk_bytes
    )
    return value(found)

  def plainly(hidden, weight):
    return value(dense(hidden, weight, None)[1])

  found, expected = (
    jax.jit(jax.grad(f, argnums=(0, 1)))(HIDDEN, WEIGHT)
    for f in (chunked, plainly)
  )
  close(found, expected)


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(4, 1, 2), (2, 2, 2)])
def test_trap_12_split_rows_and_vocabulary_change_nothing(data, fsdp, tensor):
  mesh = mesh_lib.make_mesh(
    mesh_lib.Config(data=data, fsdp=fsdp, tensor=tensor)
  )
  ways = data * fsdp
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  columns = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
  placed = (
    jax.device_put(HIDDEN, rows),
    jax.device_put(WEIGHT, columns),
  )
  with mesh_lib.current(mesh):
    run = gradient_of(weighted, chunk_bytes=FIVE_ROWS // 2, ways=ways)
    found = run(*placed)
  close(found, gradient_of(weighted)(HIDDEN, WEIGHT))


def test_bfloat16_gradients_are_summed_in_float32():
  """1,000 chunks of a row: a bfloat16 sum would stop growing at 256."""
  hidden = jnp.ones((1000, 2), jnp.bfloat16)
  weight = jnp.zeros((2, 4), jnp.bfloat16)
  tokens = jnp.zeros(1000, jnp.int32)

  def total(weight):
    return likelihood.weighted_logprobs(
      hidden, weight, tokens, jnp.ones(1000), chunk_bytes=16
    )[0]

  def through_loss(weight):
    return jnp.sum(
      likelihood.token_logprobs(hidden, weight, tokens, chunk_bytes=16)[0]
    )

  for function in (total, through_loss):
    found = jax.jit(jax.grad(function))(weight)
    assert found.dtype == jnp.bfloat16
    expected = np.tile([750.0, -250.0, -250.0, -250.0], (2, 1))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=5e-3)


@pytest.mark.parametrize("is_weighted", [True, False])
def test_temporaries_do_not_grow_with_the_vocabulary(is_weighted):
  """Beyond the gradient of W, of which a sum and one chunk's part live."""
  rows, width, budget = 1024, 2, 2**22

  def value(hidden, weight, tokens):
    keywords = {"chunk_bytes": budget}
    if is_weighted:
      shares = jnp.ones(rows)
      return likelihood.weighted_logprobs(
        hidden, weight, tokens, shares, **keywords
      )[0]
    logprobs, _ = likelihood.token_logprobs(hidden, weight, tokens, **keywords)
    return jnp.sum(logprobs**2)

  def temporaries(vocabulary):
    arguments = (
      jax.ShapeDtypeStruct((rows, width), jnp.float32),
      jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    step = jax.jit(jax.grad(value, argnums=(0, 1)))
    found = step.lower(*arguments).compile().memory_analysis()
    return found.temp_size_in_bytes

  for vocabulary in (8_192, 50_257, 262_144):
    of_weight = 4 * width * vocabulary
    assert temporaries(vocabulary) < 3 * budget + 3 * of_weight + 2**17


@pytest.mark.parametrize("chunk_bytes", [0, -1, 159, 160.0, 2.5e6])
def test_a_budget_below_one_row_is_refused(chunk_bytes):
  with pytest.raises(ValueError, match=r"chunk_bytes=.*at least 160"):
    weighted(HIDDEN, WEIGHT, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize(
  ("chunk_bytes", "vocabulary", "rows"),
  [(64 * 2**20, 32_768, 512), (4, 1, 1), (64 * 2**20, 262_144, 64)],
)
def test_rows_of_a_chunk_follow_from_its_bytes(chunk_bytes, vocabulary, rows):
  assert likelihood.chunk_rows(chunk_bytes, vocabulary) == rows
