"""Masked statistics, log-probabilities and KL estimators against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import likelihood, ops
from tests import plain

RNG = np.random.default_rng(0)


def float64_logprobs(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def ragged(rows=8, length=5):
  x = RNG.normal(2.0, 3.0, (rows, length)).astype(np.float32)
  lengths = RNG.integers(1, length + 1, rows)
  mask = (np.arange(length)[None] < lengths[:, None]).astype(np.float32)
  return x, mask


def test_trap_11_statistics_ignore_100_columns_of_padding():
  x, mask = ragged()
  wide = np.pad(x, ((0, 0), (0, 100)), constant_values=7e7)
  wide_mask = np.pad(mask, ((0, 0), (0, 100)))
  for function in (ops.masked_mean, ops.masked_variance, ops.masked_sum):
    np.testing.assert_allclose(
      function(x, mask), function(wide, wide_mask), rtol=1e-6
    )
  np.testing.assert_allclose(
    ops.whiten(wide, wide_mask)[:, :5], ops.whiten(x, mask), rtol=1e-5
  )


def test_trap_14_variance_is_divided_by_n():
  x, mask = ragged()
  kept = x[mask > 0].astype(np.float64)
  np.testing.assert_allclose(ops.masked_mean(x, mask), kept.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    ops.masked_variance(x, mask), kept.var(ddof=0), rtol=1e-5
  )
  assert abs(kept.var(ddof=1) - kept.var()) > 1e-2


def test_t05_whitening_gives_mean_0_and_variance_1():
  x, mask = ragged()
  white = np.asarray(ops.whiten(x, mask))
  kept = white[mask > 0]
  np.testing.assert_allclose(kept.mean(), 0.0, atol=1e-6)
  np.testing.assert_allclose(kept.var(), 1.0, rtol=1e-5)
  assert np.all(white[mask == 0] == 0)
  scaled = np.asarray(ops.whiten(x, mask, shifts_mean=False))
  assert np.all(scaled[mask == 0] == 0)
  scaled = scaled[mask > 0]
  np.testing.assert_allclose(scaled.mean(), x[mask > 0].mean(), rtol=1e-5)
  np.testing.assert_allclose(scaled.var(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_trap_12_whitening_is_global_over_devices(devices):
  x, mask = ragged()
  mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  sharded = jax.jit(ops.whiten)(
    jax.device_put(x, sharding), jax.device_put(mask, sharding)
  )
  np.testing.assert_allclose(sharded, ops.whiten(x, mask), atol=1e-6)
  first = np.asarray(ops.whiten(x[:1], mask[:1]))
  assert np.abs(np.asarray(sharded)[:1] - first).max() > 1e-2


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_trap_27_poisoned_padding_reaches_neither_value_nor_gradient(poison):
  x, mask = ragged()
  bad = np.where(mask > 0, x, poison).astype(np.float32)
  old = RNG.normal(size=x.shape).astype(np.float32)

  def total(y):
    ratio = jnp.exp(ops.log_ratio(y, old, mask))
    return ops.masked_mean(y, mask) + ops.masked_sum(ratio, mask)

  np.testing.assert_allclose(total(bad), total(x), rtol=1e-6)
  gradient = np.asarray(jax.grad(total)(jnp.asarray(bad)))
  np.testing.assert_allclose(gradient, jax.grad(total)(jnp.asarray(x)))
  assert np.all(gradient[mask == 0] == 0)


def test_log_ratio_is_clipped_at_20_nats_and_0_off_the_mask():
  new = jnp.array([[50.0, -50.0, 0.25, 9.0]])
  mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  found = ops.log_ratio(new, jnp.zeros((1, 4)), mask)
  np.testing.assert_array_equal(found, [[20.0, -20.0, 0.25, 0.0]])


def test_trap_20_shapes_must_agree():
  with pytest.raises(ValueError, match=r"values=\(3,\)"):
    ops.check_same_shape(logprobs=jnp.zeros((2, 3)), values=jnp.zeros(3))
  with pytest.raises(ValueError, match="rank_promotion"):
    ops.masked_mean(jnp.zeros((2, 3)), jnp.ones(3))


def test_t07_kl_estimators_on_two_known_categoricals():
  p = np.array([0.5, 0.2, 0.2, 0.1])
  q = np.array([0.25, 0.25, 0.4, 0.1])
  exact = np.sum(p * np.log(p / q))
  arms = np.random.default_rng(3).choice(4, size=1_000_000, p=p)
  log_p = np.log(p)[arms].astype(np.float32)
  log_q = np.log(q)[arms].astype(np.float32)
  k1, k2, k3 = (
    np.asarray(f(log_p, log_q), np.float64)
    for f in (ops.kl_k1, ops.kl_k2, ops.kl_k3)
  )
  for estimate in (k1, k3):
    error = estimate.std() / np.sqrt(len(estimate))
    assert abs(estimate.mean() - exact) < 3.5 * error
  assert k2.min() >= 0 and k3.min() >= 0 and k1.min() < 0
  exact_k2 = np.sum(p * 0.5 * np.log(p / q) ** 2)
  assert abs(exact_k2 - exact) > 5 * k2.std() / 1000
  np.testing.assert_allclose(k2.mean(), exact_k2, rtol=1e-2)


def test_trap_15_which_kl_gradient_each_estimator_carries():
  logits = jnp.asarray(RNG.normal(size=4), jnp.float32)
  q = jax.nn.log_softmax(jnp.asarray(RNG.normal(size=4), jnp.float32))

  def forward_kl(z):
    log_p = jax.nn.log_softmax(z)
    return jnp.sum(jnp.exp(log_p) * (log_p - q))

  def backward_kl(z):
    return jnp.sum(jnp.exp(q) * (q - jax.nn.log_softmax(z)))

  def in_loss(estimator):
    def expected(z):
      log_p = jax.nn.log_softmax(z)
      weight = jax.lax.stop_gradient(jnp.exp(log_p))
      return jnp.sum(weight * estimator(log_p, q))

    return jax.grad(expected)(logits)

  step = 1e-3
  finite = [
    (forward_kl(logits + step * e) - forward_kl(logits - step * e)) / (2 * step)
    for e in np.eye(4, dtype=np.float32)
  ]
  exact = jax.grad(forward_kl)(logits)
  np.testing.assert_allclose(exact, finite, atol=2e-3)
  np.testing.assert_allclose(in_loss(ops.kl_k2), exact, atol=1e-6)
  np.testing.assert_allclose(
    in_loss(ops.kl_k3), jax.grad(backward_kl)(logits), atol=1e-6
  )
  np.testing.assert_allclose(in_loss(ops.kl_k1), np.zeros(4), atol=1e-6)


def dense_logprobs(hidden, unembedding, tokens, temperature, soft_cap):
  logits = hidden @ unembedding
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  logits = logits / temperature
  return plain.logprobs_of_logits(logits, tokens), ops.entropy(logits)


@pytest.mark.parametrize("soft_cap", [None, 2.5])
def test_trap_21_chunked_equals_dense_in_value_and_gradient(soft_cap):
  hidden = jnp.asarray(RNG.normal(size=(13, 6)), jnp.float32)
  unembedding = jnp.asarray(RNG.normal(size=(6, 37)), jnp.float32)
  tokens = jnp.asarray(RNG.integers(0, 37, 13))
  weight = jnp.asarray(RNG.normal(size=(2, 13)), jnp.float32)

  def chunked(h, w):
    logprobs, entropies = likelihood.token_logprobs(
      h, w, tokens, temperature=0.6, chunk_bytes=5 * 37 * 4, soft_cap=soft_cap
    )
    return jnp.sum(weight[0] * logprobs + weight[1] * entropies), logprobs

  def dense(h, w):
    logprobs, entropies = dense_logprobs(h, w, tokens, 0.6, soft_cap)
    return jnp.sum(weight[0] * logprobs + weight[1] * entropies), logprobs

  both = [
    jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(hidden, unembedding)
    for f in (chunked, dense)
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *both
  )


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_trap_38_columns_without_a_token_have_probability_0(
  is_frozen, soft_cap
):
  """Value and gradient are those of a smaller vocabulary."""
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (7, 4))
  small = jax.random.normal(keys[1], (4, 9))
  tokens = jax.random.randint(keys[2], (7,), 0, 9)
  kept = np.asarray([0, 1, 4, 5, 6, 7, 8, 9, 10])  # of 13
  wide = jnp.full((4, 13), 2.0).at[:, kept].set(small)

  def loss(hidden, unembedding, tokens, empty):
    found, entropies = likelihood.token_logprobs(
      hidden,
      unembedding,
      tokens,
      temperature=0.7,
      chunk_bytes=3 * 13 * 4,
      soft_cap=soft_cap,
      empty_rows=empty,
      is_unembedding_frozen=is_frozen,
    )
    return jnp.sum(found * jnp.arange(7.0)), (found, entropies)

  run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  expected = run(hidden, small, tokens, ())
  found = run(hidden, wide, jnp.asarray(kept)[tokens], ((2, 4), (11, 13)))
  (value, (logprobs, entropies)), _ = found
  wanted, (wanted_logprobs, wanted_entropies) = expected[0]
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(logprobs, wanted_logprobs, rtol=1e-5)
  np.testing.assert_allclose(entropies, wanted_entropies, rtol=1e-5)
  np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-5, atol=1e-6)
  if not is_frozen:
    np.testing.assert_allclose(
      found[1][1][:, kept], expected[1][1], rtol=1e-5, atol=1e-6
    )
    assert not np.delete(np.asarray(found[1][1]), kept, axis=1).any()


def test_trap_21_logprobs_never_exceed_0():
  hidden = jnp.eye(7, dtype=jnp.float32) * 300.0
  tokens = jnp.arange(7)
  logprobs, entropies = likelihood.token_logprobs(
    hidden, jnp.eye(7, 11, dtype=jnp.float32), tokens, chunk_bytes=132
  )
  assert np.all(np.asarray(logprobs) <= 0)
  assert np.all(np.abs(np.asarray(entropies)) < 1e-4)


def test_t01_trap_22_float32_logprobs_from_bf16_hidden_states():
  hidden = RNG.normal(size=(11, 16)).astype(np.float32)
  unembedding = RNG.normal(size=(16, 131_071)).astype(np.float32)
  tokens = RNG.integers(0, 131_071, 11)
  truth = float64_logprobs(hidden.astype(np.float64) @ unembedding)
  picked = truth[np.arange(11), tokens]
  logprobs, entropies = likelihood.token_logprobs(
    hidden, unembedding, tokens, chunk_bytes=4 * 4 * 131_071
  )
  np.testing.assert_allclose(logprobs, picked, atol=2e-5)
  np.testing.assert_allclose(
    entropies, -(np.exp(truth) * truth).sum(-1), atol=1e-4
  )
  low = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, unembedding)]
  rounded = [np.asarray(x, np.float64) for x in low]
  truth = float64_logprobs(rounded[0] @ rounded[1])[np.arange(11), tokens]
  found, _ = likelihood.token_logprobs(
    *low, tokens, chunk_bytes=4 * 4 * 131_071
  )
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, truth, atol=2e-4)
  naive = jax.nn.log_softmax(low[0] @ low[1])[np.arange(11), tokens]
  assert np.abs(np.asarray(naive, np.float64) - truth).max() > 1e-2


def test_trap_10_entropy_lies_between_0_and_log_vocabulary():
  logits = jnp.asarray(RNG.normal(size=(3, 5, 17)) * 9.0, jnp.float32)
  found = np.asarray(ops.entropy(logits))
  assert found.min() >= 0 and found.max() <= np.log(17) + 1e-5
  uniform = ops.entropy(jnp.zeros((2, 17)))
  np.testing.assert_allclose(uniform, np.log(17), rtol=1e-6)


def test_positions_and_last_index_do_not_depend_on_padding():
  mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 0]], float)
  np.testing.assert_array_equal(ops.last_index(mask), [4, 2, 3])
  positions = np.asarray(ops.positions_from_mask(mask))
  np.testing.assert_array_equal(positions[0, 2:], [0, 1, 2])
  np.testing.assert_array_equal(positions[1, :3], [0, 1, 2])


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_trap_21_frozen_unembedding_has_the_same_values_and_gradient(soft_cap):
  rows, width, vocabulary = 13, 5, 31
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (rows, width))
  unembedding = jax.random.normal(keys[1], (width, vocabulary))
  tokens = jax.random.randint(keys[2], (rows,), 0, vocabulary)
  weight = jax.random.normal(keys[3], (rows,))

  def run(hidden, is_frozen):
    logprobs, entropies = likelihood.token_logprobs(
      hidden,
      unembedding,
      tokens,
      temperature=0.7,
      chunk_bytes=4 * vocabulary * 4,
      soft_cap=soft_cap,
      is_unembedding_frozen=is_frozen,
    )
    return jnp.sum(logprobs * weight), (logprobs, entropies)

  found = jax.value_and_grad(run, has_aux=True)(hidden, True)
  expected = jax.value_and_grad(run, has_aux=True)(hidden, False)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  naive = hidden @ unembedding
  if soft_cap is not None:
    naive = soft_cap * jnp.tanh(naive / soft_cap)
  naive = jax.nn.log_softmax(naive / 0.7)
  np.testing.assert_allclose(
    found[0][1][0], naive[np.arange(rows), tokens], rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  "value", [0.0, 0.1, 12345.678, -3e7, 1e-9, 1e-30, 1e30, 3e38, -3e38]
)
def test_trap_48_equal_values_of_any_size_whiten_to_exact_zeros(value):
  x = jnp.full((1000, 1), value, jnp.float32)
  mask = jnp.ones_like(x).at[::7].set(0.0)
  whiten = jax.jit(ops.whiten)
  np.testing.assert_array_equal(whiten(x, mask), np.zeros((1000, 1)))
  assert ops.masked_variance(x, mask) == 0.0
  kept = jax.jit(lambda x: ops.whiten(x, mask, shifts_mean=False))(x)
  np.testing.assert_array_equal(kept, np.where(mask > 0, x, 0.0))


def test_trap_48_large_values_of_little_spread_whiten_as_in_float64():
  x = np.float32(12345.0) + RNG.integers(0, 3, (999, 1)).astype(np.float32)
  exact = x.astype(np.float64)
  white = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-8)
  found = jax.jit(ops.whiten)(x, np.ones_like(x))
  np.testing.assert_allclose(found, white, atol=1e-5)


def test_the_entropy_with_a_token_that_is_never_sampled_is_finite():
  logits = jnp.asarray([[0.0, 0.0, -jnp.inf], [1.0, -jnp.inf, -jnp.inf]])
  np.testing.assert_allclose(ops.entropy(logits), [np.log(2), 0.0], atol=1e-7)
  slope = jax.grad(lambda x: ops.entropy(x).sum())(logits)
  np.testing.assert_allclose(slope, np.zeros((2, 3)), atol=1e-7)
  _, found = likelihood.token_logprobs(  # the same through the unembedding
    jnp.ones((2, 1)), logits[:1], jnp.asarray([0, 1])
  )
  np.testing.assert_allclose(found, [np.log(2)] * 2, rtol=1e-6)


def test_what_is_within_rounding_of_the_reference_has_no_slope():
  reference = jnp.asarray([-2.0, -2.0, -2.0])
  new = reference + jnp.asarray([5e-5, -5e-5, 1e-3])
  found = ops.unless_rounding(new, reference)
  np.testing.assert_array_equal(found, [-2.0, -2.0, new[2]])
  slope = jax.grad(lambda x: ops.unless_rounding(x, reference).sum())(new)
  np.testing.assert_array_equal(slope, [0.0, 0.0, 1.0])
