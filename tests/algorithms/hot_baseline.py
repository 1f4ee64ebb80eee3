"""A method that is not in the package, as a user writes one.

  A_i = R_i - (h + g) / 2,   h = mean score of M hot answers, g of a greedy one

Both are independent of what was sampled, so the gradient is unbiased.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax.algorithms.policy_gradient import (
  further_rollouts,
  groups,
  returns,
  surrogate,
)
from rlhf_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of the toy, and those of surrogate.py."""

  hot_samples: int = 2  # M
  aggregation: str = "seq-mean-token-sum"


def further(config: Config) -> dict:
  return {
    "hot": {"temperature": 2.0, "num_samples": config.hot_samples},
    "greedy": {"temperature": 0.0, "num_samples": 1},
  }


def advantages(rollout: Rollout, config: Config) -> Rollout:
  returns.check_rollout(rollout, "hot_baseline")
  hot, greedy = (
    further_rollouts.named(rollout, name, "hot_baseline").score
    for name in ("hot", "greedy")
  )
  mean = jnp.mean(groups.split(hot, config.hot_samples), axis=1)
  mask = rollout.response_mask
  each = further_rollouts.per_sample((mean + greedy) / 2, len(mask), "hot")
  earned = returns.of_sequence(rollout) - each
  return rollout.replace(advantages=returns.spread(earned, mask), further={})


loss = surrogate.loss
denominators = surrogate.denominators
