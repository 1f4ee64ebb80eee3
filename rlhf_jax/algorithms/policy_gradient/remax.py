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

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import returns, surrogate
from rlhf_jax.types import Array, Rollout


@dataclasses.dataclass(frozen=True)
class Config(surrogate.Config):
  """Settings of ReMax, and those of surrogate.py."""

  objective: str = "reinforce"  # no ratio, no clip
  aggregation: str = "seq-mean-token-sum"  # log p of an answer is a sum


def with_baseline(rollout: Rollout, greedy_scores: Array) -> Rollout:
  """Returns the rollout with b on each sample.

  Args:
    rollout: [N, L]; the N / P samples of a prompt are contiguous rows.
    greedy_scores: [P] shaped scores of one greedy answer per prompt.

  Raises:
    ValueError: the rows do not split into P groups.
  """
  rows, prompts = rollout.tokens.shape[0], greedy_scores.shape[0]
  if rows % prompts:
    raise ValueError(
      f"greedy_scores has {prompts} prompts: {rows} rows do not split into "
      "their groups. Give one greedy score per prompt, in prompt order."
    )
  each = jnp.repeat(greedy_scores.astype(jnp.float32), rows // prompts)
  return rollout.replace(baseline=each)


def advantages(rollout: Rollout, config: Config) -> Rollout:
  """Writes advantages into a rollout, once, and takes the baseline out.

  Args:
    rollout: unpacked, with rewards and baseline.
    config: settings.

  Raises:
    ValueError: rewards or baseline are missing, or the rollout is packed.
  """
  del config
  returns.check_rollout(rollout, "ReMax")
  if rollout.baseline is None:
    raise ValueError(
      "rollout.baseline is None: ReMax subtracts the score of the greedy "
      "answer to each prompt. Sample and judge one, then remax.with_baseline."
    )
  mask = rollout.response_mask
  earned = returns.to_go(rollout, discount=1.0)
  baseline = ops.neutral(returns.spread(rollout.baseline, mask), mask)
  return rollout.replace(advantages=earned - baseline, baseline=None)


loss = surrogate.loss
denominators = surrogate.denominators
