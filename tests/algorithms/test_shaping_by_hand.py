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
