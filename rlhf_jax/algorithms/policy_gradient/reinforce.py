"""REINFORCE for language models: the policy gradient itself.

  A_t = R - b,  R = sum_t r_t,  b = mean of R over the rollout, or 0
  L = mean_n sum_t -A log p

Williams 1992; for language Ahmadian et al. 2024, section 2 (arXiv:2402.14740).
The whole answer is one action, whose R carries the KL (shaping.py): the optimum
is p_ref exp(r / beta) / Z. b contains the answer's own R, which scales the
expected gradient by (N - 1) / N; rloo.py does not. There is no importance
ratio, so one optimizer step per rollout; for more, set objective="ppo".

Left out: a moving average as b, which would have to be kept between rollouts.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import returns, surrogate
from rlhf_jax.types import Rollout

BASELINES = ("none", "batch")


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of REINFORCE, and those of surrogate.py."""

  objective: str = "reinforce"  # no ratio, no clip
  aggregation: str = "seq-mean-token-sum"  # log p of an answer is a sum
  baseline: str = "batch"  # b, taken off the return: mean of the batch, or 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.baseline not in BASELINES:
      raise ValueError(
        f"baseline={self.baseline!r}: must be one of {', '.join(BASELINES)}."
      )


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, before any epoch.

  Args:
    rollout: unpacked, with rewards.
    config: settings.

  Raises:
    ValueError: rewards are missing, or the rollout is packed.
  """
  returns.check_rollout(rollout, "REINFORCE")
  earned = returns.of_sequence(rollout)
  if config.baseline == "batch":
    earned, _ = ops.centred(earned, returns.exists(rollout))
  mask = rollout.response_mask
  return rollout.replace(advantages=returns.spread(earned, mask))


loss = surrogate.loss
denominators = surrogate.denominators
