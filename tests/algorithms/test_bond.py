"""BOND against exact gradients and exact best-of-n on enumerable problems."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import best_of_n, bond
from tests.algorithms import exact_best_of_n

ANSWERS = 6
REFERENCE = np.array([0.3, 0.05, 0.25, 0.1, 0.2, 0.1])
SCORES = np.array([0.0, 3.0, 1.0, 1.0, -1.0, 2.0])
N = 4


def levels():
  """Returns log p_<=, log p_< of every answer."""
  at_most = np.array([REFERENCE[s >= SCORES].sum() for s in SCORES])
  below = np.array([REFERENCE[s > SCORES].sum() for s in SCORES])
  with np.errstate(divide="ignore"):
    return jnp.log(jnp.array(at_most)), jnp.array(np.log(below))


TARGET = exact_best_of_n.probabilities_of_best(REFERENCE, SCORES, N)


def rows_of(logits, answers):
  """Returns log-probabilities [B, 3]: padding, the answer, padding as NaN."""
  picked = jax.nn.log_softmax(logits)[answers]
  half = 0.5 * picked
  return jnp.stack([half, half, jnp.full_like(picked, jnp.nan)], axis=1)


def pair_loss(logits, best, own, ratios, config):
  mask = jnp.broadcast_to(jnp.array([[1.0, 1.0, 0.0]]), (own.shape[0], 3))
  reference = rows_of(jnp.log(jnp.array(REFERENCE)), own)
  return bond.loss(
    rows_of(logits, best),
    mask,
    rows_of(logits, own),
    mask,
    reference,
    ratios[own],
    config,
  )[0]


def jeffreys(logits, weight, extra):
  log_pi = jax.nn.log_softmax(logits)
  pi, target = jnp.exp(log_pi), jnp.array(TARGET)
  reference = jnp.array(REFERENCE)
  forward = jnp.sum(target * (jnp.log(target) - log_pi))
  backward = jnp.sum(pi * (log_pi - jnp.log(target)))
  kl = jnp.sum(pi * (log_pi - jnp.log(reference)))
  return (1 - weight) * forward + weight * backward + extra * kl


exact_gradient = jax.jit(jax.grad(jeffreys))
ratio_of = jax.jit(bond.log_best_of_n_ratio, static_argnums=1)


def test_ratio_is_that_of_the_exact_distribution():
  at_most, below = levels()
  ratio = ratio_of(at_most, N, below)
  np.testing.assert_allclose(ratio, np.log(TARGET / REFERENCE), atol=1e-5)
  one = ratio_of(at_most, 1, below)
  np.testing.assert_allclose(one, np.zeros(ANSWERS), atol=1e-6)
  # Control: atoms matter here, so leaving p_< out is visibly off.
  rough = ratio_of(at_most, N)
  assert np.max(np.abs(rough - ratio)) > 0.3


def test_without_atoms_p_below_is_not_needed():
  at_most = jnp.array([-0.5, -2.0, -1e-7])
  exact = ratio_of(at_most, 8, at_most - 1e-7)
  rough = ratio_of(at_most, 8)
  np.testing.assert_allclose(exact, rough, atol=1e-5)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_trap_15_expected_gradient_is_the_exact_one(weight):
  """Every pair of answers, weighted; padding holds NaN (trap 27)."""
  logits = jnp.array(np.random.default_rng(0).normal(size=ANSWERS))
  at_most, below = levels()
  ratios = ratio_of(at_most, N, below)
  config = bond.Config(weight, reference_kl=0.2, has_baseline=False)
  best, own = np.meshgrid(np.arange(ANSWERS), np.arange(ANSWERS))
  best, own = jnp.array(best.reshape(-1, 1)), jnp.array(own.reshape(-1, 1))
  grads = jax.jit(
    jax.vmap(lambda b, o: jax.grad(pair_loss)(logits, b, o, ratios, config))
  )(best, own)
  pi = np.array(jax.nn.softmax(logits))
  chance = TARGET[best[:, 0]] * pi[own[:, 0]]
  expected = chance @ np.array(grads)
  exact = exact_gradient(logits, weight, 0.2)
  np.testing.assert_allclose(expected, exact, atol=2e-5)
  wrong = exact_gradient(logits, 0.6, 0.2)  # control
  assert np.max(np.abs(expected - np.array(wrong))) > 1e-2


def test_baseline_leaves_the_expected_gradient_alone():
  logits = jnp.array(np.random.default_rng(1).normal(size=ANSWERS))
  at_most, below = levels()
  ratios = ratio_of(at_most, N, below)
  first, second = np.meshgrid(np.arange(ANSWERS), np.arange(ANSWERS))
  own = jnp.array(np.stack([first.ravel(), second.ravel()], axis=1))
  config = bond.Config(1.0)
  grads = jax.jit(
    jax.vmap(lambda o: jax.grad(pair_loss)(logits, o, o, ratios, config))
  )(own)
  pi = np.array(jax.nn.softmax(logits))
  expected = (pi[own[:, 0]] * pi[own[:, 1]]) @ np.array(grads)
  exact = exact_gradient(logits, 1.0, 0.0)
  np.testing.assert_allclose(expected, exact, atol=2e-5)


def learn(step, steps, seed):
  """Scans `step(logits, anchor, key)` gradients with a decaying Adam."""
  optimizer = optax.adam(optax.linear_schedule(0.05, 0.001, steps))
  start = jnp.log(jnp.array(REFERENCE))

  def body(carry, key):
    logits, anchor, state = carry
    updates, state = optimizer.update(step(logits, anchor, key), state)
    logits = optax.apply_updates(logits, updates)
    return (logits, bond.move_anchor(anchor, logits, 0.02), state), None

  keys = jax.random.split(jax.random.key(seed), steps)
  run = jax.jit(
    lambda: jax.lax.scan(body, (start, start, optimizer.init(start)), keys)
  )
  return jax.nn.softmax(run()[0][0])


def test_bond_learns_the_distribution_of_best_of_4():
  at_most, below = levels()
  ratios = ratio_of(at_most, N, below)

  def step(logits, anchor, key):
    del anchor
    first, second = jax.random.split(key)
    reference = jnp.log(jnp.array(REFERENCE))
    drawn = jax.random.categorical(first, reference, shape=(128, N))
    scores = jnp.array(SCORES)[drawn]
    # Ties go to the first sample, which is as good as a random one.
    best = drawn[jnp.arange(128), best_of_n.select_best(scores)]
    own = jax.random.categorical(second, logits, shape=(128,))
    return jax.grad(pair_loss)(logits, best, own, ratios, bond.Config())

  learned = np.array(learn(step, 300, seed=0))
  assert 0.5 * np.abs(learned - TARGET).sum() < 0.05
  assert 0.5 * np.abs(REFERENCE - TARGET).sum() > 0.3  # control: it had to move


def test_j_bond_goes_beyond_best_of_2():
  scores = jnp.array(SCORES)
  mask = jnp.broadcast_to(jnp.array([[1.0, 1.0, 0.0]]), (128, 3))

  def gradient(logits, anchor, key):
    first, second = jax.random.split(key)
    pair = jax.random.categorical(first, anchor, shape=(128, 2))
    best = pair[jnp.arange(128), best_of_n.select_best(scores[pair])]
    own = jax.random.categorical(second, logits, shape=(128,))
    ratio = bond.j_bond_ratio(scores[own], scores[pair])
    return jax.grad(
      lambda x: bond.loss(
        rows_of(x, best),
        mask,
        rows_of(x, own),
        mask,
        rows_of(anchor, own),
        ratio,
        bond.Config(),
      )[0]
    )(logits)

  learned = np.array(learn(gradient, 300, seed=1))
  best_of_2 = exact_best_of_n.probabilities_of_best(REFERENCE, SCORES, 2)
  assert learned @ SCORES > best_of_2 @ SCORES + 0.3


def test_j_bond_reward_by_hand():
  scores = jnp.array([0.0, 1.0, 5.0, -2.0])
  pairs = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-3.0, 4.0]])
  wanted = [-math.log(16.0), 0.0, 0.0, 0.0]
  np.testing.assert_allclose(
    bond.j_bond_ratio(scores, pairs), wanted, rtol=1e-6
  )


def test_quantiles_by_hand_and_finite():
  scores = jnp.array([0.5, -9.0, 9.0])
  reference = jnp.array([[0.0, 0.5, 1.0, 2.0]] * 3)
  wanted = np.log([3 / 5, 1 / 5, 1.0])
  np.testing.assert_allclose(
    bond.log_quantile(scores, reference), wanted, atol=1e-6
  )


def test_trap_18_zero_weights_are_honoured():
  logits = jnp.array(np.random.default_rng(2).normal(size=ANSWERS))
  own = jnp.array([0, 3, 5])
  ratios = levels()[0]
  sft = jax.jit(
    lambda x: jax.grad(pair_loss)(x, own, own, ratios, bond.Config(0.0))
  )(logits)
  pi = np.exp(logits) / np.exp(logits).sum()
  plain = pi - np.isin(np.arange(ANSWERS), own) / 3  # of cross-entropy
  np.testing.assert_allclose(sft, plain, atol=1e-6)
  tree = {"a": jnp.array([1.0, 2.0])}
  moved = bond.move_anchor(tree, {"a": jnp.array([3.0, 6.0])}, 0.0)
  np.testing.assert_array_equal(moved["a"], tree["a"])
  moved = bond.move_anchor(tree, {"a": jnp.array([3.0, 6.0])}, 0.25)
  np.testing.assert_allclose(moved["a"], [1.5, 3.0])


@pytest.mark.parametrize(
  ("field", "value"),
  [("backward_weight", 1.5), ("reference_kl", -1.0), ("anchor_rate", math.nan)],
)
def test_settings_out_of_range_are_refused(field, value):
  with pytest.raises(ValueError, match=f"{field}={value}"):
    dataclasses.replace(bond.Config(), **{field: value})


def test_shapes_are_checked():
  row = jnp.zeros((1, 3))
  with pytest.raises(ValueError, match="has_baseline=False"):
    bond.loss(row, row, row, row, row, jnp.zeros(1), bond.Config())
  with pytest.raises(ValueError, match="two anchor samples"):
    bond.j_bond_ratio(jnp.zeros(4), jnp.zeros((4, 3)))
  with pytest.raises(ValueError, match="reference_scores"):
    bond.log_quantile(jnp.zeros(4), jnp.zeros((3, 4)))
  with pytest.raises(ValueError, match="n=0"):
    bond.log_best_of_n_ratio(jnp.zeros(4), 0)
