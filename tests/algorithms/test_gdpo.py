"""GDPO by hand, and what GRPO on the sum cannot tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import gdpo, grpo
from rlhf_jax.types import Components, Rollout

GROUP = 4
PLAIN = {"kl_loss": "none", "kl_loss_coefficient": 0.0}


def judged(values, mask=None, counts=None):
  """A rollout of one token an answer, judged by K; the score is the sum."""
  values = jnp.asarray(values, jnp.float32)
  rows = len(values)
  mask = jnp.ones_like(values) if mask is None else jnp.asarray(mask)
  counts = jnp.ones(rows) if counts is None else jnp.asarray(counts)
  score = jnp.sum(values * mask, axis=1)
  response = jnp.stack([jnp.zeros(rows), counts], axis=1)
  return Rollout(
    tokens=jnp.zeros((rows, 2), jnp.int32),
    valid_mask=jnp.ones((rows, 2)),
    response_mask=response,
    behaviour_logprobs=-response,
    finish_reason=jnp.zeros(rows, jnp.int32),
    reference_logprobs=-response,
    score=score,
    rewards=response * score[:, None],
    components=Components(values=values, mask=mask, tagged=jnp.zeros(rows)),
  )


def of(rollout, **fields):
  config = gdpo.Config(group_size=GROUP, **PLAIN, **fields)
  found = jax.jit(lambda r: gdpo.advantages(r, config))(rollout)
  return np.asarray(found.advantages[:, 1])


def by_hand(values, weights):
  """The three equations in a loop, in float64."""
  values = np.asarray(values, np.float64)
  total = np.zeros(len(values))
  for k, weight in enumerate(weights):
    for first in range(0, len(values), GROUP):
      rows = slice(first, first + GROUP)
      x = values[rows, k]
      deviation = x.std(ddof=1)
      total[rows] += weight * (x - x.mean()) / (deviation + 1e-6)
  return (total - total.mean()) / (total.std() + 1e-6)


def test_what_grpo_on_the_sum_collapses_gdpo_keeps_apart():
  """(0, 1) and (1, 0) have one sum; the first reward is the rarer one."""
  values = [[0, 1], [1, 0], [0, 1], [0, 0]]
  rollout = judged(values)
  config = grpo.Config(group_size=GROUP, **PLAIN)
  summed = np.asarray(grpo.advantages(rollout, config).advantages[:, 1])
  assert summed[0] == summed[1] == summed[2] > summed[3]
  found = of(rollout)
  assert found[0] == found[2]
  assert found[1] > found[0] + 0.1  # 3 of 4 fail the first, 2 the second
  np.testing.assert_allclose(found, by_hand(values, (1, 1)), rtol=1e-5)


def test_a_group_of_equal_sums_still_teaches():
  values = [[0, 1], [1, 0], [0, 1], [0, 1]]
  rollout = judged(values)
  config = grpo.Config(group_size=GROUP, **PLAIN)
  assert not np.asarray(grpo.advantages(rollout, config).advantages).any()
  found = of(rollout, reward_weights=(2.0, 1.0))
  assert found[1] > 0 > found[0]
  np.testing.assert_allclose(found, by_hand(values, (2, 1)), rtol=1e-5)


def test_two_groups_and_three_rewards_by_hand():
  values = np.random.default_rng(0).normal(size=(8, 3)) * [1.0, 50.0, 0.01]
  weights = (0.5, 1.0, 2.0)
  found = of(judged(values), reward_weights=weights)
  np.testing.assert_allclose(found, by_hand(values, weights), rtol=2e-4)
  np.testing.assert_allclose(found.mean(), 0.0, atol=1e-6)
  np.testing.assert_allclose(found.std(), 1.0, rtol=1e-4)


def test_one_reward_is_grpo_with_batch_normalisation():
  values = np.random.default_rng(1).normal(size=(8, 1))
  rollout = judged(values)
  config = grpo.Config(group_size=GROUP, **PLAIN)
  plain = np.asarray(grpo.advantages(rollout, config).advantages[:, 1])
  expected = plain / plain.std()
  np.testing.assert_allclose(of(rollout), expected, rtol=1e-5)
  # With one judge alone the reward is the shaped one, which is the same here.
  alone = rollout.replace(components=None)
  np.testing.assert_allclose(of(alone), expected, rtol=1e-5)


def test_a_judge_of_other_prompts_adds_nothing():
  """The second reward judges the second group alone; poison elsewhere."""
  values = np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32)
  mask = np.ones((8, 2), np.float32)
  mask[:4, 1] = 0.0
  other = values.copy()
  other[:4, 1] = 1e30
  expected = of(judged(values, mask))
  np.testing.assert_array_equal(of(judged(other, mask)), expected)
  first = values[:4, 0]
  order = np.argsort(first)
  np.testing.assert_array_equal(np.argsort(expected[:4]), order)


def test_an_answer_that_does_not_count_enters_nothing():
  values = np.random.default_rng(3).normal(size=(8, 2)).astype(np.float32)
  counts = np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32)
  other = values.copy()
  other[3] = 1e6
  found = of(judged(values, counts=counts))
  np.testing.assert_array_equal(of(judged(other, counts=counts)), found)
  assert found[3] == 0.0 and np.all(found[:3] != 0.0)


def test_equal_rewards_give_exactly_nothing():
  assert not of(judged(np.full((8, 2), 12345.678))).any()


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"reward_weights": (1.0,)}, "there are 2 rewards"),
    ({"reward_weights": (0.0, 0.0)}, "one that is not 0"),
    ({"scale_epsilon": 0.0}, "must be > 0"),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    of(judged(np.ones((4, 2))), **fields)
