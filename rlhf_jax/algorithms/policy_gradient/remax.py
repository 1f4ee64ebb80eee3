"""ReMax: the greedy answer to the same prompt is the baseline.

  A_t = sum_{l >= t} r_l - b,   b = s'(greedy answer)
  L = mean_n sum_t -A log p

Li et al. 2023 (arXiv:2310.10505). b does not depend on what was sampled, so
the gradient is unbiased, and the optimum with the KL in the reward is p_ref
exp(r / beta) / Z. It costs one greedy answer per prompt, judged and shaped by
the same rules as the samples (shaping.shaped_scores), without KL.

There is no importance ratio, so one optimizer step per rollout; for more, set
objective="ppo".
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  further_rollouts,
  returns,
  surrogate,
)
from rlhf_jax.types import Rollout

TOKEN_REWARDS = True


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of ReMax, and those of surrogate.py."""

  objective: str = "reinforce"  # no ratio, no clip
  aggregation: str = "seq-mean-token-sum"  # log p of an answer is a sum


def further(config: Config) -> dict[str, dict[str, Any]]:
  """Returns how else to sample: one greedy answer to each prompt."""
  del config
  together = {"batch_size": None, "refill": None}  # few: no prompt waits
  return {"greedy": {"temperature": 0.0, "num_samples": 1} | together}


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, and takes the greedy answers out.

  Args:
    rollout: unpacked, with rewards and further["greedy"], [P] shaped scores.
    config: settings.

  Raises:
    ValueError: rewards or the greedy answers are missing, the samples do not
      split into P groups, or the rollout is packed.
  """
  del config
  returns.check_rollout(rollout, "ReMax")
  score = further_rollouts.named(rollout, "greedy", "ReMax").score
  mask = rollout.response_mask
  each = further_rollouts.per_sample(score, len(mask), "further['greedy']")
  earned = returns.to_go(rollout, discount=1.0)
  baseline = ops.neutral(returns.spread(each, mask), mask)
  return rollout.replace(advantages=earned - baseline, further={})


loss = surrogate.loss
denominators = surrogate.denominators
