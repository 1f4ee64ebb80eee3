"""The policy-gradient methods by name, and what a module must be to be one.

A method is a module with

  Config                        frozen dataclass, every field with a default
  advantages(rollout, config) -> rollout with advantages
  loss(logprobs, entropies, values, rollout, config, denominators)
                                -> contribution [], metrics
  denominators(rollout, config) -> counts of a minibatch

and, where it needs them,

  HAS_CRITIC = True             it trains a critic (ppo.py)
  TOKEN_REWARDS = True          a token's advantage is made of the rewards from
                                it on, not of the answer's whole reward
  further(config) -> {name: changes of the sampling settings}
                                other answers to the prompts (remax.py)

Without a critic Config extends surrogate.Config, and loss and denominators are
surrogate's: `advantages` is then all there is to write. A new one of this
package is one file and one line here; one of a user's own is any module that
`check_method` lets through.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from rlhf_jax.algorithms import signatures
from rlhf_jax.algorithms.policy_gradient import (
  cispo,
  dapo,
  dr_grpo,
  gdpo,
  grpo,
  gspo,
  ppo,
  reinforce,
  reinforce_pp,
  remax,
  rloo,
)
from rlhf_jax.types import Rollout

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
  "gdpo": gdpo,
}
FUNCTIONS = {
  "advantages": ("rollout", "config"),
  "loss": (
    "logprobs",
    "entropies",
    "values",
    "rollout",
    "config",
    "denominators",
  ),
  "denominators": ("rollout", "config"),
}
# Of a Config, beside what its own functions read: update.py and the pipelines
# read these.
FIELDS = ("update_kl_limit", "ptx_coefficient", "entropy_coefficient")


def has_critic(module: Any) -> bool:
  """Returns whether a method trains a critic."""
  return getattr(module, "HAS_CRITIC", False)


def check_token_rewards(module: Any, config: Any, mode: str) -> None:
  """Raises ValueError for rewards of tokens that a method does not tell apart.

  Args:
    module: the method.
    config: its Config.
    mode: of token_rewards.py.
  """
  label, reason = signatures.name_of(module).rpartition(".")[2], ""
  if not _takes_tokens(module):
    reason = "gives all tokens of an answer its whole reward"
  elif not has_critic(module) and getattr(config, "group_size", None):
    reason = f"compares whole answers in groups of {config.group_size}"
  if reason:
    able = [name for name, x in ALGORITHMS.items() if _takes_tokens(x)]
    raise ValueError(
      f"token_rewards={mode!r}: {label} {reason}, so rewards of its tokens "
      f"would only be summed. Set 'none', or use {', '.join(able)} (without "
      "groups); a method of your own says TOKEN_REWARDS = True."
    )
  discount = getattr(config, "discount", 1.0)
  if mode == "potential" and discount != 1.0:
    raise ValueError(
      f"token_rewards='potential' with discount={discount}: the potential is "
      "taken off without discount, and the optimum would move. Set discount=1."
    )


def _takes_tokens(module: Any) -> bool:
  return getattr(module, "TOKEN_REWARDS", False)


def further_of(module: Any, config: Any) -> dict[str, dict[str, Any]]:
  """Returns the further rollouts of a method: name -> changes of sampling.

  Args:
    module: the method.
    config: its Config.

  Raises:
    ValueError: `further` returns anything else.
  """
  if not hasattr(module, "further"):
    return {}
  found = module.further(config)
  is_right = isinstance(found, dict) and all(
    isinstance(name, str)
    and isinstance(changes, dict)
    and all(isinstance(field, str) for field in changes)
    for name, changes in found.items()
  )
  if not is_right:
    raise ValueError(
      f"method {signatures.name_of(module)}: further returned {found!r}; it "
      "maps the name of a rollout to changes of the sampling settings. Return "
      "such as {'greedy': {'temperature': 0.0, 'num_samples': 1}}."
    )
  return found


def check_method(module: Any) -> None:
  """Raises ValueError unless a module is a method (module docstring)."""
  signatures.check_module(
    module,
    FUNCTIONS,
    "Without a critic, write loss = surrogate.loss and denominators = "
    "surrogate.denominators.",
  )
  label = signatures.name_of(module)
  lacking = [name for name in FIELDS if not hasattr(module.Config, name)]
  if lacking:
    raise ValueError(
      f"method {label}: Config has no {', '.join(lacking)}; an update reads "
      "them. Extend surrogate.Config, or ppo.Config for a method with a critic."
    )
  signatures.check_claims(module, ("HAS_CRITIC", "TOKEN_REWARDS"))
  if hasattr(module, "further"):
    signatures.check_call(module.further, "further", ("config",))


def check_advantages(function: Callable[..., Rollout]) -> None:
  """Raises ValueError unless it can be called as (rollout, config)."""
  signatures.check_call(function, "advantages", FUNCTIONS["advantages"])


def compute_advantages(
  function: Callable[..., Rollout], rollout: Rollout, config: Any
) -> Rollout:
  """Returns what a method's `advantages` makes of a rollout, checked.

  Args:
    function: a method's, or a user's own.
    rollout: unpacked, with rewards.
    config: of the method.

  Raises:
    ValueError: no rollout comes back, or one without advantages [N, L].
  """
  found = function(rollout, config)
  is_set = isinstance(found, Rollout) and found.advantages is not None
  shape = jnp.shape(found.advantages) if is_set else None
  if shape != rollout.response_mask.shape:
    what = f"advantages {shape}" if is_set else type(found).__name__
    raise ValueError(
      f"advantages={signatures.name_of(function)}: returned {what}; a rollout "
      f"with advantages {rollout.response_mask.shape} is wanted. Return "
      "rollout.replace(advantages=...), one number a token "
      "(returns.spread gives an answer's to each)."
    )
  return found


def check_run(
  config: Any,
  *,
  num_samples: int,
  kl_coefficient: float,
  steps_per_rollout: int,
  objective: Callable[..., Any] | None = None,
) -> None:
  """Raises ValueError for settings that are wrong together.

  Args:
    config: the Config of a method.
    num_samples: answers sampled to each prompt.
    kl_coefficient: beta of the KL in the reward.
    steps_per_rollout: epochs times minibatches.
    objective: of a user's own, in place of config.objective; or None.
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
  if is_plain and objective is None and steps_per_rollout > 1:
    raise ValueError(
      f"objective='reinforce': has no importance ratio, and {steps_per_rollout}"
      " steps per rollout are planned; after the first the samples are not the "
      "policy's own. Set epochs and minibatches to 1, or objective='ppo'."
    )
