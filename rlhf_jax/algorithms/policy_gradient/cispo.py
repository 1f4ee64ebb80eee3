"""CISPO: the importance weight is clipped, not the update; from GRPO.

  L = token-mean -A log p stop(clip(rho, 0, 1 + e_high))

MiniMax 2025 (arXiv:2506.13585). No token loses its gradient: rare words that
start a new thought are what PPO's clip drops first. There is no lower clip. The
paper tunes e_high without printing it; 0.2 here is PPO's. No KL there.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import grpo


@dataclasses.dataclass(frozen=True)
class Config(grpo.Config):
  """Settings of GRPO with the defaults of CISPO."""

  objective: str = "cispo"  # the weight is clipped, not the update
  clip_ratio: float = 1.0  # no lower clip
  clip_ratio_high: float | None = 0.2  # not printed in the paper; PPO's
  kl_loss: str = "none"  # no KL in MiniMax 2025
  kl_loss_coefficient: float = 0.0  # no KL in MiniMax 2025
  aggregation: str = "token-mean"  # MiniMax 2025


advantages = grpo.advantages
loss = grpo.loss
denominators = grpo.denominators
