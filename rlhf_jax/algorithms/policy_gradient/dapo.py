"""DAPO: decoupled clip and dynamic sampling, from GRPO.

  A_i = (R_i - mean_G R) / (std_G R + e)
  L = token-mean max(-A rho, -A clip(rho, 1 - 0.2, 1 + 0.28))

Yu et al. 2025 (arXiv:2503.14476): a higher upper clip, an average over tokens,
no KL, G = 16. Two parts of it are not in the loss:
  - dynamic sampling: more prompts are drawn until all groups of a batch are
    informative (groups.informative), in pipelines/rollouts.py. It changes the
    distribution of prompts: group/accepted_share says by how much;
  - overlong answers: shaping.overlong_tokens = 20,480 and overlong_cache =
    4,096 for the soft penalty, missing_eos="mask" for the filter.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import grpo


@dataclasses.dataclass(frozen=True)
class Config(grpo.Config):
  """Settings of GRPO with the defaults of DAPO, and of its resampling."""

  group_size: int = 16  # Yu 2025
  clip_ratio_high: float | None = 0.28  # clip-higher, Yu 2025
  kl_loss: str = "none"  # no KL in Yu 2025
  kl_loss_coefficient: float = 0.0  # no KL in Yu 2025
  aggregation: str = "token-mean"  # Yu 2025
  resample_rounds: int = (
    10  # batches of prompts drawn for a step, at most, until
  )
  # no group of it has equal scores; 1 takes the first as it is; 10 in the
  # released recipe (verl)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.resample_rounds < 1:
      raise ValueError(
        f"resample_rounds={self.resample_rounds}: must be >= 1; 1 draws no "
        "second batch of prompts."
      )


advantages = grpo.advantages
loss = grpo.loss
denominators = grpo.denominators
