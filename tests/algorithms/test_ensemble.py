"""Combinations, rank agreement, subsets and the update of members by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from rlhf_jax.algorithms import ensemble, reward
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.types import PreferenceBatch, TrainState

SCORES = np.float32([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 5.0]])


def test_combinations_by_hand():
  """Variances divided by M: of 1, 3, 2 it is 2/3, of -1, 2, 5 it is 6."""
  for how, wanted in (
    (Combination(), [2.0, 0.0, 2.0]),
    (Combination("min"), [1.0, 0.0, -1.0]),
    (Combination("uwo", 0.5), [2.0 - 1.0 / 3.0, 0.0, -1.0]),
    (Combination("uwo", 0.0), [2.0, 0.0, 2.0]),
  ):
    for scores in (SCORES, jnp.asarray(SCORES)):
      found = ensemble.combined(scores, how)
      np.testing.assert_allclose(found, wanted, rtol=1e-6)
  np.testing.assert_allclose(
    ensemble.deviation(SCORES), [np.sqrt(2.0 / 3.0), 0.0, np.sqrt(6.0)]
  )


def test_one_member_is_its_score():
  for how in (Combination(), Combination("min"), Combination("uwo", 0.5)):
    np.testing.assert_array_equal(
      ensemble.combined(SCORES[:, :1], how), SCORES[:, 0]
    )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"combine": "max"}, "combine='max'"),
    ({"combine": "uwo"}, "uncertainty_weight=None: .* 0.1 .* 0.5"),
    ({"uncertainty_weight": 0.1}, "combine='mean' does not read it"),
    ({"combine": "uwo", "uncertainty_weight": -1.0}, "Set it >= 0"),
  ],
)
def test_wrong_combinations_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Combination(**changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"members": 0}, "must be >= 1"),
    ({"kind": "adapters"}, "are of several members"),
    ({"members": 2, "kind": "seeds"}, "kind='seeds'"),
    ({"members": 2, "subsets": "share"}, "share=None"),
    ({"members": 2, "share": 0.5}, "share=0.5 with subsets='bootstrap'"),
    ({"members": 2, "subsets": "share", "share": 1.5}, "must be in"),
  ],
)
def test_wrong_members_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    ensemble.Config(**changes)


def test_agreement_is_the_mean_spearman_correlation():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(40, 3)) + rng.normal(size=(40, 1))
  scores = np.float32(np.round(scores, 1))  # some are equal
  pairs = [(0, 1), (0, 2), (1, 2)]
  wanted = np.mean(
    [stats.spearmanr(scores[:, i], scores[:, j])[0] for i, j in pairs]
  )
  found = ensemble.agreement(jnp.asarray(scores))
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  same = np.repeat(scores[:, :1], 3, axis=1)
  np.testing.assert_allclose(ensemble.agreement(same), 1.0, rtol=1e-5)
  same[:, 1] = 7.0  # says nothing, so of three pairs one agrees
  np.testing.assert_allclose(ensemble.agreement(same), 1 / 3, rtol=1e-5)


def test_a_bootstrap_draws_whole_prompts():
  groups = np.repeat(np.arange(50), 3)[:, None]
  weights = ensemble.member_weights(groups, 4, "bootstrap", seed=5)
  assert weights.shape == (150, 4) and weights.dtype == np.float32
  by_prompt = weights.reshape(50, 3, 4)
  np.testing.assert_array_equal(by_prompt, by_prompt[:, :1].repeat(3, 1))
  np.testing.assert_array_equal(by_prompt[:, 0].sum(axis=0), 50)
  left_out = np.mean(weights == 0.0, axis=0)
  assert np.all((left_out > 0.2) & (left_out < 0.55))  # 1 / e is expected
  assert not np.array_equal(weights[:, 0], weights[:, 1])
  fewer = ensemble.member_weights(groups, 2, "bootstrap", seed=5)
  np.testing.assert_array_equal(fewer, weights[:, :2])
  other = ensemble.member_weights(groups, 4, "bootstrap", seed=6)
  assert not np.array_equal(other, weights)


def test_a_share_takes_prompts_once_and_pairs_of_two_need_both():
  groups = np.asarray([[0, 1], [1, 2], [2, 2], [3, 0]])
  weights = ensemble.member_weights(groups, 3, "share", 0, share=0.5)
  for column in weights.T:
    assert set(column) <= {0.0, 1.0}
  alone = ensemble.member_weights(
    np.arange(4)[:, None], 3, "share", 0, share=0.5
  )
  np.testing.assert_array_equal(alone.sum(axis=0), 2)
  wanted = alone[groups[:, 0]] * alone[groups[:, 1]]
  np.testing.assert_array_equal(weights, wanted)
  everything = ensemble.member_weights(groups, 3, "all", 0)
  np.testing.assert_array_equal(everything, np.ones((4, 3)))


def batch_of(rows: int, members: int) -> PreferenceBatch:
  rng = np.random.default_rng(1)
  exists = jnp.ones((rows, 2, 1))
  return PreferenceBatch(
    tokens=jnp.zeros(exists.shape, jnp.int32),
    valid_mask=exists,
    loss_mask=exists,
    label=jnp.float32(rng.integers(0, 2, rows)),
    weight=jnp.ones(rows).at[-1].set(0.0),
    features=jnp.float32(rng.normal(size=(rows, 2, 5))),
    member_weight=jnp.float32(rng.integers(0, 3, (rows, members))),
  )


def apply(params, frozen, batch):
  del frozen
  return jnp.einsum("bkf,mf->bkm", batch.features, params)


def state_of(params, optimizer) -> TrainState:
  zero = jnp.int32(0)
  return TrainState(zero, params, optimizer.init(params), zero)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_members_move_as_if_each_were_alone(microbatches):
  """With Adam, three members in one pass against three runs."""
  batch, optimizer = batch_of(8, 3), optax.adam(0.1)
  start = jax.random.normal(jax.random.key(0), (3, 5))
  config = reward.Config(microbatches=microbatches, label_smoothing=0.1)
  step = jax.jit(
    functools.partial(
      ensemble.update,
      config=config,
      apply=apply,
      optimizer=optimizer,
      is_shared=False,
    )
  )
  state = state_of(start, optimizer)
  for _ in range(3):
    state, metrics = step(state, {}, batch, jax.random.key(0))
  losses = []
  for i in range(3):
    alone = state_of(start[i], optimizer)
    weight = batch.weight * batch.member_weight[:, i]
    own = batch.replace(weight=weight, member_weight=None)
    for _ in range(3):
      alone, found = reward.update(
        alone,
        {},
        own,
        jax.random.key(0),
        config=reward.Config(label_smoothing=0.1),
        apply=lambda params, frozen, batch: batch.features @ params,
        optimizer=optimizer,
      )
    np.testing.assert_allclose(state.params[i], alone.params, atol=1e-5)
    losses.append(found["reward_model/loss"])
  np.testing.assert_allclose(
    metrics["reward_model/loss"], np.mean(losses), rtol=1e-5
  )


def test_the_deviation_is_that_of_scores_around_their_mean():
  """An offset of a member is no disagreement: comparisons do not fix it."""
  batch = batch_of(2, 2).replace(weight=jnp.ones(2))
  scores = jnp.float32([[[1, 13], [-1, 7]], [[0, 10], [0, 10]]])  # [B, K, M]
  counts = ensemble.denominators(batch, reward.Config())
  _, metrics = ensemble.loss(
    scores, batch, reward.Config(), counts, is_shared=True
  )
  np.testing.assert_allclose(metrics["ensemble/deviation"], 0.5, rtol=1e-6)


def test_a_shared_trunk_moves_by_the_mean_over_members():
  batch = batch_of(6, 2)
  counts = ensemble.denominators(batch, reward.Config())
  scores = apply(jax.random.normal(jax.random.key(2), (2, 5)), {}, batch)
  values = [
    ensemble.loss(scores, batch, reward.Config(), counts, is_shared=shared)[0]
    for shared in (True, False)
  ]
  np.testing.assert_allclose(2.0 * values[0], values[1], rtol=1e-6)
