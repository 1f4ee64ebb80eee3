"""RLOO: the mean of the others, by hand and by a loop."""

import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import rloo
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


def test_unbiased_where_grpo_is_not():
  """E[A grad log p] over groups of 2 from p = (1/4, 3/4), enumerated."""
  p = np.array([0.25, 0.75])
  reward = np.array([3.0, -1.0])
  score = np.eye(2) - p  # grad log p of each arm in the logits
  exact = sum(p[a] * reward[a] * score[a] for a in range(2))
  total = {"loo": np.zeros(2), "mean": np.zeros(2)}
  for a in range(2):
    for b in range(2):
      pair = reward[[a, b]]
      weight = p[a] * p[b] / 2
      for i, arm in enumerate((a, b)):
        total["loo"] += weight * (pair[i] - pair[1 - i]) * score[arm]
        total["mean"] += weight * (pair[i] - pair.mean()) * score[arm]
  np.testing.assert_allclose(total["loo"], exact, rtol=1e-12)
  np.testing.assert_allclose(total["mean"], exact / 2, rtol=1e-12)


def test_an_answer_without_others_gets_nothing():
  data = answers.without(answers.without(answers.rollout(), 0), 1)
  assert not np.asarray(rloo.advantages(data, CONFIG).advantages).any()


def test_trap_19_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match="group_size=1: RLOO compares"):
    rloo.Config(group_size=1)
  with pytest.raises(ValueError, match="group_size=4: 6 rows"):
    rloo.advantages(answers.rollout(), rloo.Config(group_size=4))
