"""The shared update: means over the batch, microbatches, the KTO baseline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms.preference import (
  dpo,
  kto,
  orpo,
  registry,
  update,
)
from rlhf_jax.types import PreferenceBatch, TrainState
from tests import plain

VOCABULARY, ROWS, LENGTH = 5, 6, 4
CONFIGS = {
  "dpo": dpo.Config(),
  "kto": kto.Config(beta=0.7),
  "orpo": orpo.Config(),
}


def apply(params, frozen, batch):
  """A table of logits for each token before: [B, K, L]."""
  table = params["table"] + frozen["table"]
  before = jnp.pad(batch.tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
  return plain.logprobs_of_logits(table[before], batch.tokens)


def problem(seed=0, labels=None):
  rng = np.random.default_rng(seed)
  shape = (ROWS, 2, LENGTH)
  mask = np.ones(shape, np.float32)
  mask[..., 0] = 0.0
  mask[::2, 1, 3:] = 0.0  # ragged
  params = {"table": jnp.asarray(rng.normal(size=(5, VOCABULARY)), jnp.float32)}
  frozen = {"table": jnp.asarray(rng.normal(size=(5, VOCABULARY)), jnp.float32)}
  if labels is None:
    labels = rng.integers(0, 2, ROWS)
  batch = PreferenceBatch(
    tokens=jnp.asarray(rng.integers(0, VOCABULARY, shape), jnp.int32),
    valid_mask=jnp.ones(shape),
    loss_mask=jnp.asarray(mask),
    label=jnp.asarray(labels, jnp.float32),
    weight=jnp.ones(ROWS),
  )
  fixed = apply(
    {"table": params["table"] + 0.3 * params["table"].T}, frozen, batch
  )
  return params, frozen, batch.replace(reference_logprobs=fixed)


@functools.partial(jax.jit, static_argnums=(0, 4))
def step(name, params, frozen, batch, microbatches=1):
  module = registry.ALGORITHMS[name]
  optimizer = optax.sgd(1.0)
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  return update.update(
    state,
    frozen,
    batch,
    jax.random.key(0),
    algorithm=module,
    algorithm_config=CONFIGS[name],
    config=update.Config(microbatches),
    apply=apply,
    optimizer=optimizer,
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_trap_13_trap_25_microbatches_change_nothing(name):
  params, frozen, batch = problem(labels=[1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
  whole, expected = step(name, params, frozen, batch)
  # The rate is 1 and there is no momentum, so the step is the gradient.
  assert float(whole.step) == 1
  np.testing.assert_allclose(
    expected["preference/gradient_norm"],
    np.linalg.norm(whole.params["table"] - params["table"]),
    rtol=1e-5,
  )
  state, found = step(name, params, frozen, batch, 3)
  np.testing.assert_allclose(
    state.params["table"], whole.params["table"], rtol=1e-5, atol=1e-6
  )
  assert set(found) == set(expected)
  for key, x in expected.items():
    np.testing.assert_allclose(found[key], x, rtol=2e-5, atol=1e-6, err_msg=key)


def test_a_step_is_the_gradient_of_the_mean_loss():
  params, frozen, batch = problem()
  state, metrics = step("dpo", params, frozen, batch)

  def mean(params):
    logprobs = apply(params, frozen, batch)
    return jnp.mean(dpo.loss(logprobs, batch, dpo.Config())[0])

  expected, grad = jax.value_and_grad(mean)(params)
  np.testing.assert_allclose(metrics["preference/loss"], expected, rtol=1e-6)
  np.testing.assert_allclose(
    params["table"] - state.params["table"], grad["table"], atol=1e-6
  )


def test_kto_compares_with_the_mean_over_the_whole_batch():
  """As written out: z from candidate 1 of all rows, gradient of candidate 0."""
  params, frozen, batch = problem(labels=[1.0, 0.0, 1.0, 1.0, 0.0, 0.0])

  def ratio(params):
    difference = apply(params, frozen, batch) - batch.reference_logprobs
    return jnp.sum(difference * batch.loss_mask, axis=-1)

  z = float(jnp.mean(ratio(params)[:, 1]))
  assert z > 0.1, "the test wants a baseline that is not cut"

  def mean(params):
    gain = 0.7 * (ratio(params)[:, 0] - z)
    signed = jnp.where(batch.label > 0.5, gain, -gain)
    return jnp.mean(1.0 - jax.nn.sigmoid(signed))

  value, grad = jax.value_and_grad(mean)(params)
  for parts in (1, 3):
    state, metrics = step("kto", params, frozen, batch, parts)
    np.testing.assert_allclose(metrics["preference/kl"], z, rtol=1e-5)
    np.testing.assert_allclose(metrics["preference/loss"], value, rtol=1e-5)
    np.testing.assert_allclose(
      params["table"] - state.params["table"], grad["table"], atol=1e-6
    )


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_rows_without_weight_count_for_nothing(name):
  params, frozen, batch = problem(labels=[1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
  part = jax.tree.map(lambda x: jnp.concatenate([x[:4], x[:2]]), batch)
  part = part.replace(weight=jnp.array([0.5, 0.5, 1.0, 1.0, 0.5, 0.5]))
  whole, expected = step(name, params, frozen, part)
  weight = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
  poisoned = batch.replace(
    weight=weight,
    reference_logprobs=batch.reference_logprobs.at[4:].set(jnp.nan),
  )
  state, found = step(name, params, frozen, poisoned)
  np.testing.assert_allclose(
    state.params["table"], whole.params["table"], rtol=1e-6, atol=1e-7
  )
  for key, x in expected.items():
    np.testing.assert_allclose(found[key], x, rtol=1e-5, err_msg=key)


def test_accuracy_of_nothing_but_ties_is_zero_and_trains_as_a_tie():
  params, frozen, batch = problem(labels=[0.5] * ROWS)
  _, metrics = step("dpo", params, frozen, batch)
  assert float(metrics["preference/accuracy"]) == 0.0
  # Both orders, half each: mean of (log(1 + e^-x) + log(1 + e^x)) / 2.
  ratio = apply(params, frozen, batch) - batch.reference_logprobs
  u = np.sum(np.asarray(ratio * batch.loss_mask, np.float64), axis=-1)
  x = 0.1 * (u[:, 0] - u[:, 1])
  expected = (np.logaddexp(0, x) + np.logaddexp(0, -x)).mean() / 2
  np.testing.assert_allclose(metrics["preference/loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_measure_adds_up_to_the_metrics_of_a_step(name):
  params, frozen, batch = problem(labels=[1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
  _, expected = step(name, params, frozen, batch)
  module = registry.ALGORITHMS[name]
  measure = jax.jit(
    functools.partial(
      update.measure,
      algorithm=module,
      algorithm_config=CONFIGS[name],
      apply=apply,
    )
  )
  found = update.means(measure(params, frozen, batch))
  for key, x in found.items():
    np.testing.assert_allclose(x, expected[key], rtol=1e-5, err_msg=key)
  if name == "kto":
    return  # its baseline is that of the batch
  halves = [
    measure(params, frozen, batch.replace(weight=batch.weight * mask))
    for mask in (jnp.arange(6) < 2, jnp.arange(6) >= 2)
  ]
  added = update.means(jax.tree.map(jnp.add, *halves))
  for key, x in found.items():
    np.testing.assert_allclose(added[key], x, rtol=1e-5, err_msg=key)


def test_trap_12_devices_see_one_batch():
  """Eight simulated devices: the same baseline, loss and gradient as one."""
  params, frozen, batch = problem(labels=[1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch)
  _, expected = step("kto", params, frozen, twice)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  placed = jax.device_put(twice, rows)
  _, found = step("kto", params, frozen, placed)
  for key, x in expected.items():
    np.testing.assert_allclose(found[key], x, rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_loss_that_is_not_finite_is_refused():
  params, frozen, batch = problem()
  broken = {"table": params["table"].at[0, 0].set(jnp.nan)}
  state, metrics = step("dpo", broken, frozen, batch)
  assert float(metrics["sys/skipped_updates"]) == 1.0
  assert int(state.step) == 0 and int(state.skipped) == 1


def test_splits_that_do_not_fit_are_refused():
  params, frozen, batch = problem()
  with pytest.raises(ValueError, match="microbatches=4: 6 rows"):
    step("dpo", params, frozen, batch, 4)
  with pytest.raises(ValueError, match="microbatches=0: must be >= 1"):
    update.Config(0)
  alone = update.candidates(batch, 0, 1)
  with pytest.raises(ValueError, match="K=1 candidates: this method reads 2"):
    step("kto", params, frozen, alone)
