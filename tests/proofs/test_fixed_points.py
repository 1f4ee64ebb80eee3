"""Where methods without a critic settle, against optima in closed form.

`python -m tests.proofs.fixed_points` prints the whole table. METHODS 3.6, 5.4,
annex A1. PPO has a file of its own, test_bandit.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import surrogate
from rlhf_jax.types import Rollout
from tests.proofs import fixed_points

BETA = 0.5
TABLE = {method.name: method for method in fixed_points.methods(BETA)}
SHORT = ("rloo G=2", "remax", "reinforce_pp", "grpo k2, G=64", "grpo k3, G=64")


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.slow
def test_a1_sampled_runs_settle_at_their_optimum(name):
  """Near its optimum, far from where it began, and far with the KL turned."""
  found = fixed_points.measure(TABLE[name], (0,), steps=300)
  assert found.is_good(TABLE[name]), found


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("index", range(len(TABLE)))
def test_a1_every_method_settles_at_its_own_optimum(index, beta):
  method = fixed_points.methods(beta)[index]
  found = fixed_points.measure(method, (0, 1, 2), steps=fixed_points.STEPS)
  assert found.is_good(method), found


@pytest.mark.parametrize(
  "change",
  [{"distance": 6e-3}, {"control": 0.09}, {"start": 0.01}, {"to_tilt": 0.03}],
)
def test_the_check_can_fail(change):
  """Off target, a control that passes, a start that was there, no own form."""
  good = fixed_points.Result(1e-3, 1.0, 0.2, 1.0, 0.0)
  method = TABLE["grpo k3, G=64"]
  assert good.is_good(method)
  assert not dataclasses.replace(good, **change).is_good(method)


def test_the_forward_form_is_a_stationary_point():
  """At p = beta p_ref / (lambda - r): p (r - E r) = beta (p - p_ref)."""
  reward, log_ref = fixed_points.problem(3)
  p = np.exp(fixed_points.forward_form(reward, log_ref, BETA))
  advantage = reward - np.sum(p * reward)
  np.testing.assert_allclose(
    p * advantage, BETA * (p - np.exp(log_ref)), atol=1e-6
  )


def exact(where, kind, beta=BETA, is_scaled=False, steps=3000):
  """Settles 8 arms under the expected gradient of the package's own loss.

  Every arm is one row, weighed by K p(arm): the mean over rows is then the
  expectation. k1 in the loss and k3 in the reward, which the package refuses,
  are added by hand.

  Args:
    where: "reward" or "loss".
    kind: "k1", "k2", "k3" or "k3+".
    beta: the coefficient of the KL.
    is_scaled: divides advantages by their deviation.
    steps: of Adam.

  Returns:
    rewards, log p_ref, log p learnt.
  """
  reward, log_ref = fixed_points.problem(0, arms=8)
  estimator = {"k1": ops.kl_k1, "k2": ops.kl_k2, "k3": ops.kl_k3}
  is_ours = where == "loss" and kind != "k1"
  config = surrogate.Config(
    objective="reinforce",
    kl_loss=kind if is_ours else "none",
    kl_loss_coefficient=beta if is_ours else 0.0,
  )
  column = jnp.ones((8, 1))
  empty = Rollout(
    tokens=jnp.arange(8)[:, None],
    valid_mask=column,
    response_mask=column,
    behaviour_logprobs=column,
    finish_reason=jnp.zeros(8, jnp.int32),
    reference_logprobs=jnp.asarray(log_ref)[:, None],
    score=jnp.asarray(reward),
  )

  def loss(logits):
    log_p = jax.nn.log_softmax(logits)
    fixed = jax.lax.stop_gradient(log_p)
    p = jnp.exp(fixed)
    earned = jnp.asarray(reward)
    if where == "reward":
      earned = earned - beta * estimator[kind](fixed, log_ref)
    advantage = earned - jnp.sum(p * earned)
    if is_scaled:
      advantage = advantage / jnp.sqrt(jnp.sum(p * jnp.square(advantage)))
    rows = empty.replace(
      behaviour_logprobs=fixed[:, None],
      advantages=advantage[:, None],
      importance_weights=8 * p[:, None],
    )
    counts = surrogate.denominators(rows, config)
    total, _ = surrogate.loss(
      log_p[:, None], 0 * column, None, rows, config, counts
    )
    if where == "loss" and kind == "k1":
      total = total + beta * jnp.sum(p * estimator[kind](log_p, log_ref))
    return total

  optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))

  def step(carry, _):
    logits, moments = carry
    updates, moments = optimizer.update(jax.grad(loss)(logits), moments)
    return (logits + updates, moments), None

  start = jnp.asarray(log_ref)
  run = jax.jit(
    lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
  )
  (logits, _), _ = run()
  return reward, log_ref, np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.parametrize(
  ("where", "kind"), [("reward", "k1"), ("loss", "k2"), ("loss", "k3+")]
)
def test_t08_these_settle_at_the_tilted_reference(where, kind):
  reward, log_ref, found = exact(where, kind)
  target = fixed_points.log_softmax(log_ref + reward / BETA)
  assert fixed_points.total_variation(found, target) < 1e-3
  assert fixed_points.total_variation(log_ref, target) > 0.1


def test_t08_k3_in_the_loss_settles_elsewhere():
  reward, log_ref, found = exact("loss", "k3")
  form = fixed_points.forward_form(reward, log_ref, BETA)
  tilt = fixed_points.log_softmax(log_ref + reward / BETA)
  assert fixed_points.total_variation(found, form) < 1e-3
  assert fixed_points.total_variation(found, tilt) > 0.1


def test_t08_why_k1_in_the_loss_and_k3_in_the_reward_are_refused():
  reward, _, found = exact("loss", "k1")
  assert np.exp(found).max() > 0.99 and found.argmax() == reward.argmax()
  reward, log_ref, found = exact("reward", "k3")
  tilt = fixed_points.log_softmax(log_ref + reward / BETA)
  assert fixed_points.total_variation(found, tilt) > 0.1
  assert not np.isfinite(found).all() or found.min() < -8


def test_dividing_by_the_deviation_has_a_threshold_in_beta():
  """Above it the tilt has the policy's own scale; below it, a collapse."""
  reward, log_ref, found = exact("loss", "k2", beta=2.0, is_scaled=True)
  p = np.exp(found.astype(np.float64))
  deviation = np.sqrt(np.sum(p * reward**2) - np.sum(p * reward) ** 2)
  target = fixed_points.log_softmax(log_ref + reward / (2.0 * deviation))
  assert fixed_points.total_variation(found, target) < 1e-3
  reward, _, found = exact("loss", "k2", beta=0.25, is_scaled=True)
  assert np.exp(found).max() > 0.99 and found.argmax() == reward.argmax()
