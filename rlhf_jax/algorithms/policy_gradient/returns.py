"""What an answer earned, for methods without a critic.

  R = sum_t r_t                      of the whole answer
  G_t = sum_{l >= t} gamma^{l - t} r_l    from token t on

r is the shaped reward per token (shaping.py): with the KL in the reward, R
carries it, and so does every baseline made of R.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import ppo
from rlhf_jax.types import Array, Rollout


def check_rollout(rollout: Rollout, method: str) -> None:
  """Raises ValueError unless advantages can be computed from the rollout.

  Args:
    rollout: with rewards, unpacked.
    method: name for the message.
  """
  if rollout.rewards is None:
    raise ValueError(
      f"rollout.rewards is None: {method} needs them. Run shape_rewards first."
    )
  if rollout.segment_ids is not None:
    raise ValueError(
      f"segment_ids is set: {method} needs one answer per row. Compute "
      "advantages first, pack afterwards."
    )


def exists(rollout: Rollout) -> Array:
  """Returns [N] float32, 1 for answers with a counted token.

  An answer without one (filler, or taken out by missing_eos="mask") enters no
  baseline.
  """
  return jnp.any(rollout.response_mask > 0, axis=-1).astype(jnp.float32)


def of_sequence(rollout: Rollout) -> Array:
  """Returns [N] float32, the sum of rewards over each answer."""
  mask = rollout.response_mask
  return jnp.sum(ops.neutral(rollout.rewards, mask) * mask, axis=-1)


def to_go(rollout: Rollout, discount: float) -> Array:
  """Returns [N, L] the discounted rewards from each token on, 0 off the mask.

  That is GAE without a critic: values 0 and lambda 1.
  """
  return ppo.gae(
    rollout.rewards,
    jnp.zeros_like(rollout.response_mask),
    rollout.response_mask,
    discount=discount,
    gae_lambda=1.0,
  )


def spread(x: Array, mask: Array) -> Array:
  """Returns [N, L]: x [N] on every counted token of its answer, else 0."""
  return jnp.where(mask > 0, x[:, None], 0.0)
