"""The critic of PPO in a notebook: a reward model's twin, or one at 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from rlhf_jax.programs.critic import Value, own_critic, starting_critic
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError


def start(policy: Any, critic: Any, seed: int) -> stages.Stage:
  """Returns the critic before training.

  Args:
    policy: beside which it learns.
    critic: a RewardModel that it starts as, or critic.Value(init="random").
    seed: of what is drawn.

  Raises:
    UserError: a reward model of another base, or settings left out here.
  """
  world = World(policy.mesh, Path())
  key = jax.random.fold_in(jax.random.key(seed), 1)
  if hasattr(critic, "scorer"):
    if critic.base is not policy.base or critic.mesh != policy.mesh:
      raise UserError(
        "critic: a reward model on another model or mesh than the policy. "
        "Load both alike, or make one with policy.reward_model()."
      )
    role = critic.role
    value = Value(mode=role.trainable, first_layer=role.first_layer)
    return starting_critic(
      value, *critic.scorer, policy.base.config, key, world
    )
  if not isinstance(critic, Value) or critic.init != "random":
    raise UserError(
      f"critic={critic!r:.60}: must be a reward model, which it starts as, or "
      "critic.Value(init='random', mode='head')."
    )
  if critic.is_shared:
    raise UserError(
      "critic: trunk='shared': the policy pipeline trains a critic on the "
      "policy's trunk. Set trunk='own'."
    )
  if critic.pretrain_steps:
    raise UserError(
      f"critic: pretrain_steps={critic.pretrain_steps}: the policy pipeline "
      "trains a critic alone first. Set 0."
    )
  return own_critic(critic, policy.stage, policy.base, key, world)
