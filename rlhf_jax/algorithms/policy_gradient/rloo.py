"""REINFORCE, leave one out: the other answers of a prompt are the baseline.

  A_i = R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean_G R)
  L = mean_n sum_t max(-A rho, -A clip(rho))

Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for free!");
Ahmadian et al. 2024 (arXiv:2402.14740): G = 2 or 4, beta = 0.03 or 0.10. R is
the reward of the whole answer with the KL in it, so that the gradient is
unbiased for any G and the optimum is p_ref exp(r / beta) / Z. Differs from
grpo.py, whose mean contains the answer's own R.

rho is 1 in the paper's one step per rollout; in further ones the ratio is per
token and clipped, as in PPO.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import groups, returns, surrogate
from rlhf_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of RLOO, and those of surrogate.py."""

  group_size: int = 4  # G = generate.num_samples, which it follows when it is
  # not set; 2 or 4 in Ahmadian 2024
  aggregation: str = "seq-mean-token-sum"  # log p of an answer is a sum

  def __post_init__(self) -> None:
    super().__post_init__()
    groups.check_size(self.group_size, "RLOO")


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, before any epoch.

  An answer without others that count in its group gets 0.

  Args:
    rollout: unpacked, with rewards; the G answers of a prompt are contiguous.
    config: settings.

  Raises:
    ValueError: rewards are missing, the rollout is packed, or its rows are not
      groups of G.
  """
  returns.check_rollout(rollout, "RLOO")
  difference = groups.leave_one_out(
    returns.of_sequence(rollout), returns.exists(rollout), config.group_size
  )
  mask = rollout.response_mask
  return rollout.replace(advantages=returns.spread(difference, mask))


loss = surrogate.loss
denominators = surrogate.denominators
