"""REINFORCE: the reward of the whole answer minus the mean of the rollout."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import reinforce
from tests.algorithms import answers


def test_advantages_by_hand():
  """Scores 1, 2, 6, 4, 4, 4 have the mean 3.5."""
  found = reinforce.advantages(answers.rollout(), reinforce.Config())
  np.testing.assert_allclose(
    found.advantages, answers.spread([-2.5, -1.5, 2.5, 0.5, 0.5, 0.5])
  )
  plain = reinforce.Config(baseline="none")
  found = reinforce.advantages(answers.rollout(), plain)
  np.testing.assert_allclose(
    found.advantages, answers.spread([1, 2, 6, 4, 4, 4])
  )


def test_the_kl_in_the_reward_counts():
  rewards = answers.rewards_per_token()
  data = answers.rollout(rewards=rewards)
  found = reinforce.advantages(data, reinforce.Config())
  total = answers.sums(rewards)
  np.testing.assert_allclose(
    found.advantages, answers.spread(total - total.mean()), atol=1e-5
  )


def test_masked_answers_enter_no_baseline():
  data = answers.without(answers.rollout(), 2)
  found = reinforce.advantages(data, reinforce.Config()).advantages
  np.testing.assert_allclose(found[:, answers.PROMPT], [-2, -1, 0, 1, 1, 1])


def test_loss_by_hand():
  """Two answers of 1 and 2 tokens: -(3 * -0.5 - 1 * (-1 - 2)) / 2."""
  data = answers.rollout().replace(
    response_mask=jnp.array([[0.0, 1, 0], [0, 1, 1]]),
    behaviour_logprobs=jnp.zeros((2, 3)),
    reference_logprobs=jnp.zeros((2, 3)),
    advantages=jnp.array([[0.0, 3, 0], [0, -1, -1]]),
  )
  config = reinforce.Config()
  counts = reinforce.denominators(data, config)
  logprobs = jnp.array([[jnp.nan, -0.5, jnp.nan], [jnp.nan, -1, -2]])
  total, _ = reinforce.loss(
    logprobs, jnp.zeros((2, 3)), None, data, config, counts
  )
  np.testing.assert_allclose(total, -(3 * -0.5 - 1 * (-1 - 2)) / 2, rtol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match="baseline='value': must be one of"):
    reinforce.Config(baseline="value")
  data = answers.rollout(rewards=None)
  with pytest.raises(ValueError, match="rewards is None: REINFORCE needs"):
    reinforce.advantages(data, reinforce.Config())
  data = answers.rollout(segment_ids=jnp.ones((6, 8), jnp.int32))
  with pytest.raises(ValueError, match="segment_ids is set: REINFORCE"):
    reinforce.advantages(data, reinforce.Config())
