"""Dr. GRPO: GRPO "done right", without its two divisions.

  A_i = R_i - mean_G R
  L = 1/(N T_max) sum_nt max(-A rho, -A clip(rho))

Liu et al. 2025 (arXiv:2503.20783). No deviation: hard and easy prompts weigh
alike. No 1/|y|: long wrong answers are not under-penalised; T_max is a constant
that only scales the step. No KL. G = 8 and answers of up to 3,000 tokens there.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.algorithms.policy_gradient import grpo

LONGEST = 3000  # tokens of an answer in the paper


@dataclasses.dataclass(frozen=True)
class Config(grpo.Config):
  """Settings of GRPO with the defaults of Dr. GRPO."""

  scale_rewards: str = "none"  # Liu 2025: hard and easy prompts weigh alike
  kl_loss: str = "none"  # no KL in Liu 2025
  kl_loss_coefficient: float = 0.0  # no KL in Liu 2025
  aggregation: str = "seq-sum-const"  # Liu 2025: no 1/|y|
  aggregation_tokens: int | None = None  # set it to the longest answer; None:
  # LONGEST where the mode reads it

  def __post_init__(self) -> None:
    if self.aggregation == "seq-sum-const" and self.aggregation_tokens is None:
      object.__setattr__(self, "aggregation_tokens", LONGEST)
    super().__post_init__()


advantages = grpo.advantages
loss = grpo.loss
denominators = grpo.denominators
