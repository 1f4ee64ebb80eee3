"""Six answers to two prompts, for the tests of methods without a critic."""

import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Rollout

N, L, GROUP, PROMPT = 6, 8, 3, 2
LENGTHS = np.array([1, 4, 2, 3, 5, 1])
MASK = np.arange(L)[None] - PROMPT
MASK = ((MASK >= 0) & (MASK < LENGTHS[:, None])).astype(np.float32)
LAST = PROMPT + LENGTHS - 1


def field(seed, scale=0.5, padding=0, poison=np.nan):
  """Random [N, L + padding] on the answers, poison elsewhere."""
  x = np.random.default_rng(seed).normal(0, scale, (N, L))
  x = np.pad(np.where(MASK > 0, x, poison), ((0, 0), (0, padding)))
  x[:, L:] = poison
  return jnp.asarray(x, jnp.float32)


def rollout(score=(1.0, 2, 6, 4, 4, 4), padding=0, **changes):
  """Rewards are the score, on the last token of each answer."""
  mask = np.pad(MASK, ((0, 0), (0, padding)))
  rewards = np.where(mask > 0, 0.0, np.nan)
  rewards[np.arange(N), LAST] = score
  return Rollout(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=field(1, padding=padding),
    finish_reason=jnp.zeros(N, jnp.int32),
    reference_logprobs=field(2, padding=padding),
    score=jnp.asarray(score, jnp.float32),
    rewards=jnp.asarray(rewards, jnp.float32),
  ).replace(**changes)


def with_further(data, **scores):
  """The rollout with further answers of these scores, as `attach` gives."""
  return data.replace(
    further={
      name: rollout().replace(score=jnp.asarray(x, jnp.float32))
      for name, x in scores.items()
    }
  )


def rewards_per_token(seed=3):
  """Rewards [N, L] on every token, as with a KL in the reward."""
  return field(seed, scale=1.0)


def sums(rewards):
  """The whole-answer rewards [N] by a loop."""
  rewards = np.asarray(rewards, np.float64)
  return np.array(
    [
      sum(rewards[n, t] for t in range(PROMPT, PROMPT + LENGTHS[n]))
      for n in range(N)
    ]
  )


def spread(x):
  """[N] on every token of each answer, 0 elsewhere."""
  return np.where(MASK > 0, np.asarray(x, np.float64)[:, None], 0.0)


def without(data, row):
  """The rollout whose answer `row` does not count, as missing_eos="mask"."""
  mask = data.response_mask.at[row].set(0.0)
  return data.replace(response_mask=mask)


def pack(x):
  """Two answers end to end in a row."""
  return x.reshape(N // 2, 2 * x.shape[1])


def packed(data):
  """The rollout, advantages included, with two answers per row."""
  per_token = {
    k: pack(x)
    for k, x in vars(data).items()
    if x is not None
    and k not in ("score", "finish_reason", "further", "hidden")
  }
  segments = jnp.tile(jnp.array([[1], [2]]), (N // 2, L))
  return data.replace(segment_ids=pack(segments), **per_token)
