"""Epochs and minibatches of PPO, through a bigram table as the policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import ops
from rlhf_jax.algorithms import sft
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.types import Rollout, TokenBatch, TrainState

N, L, V, D = 16, 6, 7, 3
TEMPERATURE = 0.6
LENGTHS = np.array([1, 4, 2, 3, 4, 1, 2, 3] * 2)
KEY = jax.random.key(3)
PPO = ppo.Config()
DEFAULT = update.Config(epochs=2, minibatches=2)


def parameters():
  rng = np.random.default_rng(10)
  return {
    "policy": {"table": jnp.asarray(rng.normal(size=(V, V)), jnp.float32)},
    "value": {"w": jnp.asarray(rng.normal(size=(D,)), jnp.float32)},
  }


def policy_logits(params, tokens):
  before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
  return params["policy"]["table"][before]


def apply(params, frozen, rollout, temperature=TEMPERATURE):
  logits = policy_logits(params, rollout.tokens) / temperature
  values = rollout.hidden["value"] @ params["value"]["w"]
  values = values + frozen["shift"]
  logprobs = ops.logprobs_of_logits(logits, rollout.tokens)
  return logprobs, ops.entropy(logits), values


@functools.cache
def make_rollout(padding=0, poison=0.0):
  """Answers sampled from the table at TEMPERATURE; junk on the padding."""
  rng = np.random.default_rng(11)
  columns = np.arange(L + padding)[None] - 2
  mask = (columns >= 0) & (columns < LENGTHS[:, None])
  tokens = rng.integers(0, V, (N, L))
  tokens = np.pad(tokens, ((0, 0), (0, padding)))
  hidden = np.pad(
    rng.normal(size=(N, L, D)), ((0, 0), (0, padding), (0, 0))
  ).astype(np.float32)

  def field(x):
    x = np.pad(x, ((0, 0), (0, padding)))
    return jnp.asarray(np.where(mask, x, poison), jnp.float32)

  rollout = Rollout(
    tokens=jnp.asarray(tokens),
    valid_mask=jnp.asarray(columns < LENGTHS[:, None], jnp.float32),
    response_mask=jnp.asarray(mask, jnp.float32),
    behaviour_logprobs=jnp.zeros(mask.shape),
    finish_reason=jnp.zeros(N, jnp.int32),
    reference_logprobs=jnp.zeros(mask.shape),
    score=jnp.asarray(rng.normal(size=N), jnp.float32),
    rewards=field(rng.normal(size=(N, L))),
    hidden={"value": jnp.asarray(hidden)},
  )
  logprobs, _, values = apply(parameters(), FROZEN, rollout)
  rollout = rollout.replace(
    behaviour_logprobs=field(np.asarray(logprobs)[:, :L]),
    values=field(np.asarray(values)[:, :L]),
  )
  return ppo.advantages(rollout, PPO)


def make_state(optimizer, params=None):
  params = parameters() if params is None else params
  return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))


FROZEN = {"shift": jnp.float32(0.0)}


@functools.cache
def compiled(algorithm_config, config, rate, apply, **kwargs):
  return jax.jit(
    functools.partial(
      update.update,
      algorithm=ppo,
      algorithm_config=algorithm_config,
      config=config,
      apply=apply,
      optimizer=optax.sgd(rate),
      **kwargs,
    ),
    donate_argnums=0,
  )


def run(
  rollout,
  *,
  algorithm_config=PPO,
  config=DEFAULT,
  rate=0.5,
  frozen=FROZEN,
  ptx_batch=None,
  apply=apply,
  **kwargs,
):
  step = compiled(algorithm_config, config, rate, apply, **kwargs)
  return step(make_state(optax.sgd(rate)), frozen, rollout, KEY, ptx_batch)


def assert_same(a, b, rtol=1e-4, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
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


def text(rows=8):
  rng = np.random.default_rng(12)
  mask = jnp.asarray(np.arange(5)[None] < rng.integers(2, 6, (rows, 1)))
  return TokenBatch(
    tokens=jnp.asarray(rng.integers(0, V, (rows, 5))),
    valid_mask=mask.astype(jnp.float32),
    loss_mask=mask.astype(jnp.float32).at[:, 0].set(0.0),
  )


def text_apply(params, frozen, batch):
  logits = policy_logits(params, batch.tokens)
  return ops.logprobs_of_logits(logits, batch.tokens), ops.entropy(logits)


def test_ptx_adds_the_weighted_gradient_of_pre_training_text():
  rollout, batch = make_rollout(), text()
  config = update.Config(epochs=1, minibatches=1, microbatches=4)

  def cross_entropy(params):
    counts = sft.denominators(batch, sft.Config())
    outputs = text_apply(params, {}, batch)
    return sft.loss(*outputs, batch, sft.Config(), counts)[0]

  value, grads = jax.value_and_grad(cross_entropy)(parameters())
  plain, plain_metrics = run(rollout, config=update.Config(1, 1))
  state, metrics = run(
    rollout,
    config=config,
    algorithm_config=ppo.Config(ptx_coefficient=27.8),
    ptx_batch=batch,
    ptx_apply=text_apply,
  )
  assert_same(
    state.params,
    jax.tree.map(lambda p, g: p - 0.5 * 27.8 * g, plain.params, grads),
  )
  norm = np.sqrt(np.sum(np.square(grads["policy"]["table"])))
  np.testing.assert_allclose(metrics["ppo/ptx_loss"], value, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["ppo/gradient_norm_ptx_ratio"],
    27.8 * norm / plain_metrics["ppo/gradient_norm"],
    rtol=1e-4,
  )


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


def test_value_update_trains_the_critic_alone():
  rollout = make_rollout()
  optimizer = optax.adam(0.05)
  config = update.Config(epochs=30, minibatches=2, microbatches=2)

  def critic(params, frozen, rollout):
    return rollout.hidden["value"] @ params["w"] + frozen["shift"]

  step = jax.jit(
    functools.partial(
      update.value_update, config=config, apply=critic, optimizer=optimizer
    )
  )
  state = make_state(optimizer, parameters()["value"])
  state, metrics = step(state, FROZEN, rollout, KEY)
  fitted = critic(state.params, FROZEN, rollout)
  after = update.explained_variance(rollout.replace(values=fitted))
  assert state.step == 60 and metrics["ppo/epochs"] == 30
  assert after > metrics["ppo/explained_variance"] + 0.1
  mask = np.asarray(rollout.response_mask) > 0
  features = np.asarray(rollout.hidden["value"])[mask]
  best = np.linalg.lstsq(features, np.asarray(rollout.returns)[mask])[0]
  np.testing.assert_allclose(state.params["w"], best, atol=0.1)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"config": update.Config(minibatches=3)}, "minibatches=3: 16 rows"),
    ({"config": update.Config(1, 2, 3)}, "microbatches=3: 8 rows"),
    (
      {"algorithm_config": ppo.Config(ptx_coefficient=1.0)},
      "ptx_coefficient=1.0, ptx_batch given: False",
    ),
    ({"ptx_batch": text()}, "ptx_coefficient=0.0, ptx_batch given: True"),
  ],
)
def test_errors(kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(make_rollout(), **kwargs)


def test_errors_of_value_update_and_config():
  with pytest.raises(ValueError, match="Run ppo.advantages first"):
    update.value_update(
      make_state(optax.sgd(1.0)),
      {},
      make_rollout().replace(returns=None),
      KEY,
      config=update.Config(),
      apply=apply,
      optimizer=optax.sgd(1.0),
    )
  with pytest.raises(ValueError, match="epochs=0: must be >= 1"):
    update.Config(epochs=0)
