"""RLOO: the mean of the others, by hand and by a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import grpo, rloo
from rlhf_jax.types import Rollout
from tests.algorithms import answers

CONFIG = rloo.Config(group_size=answers.GROUP)


def test_advantages_by_hand():
  found = rloo.advantages(answers.rollout(), CONFIG)
  np.testing.assert_allclose(
    found.advantages, answers.spread([-3, -1.5, 4.5, 0, 0, 0])
  )


def test_advantages_with_kl_against_a_loop():
  rewards = answers.rewards_per_token()
  found = rloo.advantages(answers.rollout(rewards=rewards), CONFIG)
  total = answers.sums(rewards)
  expected = []
  for i in range(answers.N):
    first = i // 3 * 3
    others = [total[j] for j in range(first, first + 3) if j != i]
    expected.append(total[i] - np.mean(others))
  np.testing.assert_allclose(
    found.advantages, answers.spread(expected), atol=1e-5
  )


def expected_gradient(module, config):
  """-E[grad loss] in the logits of p = (1/4, 3/4), over all groups of 2.

  The four pairs of arms are four groups, weighted by their probability.
  """
  p = np.array([0.25, 0.75])
  pairs = np.array([(a, b) for a in range(2) for b in range(2)])
  arm = jnp.asarray(pairs.reshape(-1, 1))
  weight = np.repeat(4 * p[pairs].prod(axis=1), 2)
  logits = jnp.log(jnp.asarray(p, jnp.float32))
  one = jnp.ones((8, 1))
  rollout = Rollout(
    tokens=arm,
    valid_mask=one,
    response_mask=one,
    behaviour_logprobs=logits[arm],
    finish_reason=jnp.zeros(8, jnp.int32),
    reference_logprobs=logits[arm],
    score=jnp.zeros(8),
    rewards=jnp.array([3.0, -1.0])[arm],
    importance_weights=jnp.asarray(weight, jnp.float32)[:, None],
  )
  rollout = module.advantages(rollout, config)
  counts = module.denominators(rollout, config)

  def total(logits):
    logprobs = jax.nn.log_softmax(logits)[arm]
    return module.loss(logprobs, 0 * one, None, rollout, config, counts)[0]

  return -np.asarray(jax.grad(total)(logits))


def test_unbiased_where_grpo_is_not():
  """grad E[r] = sum_a p_a r_a (e_a - p) = 0.75 (1, -1); GRPO has half of it."""
  exact = np.array([0.75, -0.75])
  found = expected_gradient(rloo, rloo.Config(group_size=2))
  np.testing.assert_allclose(found, exact, rtol=1e-5)
  plain = grpo.Config(
    group_size=2,
    scale_rewards="none",
    kl_loss="none",
    kl_loss_coefficient=0.0,
  )
  np.testing.assert_allclose(
    expected_gradient(grpo, plain), exact / 2, rtol=1e-5
  )


def test_an_answer_without_others_gets_nothing():
  data = answers.without(answers.without(answers.rollout(), 0), 1)
  assert not np.asarray(rloo.advantages(data, CONFIG).advantages).any()


def test_trap_19_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match="group_size=1: RLOO compares"):
    rloo.Config(group_size=1)
  with pytest.raises(ValueError, match="group_size=4: 6 rows"):
    rloo.advantages(answers.rollout(), rloo.Config(group_size=4))
