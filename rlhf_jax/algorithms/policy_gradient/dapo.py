"""DAPO: decoupled clip and dynamic sampling, from GRPO.

  A_i = (R_i - mean_G R) / (std_G R + e)
  L = token-mean max(-A rho, -A clip(rho, 1 - 0.2, 1 + 0.28))

Yu et al. 2025 (arXiv:2503.14476): a higher upper clip, an average over tokens,
no KL, G = 16. Two parts of it are not in the loss:
  - dynamic sampling: prompts are sampled until enough groups are informative
    (groups.informative). It changes the distribution of prompts, so log the
    share that was kept, and bound the retries;
  - overlong answers: shaping.overlong_tokens = 20,480 and overlong_cache =
    4,096 for the soft penalty, missing_eos="mask" for the filter.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import grpo


@dataclasses.dataclass(frozen=True)
class Config(grpo.Config):
  """Settings of GRPO with the defaults of DAPO."""

  group_size: int = 16
  clip_ratio_high: float | None = 0.28
  kl_loss: str = "none"
  kl_loss_coefficient: float = 0.0
  aggregation: str = "token-mean"


advantages = grpo.advantages
loss = grpo.loss
denominators = grpo.denominators
