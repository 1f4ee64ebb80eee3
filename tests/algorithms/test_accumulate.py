"""Microbatches with global denominators; the guarded optimizer step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms import accumulate
from rlhf_jax.optimizer import Config, make_optimizer
from rlhf_jax.types import TrainState

RNG = np.random.default_rng(1)
LENGTHS = np.array([1, 9, 2, 8, 3, 7, 4, 6])
BATCH = {
  "x": jnp.asarray(RNG.normal(size=(8, 9, 3)), jnp.float32),
  "mask": jnp.asarray(np.arange(9)[None] < LENGTHS[:, None], jnp.float32),
}
PARAMS = {"w": jnp.asarray(RNG.normal(size=3), jnp.float32)}


def loss(params, batch, tokens):
  y = jnp.square(jnp.einsum("nld,d->nl", batch["x"], params["w"]) - 1.0)
  value = ops.masked_mean(y, batch["mask"], tokens)
  return value, {"mean": value, "y_max": jnp.max(y * batch["mask"])}


def mean_of_means(params, batch, tokens):
  del tokens
  value, _ = loss(params, batch, jnp.sum(batch["mask"]))
  return value / 8, {}


def test_trap_13_25_eight_microbatches_equal_one():
  tokens = jnp.sum(BATCH["mask"])
  whole, pieces = (
    accumulate.accumulate(loss, PARAMS, BATCH, n, tokens) for n in (1, 8)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), whole, pieces
  )
  wrong, _, _ = accumulate.accumulate(mean_of_means, PARAMS, BATCH, 8, tokens)
  assert np.abs(wrong["w"] - whole[0]["w"]).max() > 1e-2


def test_rows_are_dealt_out_in_strides():
  parts = accumulate.split_rows({"i": jnp.arange(6)}, 3)
  np.testing.assert_array_equal(parts["i"], [[0, 3], [1, 4], [2, 5]])


def test_gradients_keep_the_dtype_of_the_parameters():
  params = {"w": PARAMS["w"].astype(jnp.bfloat16)}
  grads, _, _ = accumulate.accumulate(
    loss, params, BATCH, 4, jnp.sum(BATCH["mask"])
  )
  assert grads["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("microbatches", [0, 3])
def test_microbatches_must_divide_the_rows(microbatches):
  with pytest.raises(ValueError, match=f"microbatches={microbatches}: 8 rows"):
    accumulate.accumulate(loss, PARAMS, BATCH, microbatches, 1.0)


def test_leading_axes_must_agree():
  with pytest.raises(ValueError, match="leading axes differ.*'score'"):
    accumulate.row_count({"x": jnp.zeros((4, 2)), "score": jnp.zeros(3)})


def test_microbatches_hold_no_second_tree_of_gradients():
  """Each is added to the sum, which is what is returned, as it is formed."""
  params = {name: jnp.zeros((64, 64)) for name in "abcd"}

  def loss(params, x):
    for weight in params.values():
      x = jnp.tanh(x @ weight)
    return jnp.sum(x), {}

  @jax.jit
  def sums(params, x):
    grads, _, _ = accumulate.accumulate(loss, params, x, 4)
    return grads

  memory = sums.lower(params, jnp.ones((8, 64))).compile().memory_analysis()
  tree = 4 * sum(x.size for x in params.values())
  assert memory.temp_size_in_bytes < 0.5 * tree


def fresh_state(optimizer):
  return TrainState(
    step=jnp.int32(5),
    params=PARAMS,
    opt_state=optimizer.init(PARAMS),
    skipped=jnp.int32(1),
  )


def test_a_finite_step_is_taken_and_clears_the_count():
  optimizer = optax.sgd(0.1, momentum=0.9)
  grads = {"w": jnp.array([3.0, 0.0, 4.0])}
  state, report = accumulate.apply_gradients(
    fresh_state(optimizer), grads, optimizer, jnp.bool_(True)
  )
  np.testing.assert_allclose(
    state.params["w"], PARAMS["w"] - 0.1 * grads["w"], rtol=1e-6
  )
  np.testing.assert_allclose(report.gradient_norm, 5.0)
  assert (state.step, state.skipped, report.applied) == (6, 0, True)


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(where):
  optimizer = optax.adam(0.1)
  bad = jnp.nan if where == "gradient" else 1.0
  before = fresh_state(optimizer)
  state, report = jax.jit(
    lambda s, g, f: accumulate.apply_gradients(s, g, optimizer, f)
  )(before, {"w": jnp.array([1.0, bad, 1.0])}, jnp.bool_(where != "loss"))
  for name in ("params", "opt_state", "step"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(state, name), getattr(before, name)
    )
  assert (state.skipped, report.applied) == (2, False)


@pytest.mark.parametrize("is_in_scan", [False, True])
def test_a_guarded_step_writes_moments_and_weights_where_they_lie(is_in_scan):
  """No copy of old moments, of clipped gradients, or of weights refused.

  Compilers before jax 0.10.2 keep one tree; the scan once took four.
  """
  optimizer = make_optimizer(Config(learning_rate=0.1, clip_norm=1.0))
  params = {name: jnp.zeros((64, 64)) for name in "abcd"}
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.int32(0),
  )

  def alone(state, grads):
    return accumulate.apply_gradients(state, grads, optimizer, jnp.bool_(True))

  def scanned(state, grads):
    def step(state, tokens):
      return accumulate.take_step(
        state, grads, jnp.float32(0.0), optimizer, tokens, "area/norm"
      )

    return jax.lax.scan(step, state, jnp.ones(3))

  step = jax.jit(scanned if is_in_scan else alone, donate_argnums=0)
  memory = step.lower(state, params).compile().memory_analysis()
  tree = 4 * sum(x.size for x in params.values())
  assert memory.alias_size_in_bytes > 3 * tree
  kept = 0.1 if jax.__version_info__ >= (0, 10, 2) else 1.1
  assert memory.temp_size_in_bytes < kept * tree


def test_a_step_without_tokens_is_passed_over():
  """Momentum of 1 on each weight: a step of gradient 0 would move by 0.9."""
  optimizer = optax.sgd(1.0, momentum=0.9)
  before = fresh_state(optimizer)
  before = before.replace(
    opt_state=jax.tree.map(jnp.ones_like, before.opt_state)
  )

  @jax.jit
  def step(tokens):
    zero = {"w": jnp.zeros(3)}
    return accumulate.take_step(
      before, zero, jnp.float32(0.0), optimizer, tokens, "area/norm"
    )

  state, flags = step(jnp.float32(0.0))
  np.testing.assert_array_equal(state.params["w"], PARAMS["w"])
  assert (state.step, state.skipped) == (5, 1)
  assert flags == {"area/norm": 0.0, "executed": False, "applied": False}
  state, flags = step(jnp.float32(1.0))
  np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 0.9, rtol=1e-6)
  assert flags == {"area/norm": 0.0, "executed": True, "applied": True}
