"""Cross-entropy on demonstrations, through a bigram table as the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import ops
from rlhf_jax.algorithms import sft
from rlhf_jax.types import TokenBatch, TrainState
from tests import plain

RNG = np.random.default_rng(2)
VOCABULARY = 11
TABLE = RNG.normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


def apply(params, frozen, batch):
  """Bigram model: token t is predicted from token t - 1, in its segment."""
  logits = params["table"] + frozen.get("bias", 0.0)
  before = jnp.pad(batch.tokens[:, :-1], ((0, 0), (1, 0)))
  logits = logits[before]
  return plain.logprobs_of_logits(logits, batch.tokens), ops.entropy(logits)


def examples():
  """Eight examples (tokens, answer start), of ragged lengths."""
  rng = np.random.default_rng(3)
  lengths = [3, 9, 4, 8, 5, 7, 6, 2]
  return [
    (rng.integers(0, VOCABULARY, n), 1 + int(rng.integers(0, n - 1)))
    for n in lengths
  ]


def padded(length=9):
  tokens = np.zeros((8, length), np.int32)
  valid, loss = np.zeros((2, 8, length), np.float32)
  for row, (ids, start) in enumerate(examples()):
    tokens[row, : len(ids)] = ids
    valid[row, : len(ids)] = 1
    loss[row, start : len(ids)] = 1
  return TokenBatch(*map(jnp.asarray, (tokens, valid, loss)))


def packed():
  """The same examples, end to end, in two rows."""
  rows = [examples()[:4], examples()[4:]]
  tokens = np.zeros((2, 25), np.int32)
  segments = np.zeros((2, 25), np.int32)
  positions = np.zeros((2, 25), np.int32)
  valid, loss = np.zeros((2, 2, 25), np.float32)
  for row, members in enumerate(rows):
    at = 0
    for number, (ids, start) in enumerate(members, 1):
      end = at + len(ids)
      tokens[row, at:end] = ids
      segments[row, at:end] = number
      positions[row, at:end] = np.arange(len(ids))
      valid[row, at:end] = 1
      loss[row, at + start : end] = 1
      at = end
  arrays = (tokens, valid, loss, segments, positions)
  return TokenBatch(*map(jnp.asarray, arrays))


def naive_loss(mode, bias=0.0):
  """A loop over tokens in float64."""
  log_p = TABLE.astype(np.float64) + np.asarray(bias, np.float64)
  log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
  sums, counts = [], []
  for ids, start in examples():
    sums.append(-sum(log_p[ids[t - 1], ids[t]] for t in range(start, len(ids))))
    counts.append(len(ids) - start)
  if mode == "token-mean":
    return sum(sums) / sum(counts)
  return np.mean(np.array(sums) / np.array(counts))


def run(batch, optimizer=None, frozen=None, apply=apply, jit=True, **settings):
  optimizer = optax.sgd(1.0) if optimizer is None else optimizer
  params = {"table": jnp.asarray(TABLE)}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  update = functools.partial(
    sft.update,
    config=sft.Config(**settings),
    apply=plain.weighted(apply),
    optimizer=optimizer,
  )
  update = jax.jit(update) if jit else update
  return update(
    state, {} if frozen is None else frozen, batch, jax.random.key(0)
  )


def assert_same(a, b, rtol=2e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b
  )


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_t14_trap_34_packed_equals_unpacked_equals_a_loop(mode):
  state, metrics = run(padded(), aggregation=mode)
  packed_state, packed_metrics = run(packed(), aggregation=mode)
  np.testing.assert_allclose(metrics["sft/loss"], naive_loss(mode), rtol=1e-5)
  assert_same(state.params, packed_state.params)
  assert_same(metrics["sft/loss"], packed_metrics["sft/loss"])
  assert (
    abs(naive_loss("token-mean") - naive_loss("seq-mean-token-mean")) > 0.01
  )


def test_golden_metrics():
  batch = padded()
  _, metrics = run(batch)
  loss = naive_loss("token-mean")
  share = float(batch.loss_mask.sum() / batch.valid_mask.sum())
  np.testing.assert_allclose(metrics["sft/perplexity"], np.exp(loss), rtol=1e-5)
  np.testing.assert_allclose(metrics["sft/supervised_share"], share, rtol=1e-6)
  np.testing.assert_allclose(metrics["sft/token_loss"], loss, rtol=1e-5)
  p = np.exp(TABLE.astype(np.float64))
  p = p / p.sum(-1, keepdims=True)
  entropy = -np.sum(p * np.log(p), axis=-1)
  found = [
    entropy[ids[t - 1]]
    for ids, start in examples()
    for t in range(start, len(ids))
  ]
  np.testing.assert_allclose(metrics["sft/entropy"], np.mean(found), rtol=1e-5)
  assert metrics["sys/skipped_updates"] == 0


def test_t14_prompt_tokens_give_no_gradient():
  batch = padded()

  def loss(logprobs):
    entropies = jnp.zeros_like(logprobs)
    counts = sft.denominators(batch, sft.Config())
    return sft.loss(logprobs, entropies, batch, sft.Config(), counts)[0]

  gradient = np.asarray(jax.grad(loss)(jnp.full(batch.tokens.shape, -1.0)))
  mask = np.asarray(batch.loss_mask)
  assert np.all(gradient[mask == 0] == 0)
  np.testing.assert_allclose(gradient[mask > 0], -1 / mask.sum(), rtol=1e-6)


def test_trap_13_25_microbatches_change_neither_gradient_nor_metric():
  assert_same(run(padded()), run(padded(), microbatches=8))


def test_trap_11_100_columns_of_padding_change_nothing():
  assert_same(run(padded()), run(padded(109)))


def test_trap_27_poisoned_padding_stays_out():
  def poisoned(params, frozen, batch):
    outputs = apply(params, frozen, batch)
    return tuple(jnp.where(batch.valid_mask > 0, x, jnp.nan) for x in outputs)

  assert_same(run(padded()), run(padded(), apply=poisoned))


def test_trap_12_jit_sharded_and_plain_agree():
  expected = run(padded(), jit=False)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  sharded = jax.tree.map(lambda x: jax.device_put(x, rows), padded())
  assert_same(expected, run(padded()))
  assert_same(expected, run(sharded))


def test_frozen_weights_reach_apply_and_do_not_move():
  frozen = {"bias": jnp.asarray(RNG.normal(size=VOCABULARY), jnp.float32)[None]}
  state, metrics = run(padded(), frozen=frozen)
  assert set(state.params) == {"table"}
  expected = naive_loss("token-mean", frozen["bias"])
  np.testing.assert_allclose(metrics["sft/loss"], expected, rtol=1e-5)
  assert abs(expected - naive_loss("token-mean")) > 0.1


def test_a_batch_that_is_not_finite_is_skipped():
  def broken(params, frozen, batch):
    logprobs, entropies = apply(params, frozen, batch)
    return logprobs * jnp.inf, entropies

  state, metrics = run(padded(), optax.adam(0.1), apply=broken)
  np.testing.assert_array_equal(state.params["table"], TABLE)
  assert (state.step, state.skipped) == (0, 1)
  assert metrics["sys/skipped_updates"] == 1


def test_config_errors():
  with pytest.raises(ValueError, match="microbatches=0"):
    sft.Config(microbatches=0)
  with pytest.raises(ValueError, match="aggregation='seq-sum-const'"):
    sft.Config(aggregation="seq-sum-const")
