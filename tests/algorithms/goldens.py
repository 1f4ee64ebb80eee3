"""Reads what tests/oracles froze, as this package's own types."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms.policy_gradient import surrogate
from rlhf_jax.types import PreferenceBatch, Rollout

ORACLES = Path(__file__).parent.parent / "oracles"


def load(name):
  """Returns the arrays of one file of goldens."""
  return dict(np.load(ORACLES / f"{name}.npz"))


def close(found, golden, scale=1.0):
  """Asserts agreement to 1e-5 of each number, or of `scale` near 0."""
  assert np.all(np.isfinite(golden))
  np.testing.assert_allclose(found, golden, rtol=1e-5, atol=1e-6 * scale)


def field(golden, name, mask="mask"):
  """Returns an input, NaN where no token counts: nothing may read that."""
  return jnp.asarray(
    np.where(golden[mask] > 0, golden[name], np.nan), jnp.float32
  )


def last_token(golden, mask="mask"):
  """Returns [N, L], `scores` on the last counted token of each answer."""
  counted = golden[mask]
  last = counted.shape[1] - 1 - np.argmax(counted[:, ::-1] > 0, axis=1)
  rewards = np.zeros(counted.shape, np.float32)
  rewards[np.arange(len(last)), last] = golden["scores"]
  return jnp.asarray(rewards)


def rollout(golden, mask="mask", **fields):
  """Returns the answers of policy_inputs.py."""
  counted = jnp.asarray(golden[mask])
  usual = {
    "tokens": jnp.zeros(counted.shape, jnp.int32),
    "valid_mask": jnp.ones(counted.shape),
    "response_mask": counted,
    "behaviour_logprobs": field(golden, "old", mask),
    "finish_reason": jnp.zeros(len(counted), jnp.int32),
    "reference_logprobs": field(golden, "reference", mask),
    "score": jnp.asarray(golden["scores"]),
    "values": field(golden, "values", mask),
    "rewards": field(golden, "rewards", mask),
    "advantages": field(golden, "advantages", mask),
    "returns": field(golden, "returns", mask),
  }
  return Rollout(**usual | fields)


def with_greedy(golden, data):
  """Returns the rollout with a greedy answer to each, as remax reads it."""
  greedy = data.replace(score=jnp.asarray(golden["baselines"]))
  return data.replace(further={"greedy": greedy})


def policy_loss(golden, data, entropies=None, new="new", **settings):
  """Returns surrogate.loss of `new`, and its gradient."""
  config = surrogate.Config(**settings)
  counts = surrogate.denominators(data, config)
  if entropies is None:
    entropies = jnp.zeros(data.response_mask.shape)

  def total(new):
    return surrogate.loss(new, entropies, None, data, config, counts)[0]

  return jax.value_and_grad(total)(field(golden, new))


def spread(golden, name):
  """Returns [N, L], one number an answer on all its tokens."""
  return jnp.asarray(golden[name][:, None] * golden["mask"], jnp.float32)


def pair_batch(golden):
  """Returns the answers of make_preference_goldens.py and their batch."""
  mask = golden["loss_mask"]
  batch = PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    loss_mask=jnp.asarray(mask),
    label=jnp.ones(len(mask)),
    weight=jnp.ones(len(mask)),
    reference_logprobs=jnp.asarray(golden["reference_logprobs"]),
  )
  return jnp.asarray(golden["logprobs"]), batch


def pair_loss(module, config, logprobs, batch):
  """Returns the mean loss of rows, and its gradient in the tokens."""
  return jax.value_and_grad(
    lambda x: jnp.mean(module.loss(x, batch, config)[0])
  )(logprobs)
