"""GSPO: one importance ratio per answer, from GRPO.

  s_i = exp(mean_t log rho_t)
  L = mean_n max(-A s, -A clip(s, 1 - 3e-4, 1 + 4e-4))

Zheng et al. 2025 (arXiv:2507.18071). The ratio is the geometric mean over the
answer, so the clip is far narrower than PPO's, and clipping takes out whole
answers. No KL there.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import grpo


@dataclasses.dataclass(frozen=True)
class Config(grpo.Config):
  """Settings of GRPO with the defaults of GSPO."""

  objective: str = "gspo"  # one ratio per answer
  clip_ratio: float = 3e-4  # Zheng 2025
  clip_ratio_high: float | None = 4e-4  # Zheng 2025
  kl_loss: str = "none"  # no KL in Zheng 2025
  kl_loss_coefficient: float = 0.0  # no KL in Zheng 2025


advantages = grpo.advantages
loss = grpo.loss
denominators = grpo.denominators
