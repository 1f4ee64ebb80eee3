"""Packed rollouts: every token once, and the same loss as without packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import packing, ppo
from rlhf_jax.types import Rollout, Samples

N, PROMPT, T = 9, 3, 6
L = PROMPT + T


def ragged_samples(seed: int = 0) -> Samples:
  rng = np.random.default_rng(seed)
  valid = np.zeros((N, L), np.float32)
  response = np.zeros((N, L), np.float32)
  for n in range(N):
    valid[n, n % PROMPT : PROMPT + 1 + n % T] = 1.0
    response[n, PROMPT : PROMPT + 1 + n % T] = 1.0
  return Samples(
    tokens=jnp.asarray(rng.integers(1, 50, (N, L)), jnp.int32),
    valid_mask=jnp.asarray(valid),
    response_mask=jnp.asarray(response),
    behaviour_logprobs=jnp.asarray(-rng.random((N, L)) * response),
    finish_reason=jnp.zeros((N,), jnp.int32),
  )


def test_unpack_inverts_pack_and_padding_is_zero():
  samples = ragged_samples()
  layout = packing.plan(samples, packing.Shape(12, 12, 4, 4))
  x = jax.random.normal(jax.random.key(0), (N, L, 5))
  packed = packing.pack(x, layout)
  # Six samples of 4 tokens, three of 7: 7 + 4 three times, 4 + 4 + 4.
  assert packed.shape == (4, 12, 5)
  expected = np.asarray(x) * np.asarray(samples.valid_mask)[..., None]
  np.testing.assert_array_equal(packing.unpack(packed, layout), expected)
  empty = np.asarray(layout.segment_ids) == 0
  assert np.all(np.asarray(packed)[empty] == 0.0)


def test_segments_are_whole_samples_with_positions_from_zero():
  samples = ragged_samples()
  layout = packing.plan(samples, packing.Shape(20, 20, 8, 8))
  tokens = np.asarray(packing.pack(samples.tokens, layout))
  segments, positions = map(np.asarray, (layout.segment_ids, layout.positions))
  found = []
  for row in range(len(tokens)):
    for segment in range(1, segments[row].max() + 1):
      here = segments[row] == segment
      np.testing.assert_array_equal(positions[row][here], np.arange(here.sum()))
      found.append(tuple(tokens[row][here]))
  valid = np.asarray(samples.valid_mask) > 0
  expected = [
    tuple(row[v])
    for row, v in zip(np.asarray(samples.tokens), valid, strict=True)
  ]
  assert sorted(found) == sorted(expected)


def test_rows_respect_both_capacities():
  shape = packing.Shape(tokens=18, targets=7, most=9, multiple=1)
  samples = ragged_samples()
  layout = packing.plan(samples, shape)
  targets = np.asarray(packing.pack(samples.response_mask, layout)).sum(1)
  # As (tokens, targets): (7, 4), (7, 5), (7, 6), (4, 1) x 2, (4, 2) x 2,
  # (4, 3) x 2. Tokens alone would fit three rows.
  assert len(targets) == 5 and targets.max() <= 7 and targets.sum() == 27


def test_samples_are_spread_evenly_over_the_rows():
  [samples] = _rollouts(1, 64, seed=3)
  shape = packing.Shape(tokens=256, targets=128, most=32, multiple=4)
  needed = packing.plan(samples, shape).cell.shape[0]
  layout = packing.plan(samples, shape, needed + 4)
  tokens = (np.asarray(layout.segment_ids) > 0).sum(axis=1)
  assert len(tokens) == needed + 4  # no filler: a minibatch could be empty
  assert tokens.min() > 0.8 * tokens.mean()


def test_what_cannot_be_spread_evenly_is_placed_as_it_fits():
  """Longest first into the emptiest row leaves no room for the last one."""
  sizes = np.asarray([[3, 0], [3, 0], [2, 0], [2, 0], [2, 0]])
  assert packing._spread_evenly(sizes, np.asarray([6, 6]), 2) is None
  valid = np.arange(3) < sizes[:, :1]
  samples = Samples(
    tokens=valid.astype(np.int32),
    valid_mask=valid.astype(np.float32),
    response_mask=np.zeros((5, 3), np.float32),
    behaviour_logprobs=np.zeros((5, 3), np.float32),
    finish_reason=np.zeros(5, np.int32),
  )
  layout = packing.plan(samples, packing.Shape(6, 6, 5, 1))
  assert (np.asarray(layout.segment_ids) > 0).sum(1).tolist() == [6, 6]


def _rollout(samples: Samples) -> Rollout:
  key = jax.random.key(1)

  def draw(i):
    return jax.random.normal(jax.random.fold_in(key, i), (N, L))

  rollout = Rollout(
    **vars(samples),
    reference_logprobs=draw(0),
    score=jnp.arange(N, dtype=jnp.float32),
    values=draw(1) * samples.response_mask,
    rewards=draw(2) * samples.response_mask,
    hidden={"policy": jax.random.normal(key, (N, L, 4))},
  )
  return ppo.advantages(rollout, ppo.Config())


def test_ppo_loss_and_its_gradient_do_not_change_by_packing():
  samples = ragged_samples()
  rollout = _rollout(samples)
  config = ppo.Config(entropy_coefficient=0.1)
  layout = packing.plan(samples, packing.Shape(16, 16, 8, 8))
  packed = packing.pack_rollout(rollout, layout)
  weights = jax.random.normal(jax.random.key(2), (4,))

  def loss(weights, rollout):
    x = rollout.hidden["policy"] @ weights
    value, _ = ppo.loss(
      rollout.behaviour_logprobs + 0.1 * x,
      jnp.square(x),
      x,
      rollout,
      config,
      ppo.denominators(rollout, config),
    )
    return value

  plain_value, plain_grad = jax.value_and_grad(loss)(weights, rollout)
  value, grad = jax.value_and_grad(loss)(weights, packed)
  np.testing.assert_allclose(value, plain_value, rtol=1e-5)
  np.testing.assert_allclose(grad, plain_grad, rtol=1e-4, atol=1e-6)


def test_a_sample_longer_than_a_row_is_refused():
  with pytest.raises(ValueError, match="row_tokens=6"):
    packing.plan(ragged_samples(), packing.Shape(6, 6, 9, 1))
  with pytest.raises(ValueError, match="row_multiple=0"):
    packing.Config(row_multiple=0)


def _rollouts(count: int, rows: int, seed: int):
  """Yields samples of random prompts and of answers that end at any token."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    prompt = rng.integers(20, 65, rows)
    answer = np.minimum(rng.geometric(1 / 27, rows), 64)
    column = np.arange(128)
    response = (column >= 64) & (column < 64 + answer[:, None])
    valid = (column >= 64 - prompt[:, None]) & (column < 64) | response
    yield Samples(
      tokens=np.where(valid, 7, 0).astype(np.int32),
      valid_mask=valid.astype(np.float32),
      response_mask=response.astype(np.float32),
      behaviour_logprobs=np.zeros((rows, 128), np.float32),
      finish_reason=np.zeros(rows, np.int32),
    )


@pytest.mark.parametrize(("rows", "unit"), [(64, 4), (64, 8), (256, 8)])
def test_random_lengths_compile_once_or_twice(rows, unit):
  shape = packing.shape_of(packing.Config(), rows, 128, 64, unit)
  total = jax.jit(lambda x, layout: jnp.sum(packing.pack(x, layout)))
  usual, compiled, fill = 0, [], []
  for samples in _rollouts(50, rows, seed=rows + unit):
    layout = packing.plan(samples, shape, usual)
    usual = layout.cell.shape[0]
    assert usual % unit == 0 and usual <= shape.most
    assert total(samples.valid_mask, layout) == np.sum(samples.valid_mask)
    compiled.append(total._cache_size())
    fill.append(np.mean(np.asarray(layout.segment_ids) > 0))
  assert compiled[-1] <= 2
  assert np.mean(fill) > 0.72  # of rows of their own: 0.53


def test_the_number_of_rows_follows_lengths_that_change():
  shape = packing.Shape(tokens=20, targets=20, most=9, multiple=1)
  needed = packing.plan(ragged_samples(), shape).cell.shape[0]
  for usual, expected in (
    (needed - 1, needed),  # not enough
    (needed, needed),
    (needed + 1, needed + 1),
    (needed * 3 // 2, needed * 3 // 2),
    (needed * 3 // 2 + 1, needed),  # more than half as much again
  ):
    found = packing.plan(ragged_samples(), shape, usual)
    assert found.cell.shape[0] == expected, usual


def test_rows_of_two_answers_of_one_or_of_their_own():
  config, parts = packing.Config(), dict(length=30, new=10)
  assert packing.shape_of(config, 64, **parts, unit=4) == packing.Shape(
    tokens=60, targets=20, most=32, multiple=4
  )
  assert packing.shape_of(config, 64, **parts, unit=8) == packing.Shape(
    tokens=30, targets=10, most=64, multiple=8
  )
  assert packing.shape_of(config, 64, **parts, unit=32) is None
  assert config.targets(64, 32, 10) == 10
  off = packing.Config(row_tokens=0)
  assert packing.shape_of(off, 64, **parts, unit=1) is None
  with pytest.raises(ValueError, match="row_targets=7"):
    packing.Config(row_targets=7)
