"""REINFORCE++: the batch is the baseline and the scale.

  without groups  A_t = whiten(sum_{l >= t} gamma^{l - t} r_l)
  with groups     A_t = whiten(R_i - mean_G R)        ("-baseline")
  L = token-mean max(-A rho, -A clip(rho))

Hu et al. 2025 (arXiv:2501.03262). Whitening is over all response tokens of the
rollout. With the KL in the reward (the form without groups) it scales reward
and KL alike and leaves the optimum p_ref exp(r / beta) / Z where it is. With
the KL in the loss (kl_loss="k2", the form with groups) the division by the
deviation s makes the effective coefficient beta s, and s moves with the policy;
scales_advantages=False only takes the mean away. The paper clips rewards at 10:
shaping.clip.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import groups, returns, surrogate
from rlhf_jax.types import Rollout

TOKEN_REWARDS = True


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of REINFORCE++, and those of surrogate.py."""

  group_size: int | None = None  # G = generate.num_samples of the -baseline
  # form; None: no groups
  discount: float = 1.0  # gamma of later rewards, in the form without groups
  scales_advantages: bool = True  # divide by the deviation over all tokens

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.group_size is not None:
      groups.check_size(self.group_size, "REINFORCE++ with groups")
    if not 0.0 <= self.discount <= 1.0:
      raise ValueError(f"discount={self.discount}: must be in [0, 1].")
    if self.group_size is not None and self.discount != 1.0:
      raise ValueError(
        f"discount={self.discount}: groups compare whole answers, which are "
        "not discounted. Set 1.0, or group_size=None."
      )


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, before any epoch.

  Args:
    rollout: unpacked, with rewards; with group_size, the G answers of a prompt
      are contiguous.
    config: settings.

  Raises:
    ValueError: rewards are missing, the rollout is packed, or its rows are not
      groups of G.
  """
  returns.check_rollout(rollout, "REINFORCE++")
  mask = rollout.response_mask
  if config.group_size is None:
    earned = returns.to_go(rollout, config.discount)
  else:
    difference = groups.centred(
      returns.of_sequence(rollout), returns.exists(rollout), config.group_size
    )
    earned = returns.spread(difference, mask)
  if config.scales_advantages:
    earned = ops.whiten(earned, mask)
  else:
    earned, _ = ops.centred(earned, mask)
  return rollout.replace(advantages=earned)


loss = surrogate.loss
denominators = surrogate.denominators
