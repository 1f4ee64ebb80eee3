"""REINFORCE++: whitening over all tokens, with and without groups."""

import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import reinforce_pp
from tests.algorithms import answers


def whitened(x, is_scaled=True):
  kept = x[answers.MASK > 0]
  centre = x - kept.mean()
  return np.where(
    answers.MASK > 0, centre / kept.std() if is_scaled else centre, 0
  )


def to_go(rewards, discount):
  rewards = np.where(answers.MASK > 0, rewards, 0.0).astype(np.float64)
  result = np.zeros_like(rewards)
  for t in range(answers.L - 1, -1, -1):
    after = result[:, t + 1] if t + 1 < answers.L else 0.0
    result[:, t] = rewards[:, t] + discount * after
  return result


@pytest.mark.parametrize("is_scaled", [True, False])
@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_rewards_to_go_are_whitened_over_tokens(discount, is_scaled):
  rewards = answers.rewards_per_token()
  config = reinforce_pp.Config(discount=discount, scales_advantages=is_scaled)
  found = reinforce_pp.advantages(answers.rollout(rewards=rewards), config)
  np.testing.assert_allclose(
    found.advantages, whitened(to_go(rewards, discount), is_scaled), atol=1e-5
  )


def test_groups_by_hand():
  """-2, -1, 3, 0, 0, 0 on 1, 4, 2, 3, 5, 1 tokens: mean 0, variance 26 / 16."""
  config = reinforce_pp.Config(
    group_size=3, kl_loss="k2", kl_loss_coefficient=0.1
  )
  found = reinforce_pp.advantages(answers.rollout(), config)
  np.testing.assert_allclose(
    found.advantages,
    answers.spread(np.array([-2, -1, 3, 0, 0, 0]) / (26 / 16) ** 0.5),
    atol=1e-6,
  )
  plain = reinforce_pp.Config(group_size=3, scales_advantages=False)
  found = reinforce_pp.advantages(answers.rollout((1, 3, 6, 4, 4, 8)), plain)
  centred = answers.spread(
    np.array([-7, -1, 8, -4, -4, 8]) / 3  # group means 10 / 3 and 16 / 3
  )
  np.testing.assert_allclose(
    found.advantages, whitened(centred, False), atol=1e-6
  )


def test_errors():
  with pytest.raises(ValueError, match="group_size=1: REINFORCE"):
    reinforce_pp.Config(group_size=1)
  with pytest.raises(ValueError, match="discount=0.9: groups compare whole"):
    reinforce_pp.Config(group_size=2, discount=0.9)
  with pytest.raises(ValueError, match="discount=1.1: must be in"):
    reinforce_pp.Config(discount=1.1)
