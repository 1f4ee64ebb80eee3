"""Group-relative policy optimisation.

  A_i = (R_i - mean_G R) / (std_G R + e)     on every token of answer i
  L = mean_n 1/|y_n| sum_t [ max(-A rho, -A clip(rho)) + beta_l k3 ]

Shao et al. 2024, section 4.1 (arXiv:2402.03300): G = 64, beta_l = 0.04, one
update per rollout. std_G is the sample deviation (n - 1), as in verl and TRL;
e = 1e-6 (TRL: 1e-4). A group of equal rewards has A = 0 exactly.

scale_rewards: "group" is the formula; "none" leaves the division out (Dr.
GRPO); "batch" divides by the population deviation of R_i - mean_G R over all
answers (TRL's "batch" is the deviation of R itself).

What it converges to (METHODS 3.6 and 5.4), with
the KL in the loss:
  - k3: beta p_ref / (lambda - r), not p_ref exp(r / beta) / Z;
  - k2 or k3+ and "none": p_ref exp(r (1 - 1/G) / beta) / Z, since the mean
    contains R_i itself: at G = 4 that is a third more beta;
  - a division by the deviation s makes the effective coefficient beta s, which
    differs between prompts and shrinks as the policy sharpens: below some beta
    it runs away to the best answer.
dr_grpo.py, dapo.py, gspo.py and cispo.py are this module with other defaults.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import groups, returns, surrogate
from rlhf_jax.types import Rollout

SCALES = ("none", "group", "batch")


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of GRPO, and those of surrogate.py."""

  group_size: int = 8  # G = generate.num_samples, which it follows when it is
  # not set; 64 in Shao 2024, 16 in R1
  scale_rewards: str = "group"  # whose deviation divides: none (Dr. GRPO), the
  # prompt's answers, or all answers (TRL)
  scale_epsilon: float = 1e-6  # e, added to that deviation; verl
  kl_loss: str = "k3"  # Shao 2024, eq. 4
  kl_loss_coefficient: float = 0.04  # Shao 2024
  aggregation: str = "seq-mean-token-mean"  # Shao 2024, eq. 3

  def __post_init__(self) -> None:
    super().__post_init__()
    groups.check_size(self.group_size, "GRPO")
    if self.scale_rewards not in SCALES:
      raise ValueError(
        f"scale_rewards={self.scale_rewards!r}: must be one of "
        f"{', '.join(SCALES)}."
      )
    if self.scale_epsilon <= 0.0:
      raise ValueError(f"scale_epsilon={self.scale_epsilon}: must be > 0.")


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, before any epoch.

  Args:
    rollout: unpacked, with rewards; the G answers of a prompt are contiguous.
    config: settings.

  Raises:
    ValueError: rewards are missing, the rollout is packed, or its rows are not
      groups of G.
  """
  returns.check_rollout(rollout, "GRPO")
  earned, exists = returns.of_sequence(rollout), returns.exists(rollout)
  difference = groups.centred(earned, exists, config.group_size)
  if config.scale_rewards == "group":
    scale = groups.deviations(earned, exists, config.group_size)
    difference = difference / (scale + config.scale_epsilon)
  elif config.scale_rewards == "batch":
    scale = jnp.sqrt(ops.masked_variance(difference, exists))
    difference = difference / (scale + config.scale_epsilon)
  mask = rollout.response_mask
  return rollout.replace(advantages=returns.spread(difference, mask))


loss = surrogate.loss
denominators = surrogate.denominators
