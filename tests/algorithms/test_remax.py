"""ReMax: reward to go minus the shaped score of the greedy answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import packing, remax, shaping
from rlhf_jax.types import FINISH_LENGTH
from tests.algorithms import answers


def test_advantages_by_hand():
  data = remax.with_baseline(answers.rollout(), jnp.array([2.0, 5.0]))
  np.testing.assert_allclose(data.baseline, [2, 2, 2, 5, 5, 5])
  found = remax.advantages(data, remax.Config())
  np.testing.assert_allclose(
    found.advantages, answers.spread([-1, 0, 4, -1, -1, -1])
  )
  assert found.baseline is None


def test_rewards_to_go_with_a_kl_on_every_token():
  rewards = answers.rewards_per_token()
  data = remax.with_baseline(
    answers.rollout(rewards=rewards), jnp.array([1.0, 2.0])
  )
  found = np.asarray(remax.advantages(data, remax.Config()).advantages)
  for n, t in np.argwhere(answers.MASK > 0):
    end = answers.PROMPT + answers.LENGTHS[n]
    to_go = np.asarray(rewards, np.float64)[n, t:end].sum()
    np.testing.assert_allclose(found[n, t], to_go - 1 - n // 3, atol=1e-5)


def test_greedy_scores_follow_the_rules_of_the_samples():
  """Truncated: minus 4; standardised by the moments of the samples; clipped."""
  config = shaping.Config(
    missing_eos="subtract",
    missing_eos_penalty=4.0,
    normalise="standardise",
    clip=1.5,
  )
  sampled = answers.rollout()
  shaped, moments, _ = shaping.shape_rewards(
    sampled, shaping.init_moments(), 0.0, config
  )
  greedy = sampled.replace(
    finish_reason=jnp.full(6, FINISH_LENGTH, jnp.int32).at[1].set(0)
  )
  found = shaping.shaped_scores(greedy, moments, config)
  score = np.array([1.0, 2, 6, 4, 4, 4])
  raw = np.where(np.arange(6) == 1, score, score - 4)
  expected = np.clip((raw - score.mean()) / score.std(), -1.5, 1.5)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Not truncated, it is what shape_rewards puts on the last token.
  same = shaping.shaped_scores(sampled, moments, config)
  last = np.asarray(shaped.rewards)[np.arange(6), answers.LAST]
  np.testing.assert_allclose(same, last, rtol=1e-6)


def test_the_baseline_is_gone_before_rows_are_packed():
  data = remax.with_baseline(answers.rollout(), jnp.array([2.0, 5.0]))
  data = remax.advantages(data, remax.Config())
  layout = packing.plan(data, packing.Config(row_tokens=20))
  mask = jnp.asarray(answers.MASK)
  packed = packing.pack_rollout(data.replace(valid_mask=mask), layout)
  assert packed.baseline is None


def test_errors():
  with pytest.raises(ValueError, match="baseline is None: ReMax subtracts"):
    remax.advantages(answers.rollout(), remax.Config())
  with pytest.raises(ValueError, match="greedy_scores has 4 prompts: 6 rows"):
    remax.with_baseline(answers.rollout(), jnp.zeros(4))
