"""The policy-gradient methods by name, and what each needs from a pipeline.

A method is a module with Config, advantages, loss and denominators. A new one
is one file and one line here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from rlhf_jax.algorithms.policy_gradient import (
  cispo,
  dapo,
  dr_grpo,
  grpo,
  gspo,
  ppo,
  reinforce,
  reinforce_pp,
  remax,
  rloo,
)

ALGORITHMS: dict[str, ModuleType] = {
  "ppo": ppo,
  "reinforce": reinforce,
  "rloo": rloo,
  "remax": remax,
  "reinforce_pp": reinforce_pp,
  "grpo": grpo,
  "dr_grpo": dr_grpo,
  "dapo": dapo,
  "gspo": gspo,
  "cispo": cispo,
}
NEEDS_CRITIC = frozenset({"ppo"})
NEEDS_GREEDY = frozenset({"remax"})  # a greedy answer per prompt: with_baseline


def get(name: str) -> ModuleType:
  """Returns the module of a method.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in ALGORITHMS:
    raise ValueError(
      f"algorithm={name!r}: must be one of {', '.join(ALGORITHMS)}."
    )
  return ALGORITHMS[name]


def check_run(
  config: Any,
  *,
  num_samples: int,
  kl_coefficient: float,
  steps_per_rollout: int,
) -> None:
  """Raises ValueError for settings that are wrong together.

  Args:
    config: the Config of a method.
    num_samples: answers sampled to each prompt.
    kl_coefficient: beta of the KL in the reward.
    steps_per_rollout: epochs times minibatches.
  """
  group_size = getattr(config, "group_size", None)
  if group_size is not None and group_size != num_samples:
    raise ValueError(
      f"group_size={group_size}: generate.num_samples is {num_samples}, and a "
      "group is all the answers to one prompt. Set both to the same number."
    )
  in_loss = getattr(config, "kl_loss_coefficient", 0.0)
  if in_loss > 0.0 and kl_coefficient > 0.0:
    raise ValueError(
      f"kl_loss_coefficient={in_loss}: shaping.kl_coefficient is "
      f"{kl_coefficient} too, so the KL would count twice. Set that to 0.0 "
      "with kl_controller='fixed', or kl_loss='none' and its coefficient to 0."
    )
  is_plain = getattr(config, "objective", "ppo") == "reinforce"
  if is_plain and steps_per_rollout > 1:
    raise ValueError(
      f"objective='reinforce': has no importance ratio, and {steps_per_rollout}"
      " steps per rollout are planned; after the first the samples are not the "
      "policy's own. Set epochs and minibatches to 1, or objective='ppo'."
    )
