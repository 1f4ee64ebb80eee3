"""Shaped scores by hand, where one rule acts alone."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.types import FINISH_EOS, Rollout


def shaped(scores, lengths, **settings):
  """Returns the sum of rewards of answers that are as likely as before."""
  mask = np.float32(np.arange(6)[None] < np.asarray(lengths)[:, None])
  rollout = Rollout(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=-jnp.asarray(mask),
    finish_reason=jnp.full(len(mask), FINISH_EOS),
    reference_logprobs=-jnp.asarray(mask),
    score=jnp.asarray(scores, jnp.float32),
  )
  config = shaping.Config(clip=None, **settings)
  found, _, row = jax.jit(shaping.shape_rewards, static_argnums=3)(
    rollout, shaping.init_moments(), jnp.float32(0.1), config
  )
  return np.sum(np.asarray(found.rewards), axis=1), row


def test_scale_divides_and_standardise_shifts_too():
  """Scores of mean 3 and deviation 2."""
  lengths = [2, 2]
  found, row = shaped([1.0, 5.0], lengths, normalise="scale")
  np.testing.assert_allclose(found, [0.5, 2.5], rtol=1e-5)
  assert float(row["reward/running_mean"]) == 3.0
  found, _ = shaped([1.0, 5.0], lengths, normalise="standardise")
  np.testing.assert_allclose(found, [-1.0, 1.0], rtol=1e-5)


def test_whitening_is_of_the_rewards_of_all_tokens():
  """Rewards 2 | 0 0 0 2: mean 0.8, variance 0.96."""
  deviation = np.sqrt(0.96)
  found, row = shaped([2.0, 2.0], [1, 4], whitening="scale")
  np.testing.assert_allclose(found, [2 / deviation] * 2, rtol=1e-5)
  np.testing.assert_allclose(row["reward/deviation"], deviation, rtol=1e-5)
  assert float(row["reward/shaped"]) == 2.0  # in units of the score
  # About the mean each token gains as much, so the longer answer more.
  found, _ = shaped([2.0, 2.0], [1, 4], whitening="keep_mean")
  gain = 0.8 * (1 - 1 / deviation)
  np.testing.assert_allclose(
    found, [2 / deviation + gain, 2 / deviation + 4 * gain], rtol=1e-5
  )


def test_ppo_max_normalises_and_clips_by_running_moments():
  """Zheng et al. 2023: clip((r - mean) / deviation, -c, c)."""
  mask = jnp.ones((4, 1))
  rollout = Rollout(
    tokens=jnp.zeros((4, 1), jnp.int32),
    valid_mask=mask,
    response_mask=mask,
    behaviour_logprobs=-mask,
    finish_reason=jnp.full(4, FINISH_EOS),
    reference_logprobs=-mask,
    score=jnp.array([1.0, 2.0, 3.0, 10.0]),
  )
  config = shaping.Config(normalise="standardise", clip=1.0)
  moments, seen = shaping.init_moments(), []
  for shift in (0.0, 5.0):
    score = rollout.score + shift
    seen += np.asarray(score).tolist()
    found, moments, _ = shaping.shape_rewards(
      rollout.replace(score=score), moments, jnp.float32(0.1), config
    )
    expected = (np.asarray(score) - np.mean(seen)) / np.std(seen)
    np.testing.assert_allclose(
      found.rewards[:, 0], np.clip(expected, -1.0, 1.0), rtol=1e-4
    )


def test_the_overlong_penalty_sets_in_late_and_rewards_nobody():
  """From 2 tokens on, in full at 4."""
  found, row = shaped(
    [0.0] * 6,
    [1, 2, 3, 4, 5, 6],
    overlong_tokens=4,
    overlong_cache=2,
    overlong_penalty=0.5,
  )
  expected = [0.0, 0.0, -0.25, -0.5, -0.5, -0.5]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(
    row["reward/length_penalty"], np.mean(expected), rtol=1e-5
  )


def test_the_linear_penalty_counts_tokens_beyond_its_start():
  found, _ = shaped(
    [1.0] * 4, [1, 2, 3, 6], length_penalty=0.5, length_penalty_start=2
  )
  np.testing.assert_allclose(found, [1.0, 1.0, 0.5, -1.0], atol=1e-6)
