"""GDPO: each reward is normalised within its group on its own, then added.

  a_k,i = (r_k,i - mean_G r_k) / (std_G r_k + e)
  A_i = sum_k w_k a_k,i / (std over all answers + e)   on every token of i

Liu et al. 2026, arXiv:2601.05242, equations 4 to 6. GRPO on the sum of the
rewards gives (1, 0) and (0, 1) one advantage, and where the sum is equal in the
whole group, none; here each reward keeps what tells its answers apart, and a
weight means the same whatever the spread of its reward. The last division
keeps the size of A from growing with the number of rewards. The mean of A over
the batch is 0 by itself.

The rewards are the scores of several judges (rollout.components), conditioned
as they say; nothing of shaping.py reaches them but missing_eos="mask". A judge
that does not judge a prompt adds nothing there. With one judge the reward is
the shaped one, and GDPO is GRPO divided by the deviation over the batch.

The loss is GRPO's (k3 in the loss). What GRPO converges to with a division by
the group's deviation holds for each reward here (grpo.py).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import groups, returns, surrogate
from rlhf_jax.types import Array, Rollout


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of GDPO, and those of surrogate.py."""

  group_size: int = 8  # G = generate.num_samples, which it follows when it is
  # not set
  reward_weights: tuple | None = None  # w, one a judge, in their order; None:
  # those of the judges
  scale_epsilon: float = 1e-6  # e, added to both deviations
  kl_loss: str = "k3"  # as in GRPO
  kl_loss_coefficient: float = 0.04  # as in GRPO
  aggregation: str = "seq-mean-token-mean"  # as in GRPO

  def __post_init__(self) -> None:
    super().__post_init__()
    groups.check_size(self.group_size, "GDPO")
    if self.scale_epsilon <= 0.0:
      raise ValueError(f"scale_epsilon={self.scale_epsilon}: must be > 0.")
    if self.reward_weights is not None and not any(self.reward_weights):
      raise ValueError(
        f"reward_weights={self.reward_weights}: must have one that is not 0."
      )


def normalised(x: Array, weights: Array, config: Config) -> Array:
  """Returns [N] (x - mean_G) / (std_G + e), 0 where weights is 0.

  Args:
    x: [N].
    weights: [N], 1 on answers that count.
    config: with group_size and scale_epsilon.
  """
  size = config.group_size
  scale = groups.deviations(x, weights, size) + config.scale_epsilon
  return groups.centred(x, weights, size) / scale


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, before any epoch.

  Args:
    rollout: unpacked, with rewards, and with components where there are several
      judges; the G answers of a prompt are contiguous.
    config: settings.

  Raises:
    ValueError: rewards are missing, the rollout is packed, its rows are not
      groups of G, or the weights are not one a judge.
  """
  returns.check_rollout(rollout, "GDPO")
  exists = returns.exists(rollout)
  if rollout.components is None:
    values, mask = returns.of_sequence(rollout)[:, None], exists[:, None]
  else:
    values = rollout.components.values
    mask = rollout.components.mask * exists[:, None]
  count = values.shape[1]
  weights = config.reward_weights
  weights = (1.0,) * count if weights is None else weights
  if len(weights) != count:
    raise ValueError(
      f"reward_weights={weights}: there are {count} rewards. Give one weight "
      "for each, or None."
    )
  total = jnp.zeros_like(exists)
  for k, weight in enumerate(weights):
    total = total + weight * normalised(values[:, k], mask[:, k], config)
  scale = jnp.sqrt(ops.masked_variance(total, exists)) + config.scale_epsilon
  spread = returns.spread(total / scale, rollout.response_mask)
  return rollout.replace(advantages=spread)


loss = surrogate.loss
denominators = surrogate.denominators
