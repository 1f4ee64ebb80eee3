"""ReMax: reward to go minus the shaped score of the greedy answer."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.algorithms.policy_gradient import (
  further_rollouts,
  packing,
  remax,
  shaping,
)
from rlhf_jax.types import FINISH_LENGTH
from tests.algorithms import answers

CONFIG = remax.Config()


def test_greedy_answers_are_sampled_together_however_the_samples_are():
  how = generate.Config(num_samples=4, batch_size=8, refill=True)
  greedy = dataclasses.replace(how, **remax.further(CONFIG)["greedy"])
  assert (greedy.temperature, greedy.num_samples) == (0.0, 1)
  assert (greedy.batch_size, greedy.refill) == (None, None)


def test_advantages_by_hand():
  data = answers.with_further(answers.rollout(), greedy=[2.0, 5.0])
  found = remax.advantages(data, CONFIG)
  np.testing.assert_allclose(
    found.advantages, answers.spread([-1, 0, 4, -1, -1, -1])
  )
  assert found.further == {}


def test_rewards_to_go_with_a_kl_on_every_token():
  rewards = answers.rewards_per_token()
  data = answers.with_further(
    answers.rollout(rewards=rewards), greedy=[1.0, 2.0]
  )
  found = np.asarray(remax.advantages(data, CONFIG).advantages)
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
  attached = further_rollouts.attach(
    shaped, {"greedy": greedy, "same": sampled}, moments, config
  )
  score = np.array([1.0, 2, 6, 4, 4, 4])
  raw = np.where(np.arange(6) == 1, score, score - 4)
  expected = np.clip((raw - score.mean()) / score.std(), -1.5, 1.5)
  found = attached.further["greedy"].score
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Not truncated, it is what shape_rewards puts on the last token.
  last = np.asarray(shaped.rewards)[np.arange(6), answers.LAST]
  np.testing.assert_allclose(attached.further["same"].score, last, rtol=1e-6)


def test_the_greedy_answers_are_gone_before_rows_are_packed():
  data = answers.with_further(answers.rollout(), greedy=[2.0, 5.0])
  data = remax.advantages(data, CONFIG)
  layout = packing.plan(data, packing.Shape(20, 20, 8, 8))
  mask = jnp.asarray(answers.MASK)
  packed = packing.pack_rollout(data.replace(valid_mask=mask), layout)
  assert packed.further == {}
  np.testing.assert_array_equal(
    packing.unpack(packed.advantages, layout), data.advantages
  )


def test_errors():
  data = answers.with_further(answers.rollout(), other=[1.0])
  with pytest.raises(ValueError, match=r"has \['other'\]: ReMax needs 'greedy"):
    remax.advantages(data, CONFIG)
  data = answers.with_further(answers.rollout(), greedy=jnp.zeros(4))
  with pytest.raises(ValueError, match=r"further\['greedy'\] has 4 prompts: 6"):
    remax.advantages(data, CONFIG)
  packed = answers.rollout(segment_ids=jnp.ones((6, 8), jnp.int32))
  with pytest.raises(ValueError, match=r"further\['greedy'\].segment_ids is"):
    further_rollouts.attach(
      data, {"greedy": packed}, shaping.init_moments(), shaping.Config()
    )
