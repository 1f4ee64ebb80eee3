"""Who takes part in policy training: policy, reference, critic, judges.

Loads the stages before, decides what trains, and refuses combinations that
are known to fail before anything compiles.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import generate
from rlhf_jax.models import heads, roles, transformer
from rlhf_jax.pipelines import build, judge, reward, sft, stages
from rlhf_jax.pipelines.config import ConfigError, Trainable, section
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Value:
  """The critic."""

  # "reward", or "random" (which PPO suffers from); beside a verifier "random"
  # starts at 0 on the policy's weights
  init: str = "reward"
  mode: str = "full"  # what trains: "full", "lora" or "head"
  first_layer: int = 0
  hidden_units: int = 0  # residual MLP beside the head; 0: as the reward model
  pretrain_steps: int = 0  # rollouts on which only the critic learns

  def __post_init__(self) -> None:
    if self.init not in ("reward", "random"):
      raise ConfigError(
        f"init={self.init!r}: must be 'reward' (start as the reward model) "
        "or 'random'."
      )
    if self.pretrain_steps < 0 or self.hidden_units < 0:
      raise ConfigError(
        f"pretrain_steps={self.pretrain_steps}, hidden_units="
        f"{self.hidden_units}: both must be >= 0."
      )


def check_sampling(settings: generate.Config, devices: int) -> None:
  """Raises ConfigError for sampling that breaks the importance ratio."""
  if settings.top_k or settings.top_p < 1.0:
    raise ConfigError(
      f"generate.top_k={settings.top_k}, top_p={settings.top_p}: truncated "
      "sampling changes the distribution that the importance ratio divides "
      "by (METHODS N2). Set top_k=0 and top_p=1.0 for policy training."
    )
  if settings.temperature == 0.0:
    raise ConfigError(
      "generate.temperature=0.0: greedy samples carry no policy gradient. Set "
      "a temperature > 0."
    )
  if settings.compact and devices > 1:
    raise ConfigError(
      f"generate.compact=True on {devices} devices: rows would have to move "
      "between them. Set generate.compact=False."
    )


def starting_policy(config: Any, base: build.Base, mesh) -> stages.Stage:
  """Returns the policy before training, with the role it trains in.

  A LoRA run on a LoRA start goes on with its factors; otherwise the start is
  merged into whole weights first.
  """
  trainable = section(Trainable, config.trainable, "trainable")
  if trainable.mode == "head":
    raise ConfigError("config.trainable.mode='head': a policy has no head.")
  role = build.make_role(base, trainable)
  if not config.init_from:
    variables = sft.start_variables(base, role, jax.random.key(config.seed))
    return stages.Stage(role, variables, {})
  start = stages.load_stage(config.init_from, "sft", base, mesh)
  if start.role == role:
    merged = stages.merged_folder(config.init_from, start.info)
    return stages.Stage(role, start.variables, {"merged_from": str(merged)})
  variables = {"params": stages.start_params(base, mesh, config.init_from)}
  if role.trainable == "lora":
    variables["lora"] = roles.fresh_lora(role, jax.random.key(config.seed))
  return stages.Stage(role, variables, {"merged_from": config.init_from})


def critic_head(settings: Value, scorer: reward_model.Scorer) -> heads.Config:
  """Returns the critic's head: the reward model's, or that and an MLP."""
  head = scorer.role.head
  if settings.init == "random" or not head.hidden_units:
    return dataclasses.replace(head, hidden_units=settings.hidden_units)
  if settings.hidden_units not in (0, head.hidden_units):
    raise ConfigError(
      f"config.value.hidden_units={settings.hidden_units}: the critic starts "
      f"as the reward model, whose head has {head.hidden_units}. Set 0 (as "
      "there), or value.init='random'."
    )
  return head


def critic_role(
  settings: Value, scorer: reward_model.Scorer, model: transformer.Config
) -> roles.Role:
  """Returns the role of the critic, which starts as the reward model.

  Args:
    settings: the config's value section.
    scorer: the reward model.
    model: architecture of this run; its lora_rank serves where the reward
      model has no factors to go on with.

  Raises:
    ConfigError: the setting cannot work on that reward model.
  """
  judge_role = scorer.role
  goes_on = judge_role.trainable == "lora"
  is_moved = settings.first_layer != judge_role.first_layer
  if goes_on and settings.mode == "lora" and is_moved:
    raise ConfigError(
      f"config.value.first_layer={settings.first_layer}: the critic goes on "
      "with the reward model's factors, which begin at layer "
      f"{judge_role.first_layer}. Set value.first_layer="
      f"{judge_role.first_layer}."
    )
  try:
    return dataclasses.replace(
      judge_role,
      model=judge_role.model if goes_on else model,
      trainable=settings.mode,
      first_layer=settings.first_layer,
      head=critic_head(settings, scorer),
    )
  except ValueError as error:
    raise ConfigError(f"config.value: {error}") from error


def starting_critic(
  settings: Value,
  scorer: reward_model.Scorer,
  weights: reward_model.Weights,
  model: transformer.Config,
  key: jax.Array,
) -> stages.Stage:
  """Returns the critic: the reward model, in units of its normalised score."""
  role = critic_role(settings, scorer, model)
  head = heads.init(role.head, role.model.width, key)
  if settings.init == "reward":
    head |= reward_model.fold_normalisation(
      weights.variables["head"], weights.mean, weights.std
    )
  else:
    print(
      "policy: warning: value.init='random': an untrained critic gives noisy "
      "advantages at first. Prefer init='reward', or pretrain_steps > 0."
    )
  variables = dict(weights.variables) | {"head": head}
  if role.trainable == "lora" and "lora" not in variables:
    variables["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
  return stages.Stage(role, variables, {})


def own_critic_role(settings: Value, base: build.Base) -> roles.Role:
  """Returns the role of a critic beside a verifier: the policy's model.

  Args:
    settings: the config's value section.
    base: the model, with the rank of its factors.

  Raises:
    ConfigError: the model cannot train so.
  """
  try:
    return roles.Role(
      model=base.config,
      trainable=settings.mode,
      first_layer=settings.first_layer,
      head=heads.Config(hidden_units=settings.hidden_units),
    )
  except ValueError as error:
    raise ConfigError(f"config.value: {error}") from error


def own_critic(
  settings: Value, policy: stages.Stage, base: build.Base, key: jax.Array
) -> stages.Stage:
  """Returns a critic that starts at 0 on the weights the policy starts from.

  Args:
    settings: the config's value section.
    policy: before training. Its LoRA factors are merged for a critic that
      trains whole; one with factors of its own, or a head alone, starts from
      the weights below them.
    base: the model underneath.
    key: of what is drawn.
  """
  role = own_critic_role(settings, base)
  params = policy.variables["params"]
  if role.trainable == "full" and policy.role.trainable == "lora":
    split = roles.split(policy.role, policy.variables)
    params = roles.sampling_params(policy.role, *split)
  head = heads.init(role.head, role.model.width, key)
  head["output"] = jax.tree.map(jnp.zeros_like, head["output"])
  variables = {"params": params, "head": head}
  if role.trainable == "lora":
    variables["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
  return stages.Stage(role, variables, {})


def check_reward(info: dict, force: bool) -> None:
  """Refuses a reward model that is no better than chance (METHODS 19)."""
  for level, message in info["guards"]:
    if level == "refuse" and not force:
      raise ConfigError(
        f"reward model: {message} Pass --config.force=True to go on anyway."
      )
    print(f"policy: reward model: {level}: {message}")


@dataclasses.dataclass(frozen=True)
class Actors:
  """Everyone, loaded. Trees are split into trainable and frozen."""

  plan: judge.Plan
  weights: judge.Weights  # frozen: base, reference, reward models
  params: PyTree  # {"policy", "value"?}, trainable
  frozen: PyTree  # {"policy", "value"?}, the rest of the same roles
  merged_from: str  # SFT stage whose whole weights the policy started from


def load(
  config: Any,
  base: build.Base,
  mesh: jax.sharding.Mesh,
  value: Value,
  temperature: float,
  row_targets: int,
  *,
  has_critic: bool = True,
) -> Actors:
  """Returns the actors that a policy configuration names.

  Args:
    config: of the policy pipeline.
    base: the model under all of them.
    mesh: where they live.
    value: settings of the critic.
    temperature: of sampling.
    row_targets: response tokens of a row at most.
    has_critic: whether there is one.

  Raises:
    ConfigError: a stage is missing, or a setting cannot work.
    CheckpointError: a stage was trained on another model or tokenizer.
  """
  policy = starting_policy(config, base, mesh)
  scorers = {}
  if config.reward:
    scorer, scorer_weights, info = reward.load(config.reward, base, mesh)
    check_reward(info, config.force)
    scorers["reward"] = (scorer, scorer_weights)
  for name, path in config.monitors.items():
    scorers[name] = reward.load(path, base, mesh)[:2]
  critic = None
  if has_critic:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    if config.reward:
      critic = starting_critic(value, scorer, scorer_weights, base.config, key)
    else:
      critic = own_critic(value, policy, base, key)
  return assemble(base, policy, critic, scorers, temperature, row_targets)


def assemble(
  base: build.Base,
  policy: stages.Stage,
  critic: stages.Stage | None,
  scorers: dict[str, tuple[reward_model.Scorer, reward_model.Weights]],
  temperature: float,
  row_targets: int,
) -> Actors:
  """Returns the actors of loaded stages; arrays may be abstract.

  Args:
    base: the model under all of them.
    policy: before training; it is the reference too.
    critic: before training, or None without one.
    scorers: the reward model, named "reward" (absent with a verifier), and
      monitors.
    temperature: of sampling.
    row_targets: response tokens of a row at most.
  """
  plan = judge.make_plan(
    base, policy, policy, critic, scorers, temperature, row_targets
  )
  policy_params, policy_frozen = roles.split(policy.role, policy.variables)
  params, frozen = {"policy": policy_params}, {"policy": policy_frozen}
  if critic is not None:
    params["value"], frozen["value"] = roles.split(
      critic.role, critic.variables
    )
  return Actors(
    plan=plan,
    weights=judge.Weights(
      base=base.params if plan.shared else {},
      reference=policy.variables,
      scorers={name: weights for name, (_, weights) in scorers.items()},
    ),
    params=params,
    frozen=frozen,
    merged_from=policy.info.get("merged_from", ""),
  )
