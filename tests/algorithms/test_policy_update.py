"""Epochs and minibatches of PPO, through a bigram table as the policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.algorithms.policy_gradient import ppo, update
from tests.algorithms.bigram import (
  DEFAULT,
  FROZEN,
  KEY,
  PPO,
  L,
  N,
  apply,
  assert_same,
  make_rollout,
  make_state,
  parameters,
  run,
)


@jax.jit
def gradient(params, part):
  def total(params):
    counts = ppo.denominators(part, PPO)
    return ppo.loss(*apply(params, FROZEN, part), part, PPO, counts)[0]

  return jax.grad(total)(params)


def loop(rollout, config, rate, without=None):
  """The parameters after the same update, without scan.

  Minibatches with the row `without` are passed over.
  """
  params = parameters()
  for key in jax.random.split(KEY, config.epochs):
    order = jax.random.permutation(key, N).reshape(config.minibatches, -1)
    for rows in order:
      if without in rows.tolist():
        continue
      part = jax.tree.map(lambda x, rows=rows: x[rows], rollout)
      grads = gradient(params, part)
      params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
  return params


def test_trap_32_the_scans_equal_a_loop_over_fixed_advantages():
  rollout = make_rollout()
  config = update.Config(epochs=2, minibatches=4)
  state, metrics = run(rollout, config=config)
  assert_same(state.params, loop(rollout, config, 0.5))
  assert state.step == 8 and metrics["ppo/epochs"] == 2
  assert metrics["sys/skipped_updates"] == 0


def test_trap_06_08_first_minibatch_has_ratio_1():
  _, metrics = run(make_rollout())
  assert metrics["ppo/first_ratio_error"] < 1e-6
  assert metrics["ppo/first_clip_fraction"] == 0
  assert metrics["ppo/ratio_error_max"] > 1e-2
  # The bug: sampled at temperature 0.6, trained at 1.
  hot = functools.partial(apply, temperature=1.0)
  rollout = make_rollout()
  _, metrics = run(rollout, apply=hot)
  rows = jax.random.permutation(jax.random.split(KEY, 2)[0], N)[: N // 2]
  kept = np.asarray(rollout.response_mask)[rows] > 0
  new = hot(parameters(), FROZEN, rollout)[0] - rollout.behaviour_logprobs
  ratio = np.exp(np.asarray(new, np.float64)[rows][kept])
  a = np.asarray(rollout.advantages)[rows][kept]
  is_cut = np.where(a > 0, ratio > 1.2, ratio < 0.8)
  np.testing.assert_allclose(
    metrics["ppo/first_ratio_error"], np.abs(ratio - 1).max(), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics["ppo/first_clip_fraction"], is_cut.mean(), rtol=1e-6
  )
  assert is_cut.mean() > 0.1


def test_trap_13_25_microbatches_change_neither_step_nor_metric():
  pieces = run(make_rollout(), config=update.Config(2, 2, microbatches=8))
  assert_same(run(make_rollout()), pieces)


def test_trap_10_11_27_padding_changes_nothing():
  plain = run(make_rollout())
  assert_same(plain, run(make_rollout(padding=100, poison=np.nan)))


def test_trap_12_sharded_over_8_devices_equals_plain():
  mesh = Mesh(np.array(jax.devices()), ("data",))
  rows = NamedSharding(mesh, PartitionSpec("data"))

  def constrain(tree):
    return jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(x, rows), tree
    )

  sharded = jax.tree.map(lambda x: jax.device_put(x, rows), make_rollout())
  found = run(sharded, constrain=constrain)
  assert_same(found, run(make_rollout()))


def test_golden_metrics_of_one_step():
  rollout = make_rollout()
  _, metrics = run(rollout, config=update.Config(epochs=1, minibatches=1))
  mask = np.asarray(rollout.response_mask) > 0
  returns = np.asarray(rollout.returns, np.float64)[mask]
  values = np.asarray(rollout.values, np.float64)[mask]
  white = np.asarray(rollout.advantages, np.float64)[mask]
  raw = returns - values
  np.testing.assert_allclose((raw - raw.mean()) / raw.std(), white, atol=1e-4)

  grads = gradient(parameters(), rollout)
  norms = [float(np.sqrt(np.sum(np.square(g)))) for g in jax.tree.leaves(grads)]
  expected = {
    "ppo/policy_loss": -white.mean(),
    "ppo/value_loss": 0.5 * np.mean(raw**2),
    "ppo/explained_variance": 1 - raw.var() / returns.var(),
    "ppo/advantage_mean_raw": raw.mean(),
    "ppo/advantage_std_raw": raw.std(),
    "ppo/gradient_norm_policy": norms[0],
    "ppo/gradient_norm_value": norms[1],
    "ppo/gradient_norm": np.hypot(*norms),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_an_epoch_over_the_kl_limit_is_the_last():
  rollout = make_rollout()
  settings = {
    "rate": 5.0,
    "config": update.Config(epochs=4, minibatches=2),
    "algorithm_config": ppo.Config(update_kl_limit=1e-3),
  }
  state, metrics = run(rollout, **settings)
  assert metrics["ppo/epochs"] == 1 and state.step == 2
  assert metrics["sys/skipped_updates"] == 0 and state.skipped == 0
  assert metrics["ppo/approximate_kl"] > 1e-3
  order = jax.random.permutation(jax.random.split(KEY, 4)[0], N)
  params = parameters()
  for rows in order.reshape(2, -1):
    grads = gradient(params, jax.tree.map(lambda x, r=rows: x[r], rollout))
    params = jax.tree.map(lambda p, g: p - 5.0 * g, params, grads)
  assert_same(state.params, params, rtol=1e-3, atol=1e-4)
  still = rollout.replace(advantages=0 * rollout.advantages)
  state, metrics = run(still, **settings)
  assert metrics["ppo/epochs"] == 4 and state.step == 8


def test_steps_that_are_not_finite_are_refused_and_counted():
  rollout = make_rollout()
  advantages = rollout.advantages.at[5, 2].set(jnp.nan)
  config = update.Config(epochs=2, minibatches=4)
  state, metrics = run(rollout.replace(advantages=advantages), config=config)
  assert state.step == 6 and metrics["sys/skipped_updates"] == 2
  assert_same(state.params, loop(rollout, config, 0.5, without=5))
  assert all(np.isfinite(x) for x in metrics.values())


def test_the_kl_of_an_epoch_is_the_mean_over_its_minibatches():
  """Of two the first is at 0, so the larger one is twice the mean."""
  rollout, rate = make_rollout(), 5.0
  once = update.Config(epochs=1, minibatches=2)
  mean = float(run(rollout, rate=rate, config=once)[1]["ppo/approximate_kl"])
  for share, is_over in ((0.9, True), (1.5, False)):
    _, metrics = run(
      rollout,
      rate=rate,
      config=update.Config(epochs=2, minibatches=2),
      algorithm_config=ppo.Config(update_kl_limit=share * mean),
    )
    assert metrics["ppo/epochs"] == (1 if is_over else 2)


def test_metrics_of_steps_that_were_all_refused_are_nan():
  rollout = make_rollout()
  broken = rollout.replace(advantages=rollout.advantages * jnp.nan)
  state, metrics = run(broken, config=update.Config(epochs=1, minibatches=2))
  assert state.step == 0 and metrics["sys/skipped_updates"] == 2
  assert np.isnan(metrics["ppo/policy_loss"])
  assert np.isnan(metrics["ppo/ratio_max"])  # a maximum too, not -inf


def test_a_minibatch_without_tokens_moves_nothing():
  """Filler rows of packing: not even momentum may act on them."""
  rollout = make_rollout()
  empty = rollout.replace(response_mask=jnp.zeros_like(rollout.response_mask))
  optimizer = optax.adamw(0.1)
  step = jax.jit(
    functools.partial(
      update.update,
      algorithm=ppo,
      algorithm_config=PPO,
      config=DEFAULT,
      apply=apply,
      optimizer=optimizer,
    )
  )
  state, _ = step(make_state(optimizer), FROZEN, rollout, KEY)
  after, _ = step(state, FROZEN, empty, KEY)
  assert_same(after.params, state.params, rtol=0, atol=0)
  assert int(after.step) == int(state.step) and int(after.skipped) == 0


def test_packed_rows_make_the_same_update():
  """Two answers per row: token fields are packed, score stays per sample."""
  rollout = make_rollout()

  def pack(x):
    return x.reshape(N // 2, 2 * L, *x.shape[2:])

  packed = jax.tree.map(pack, rollout.replace(score=None, finish_reason=None))
  packed = packed.replace(
    score=rollout.score,
    finish_reason=rollout.finish_reason,
    segment_ids=pack(jnp.tile(jnp.array([[1], [2]]), (N // 2, L))),
    positions=pack(jnp.tile(jnp.arange(L), (N, 1))),
  )
  config = update.Config(epochs=1, minibatches=1)
  assert_same(run(rollout, config=config), run(packed, config=config))


def test_frozen_weights_reach_apply():
  frozen = {"shift": jnp.float32(2.0)}
  rollout = make_rollout()
  once = update.Config(epochs=1, minibatches=1)
  _, metrics = run(rollout, frozen=frozen, config=once)
  kept = np.asarray(rollout.response_mask) > 0
  error = np.asarray(rollout.values - rollout.returns, np.float64)[kept]
  # Values 2 above the old ones, clipped at 0.2 above them.
  losses = np.maximum((error + 2.0) ** 2, (error + 0.2) ** 2)
  np.testing.assert_allclose(
    metrics["ppo/value_loss"], losses.mean() / 2, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"config": update.Config(minibatches=3)}, "minibatches=3: 16 rows"),
    ({"config": update.Config(1, 2, 3)}, "microbatches=3: 8 rows"),
  ],
)
def test_errors(kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(make_rollout(), **kwargs)


def test_errors_of_the_config():
  with pytest.raises(ValueError, match="epochs=0: must be >= 1"):
    update.Config(epochs=0)
