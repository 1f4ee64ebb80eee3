"""The critic before training: as the reward model, or at 0 on the policy.

It has weights of its own, or is a head on the policy's last hidden state
(trunk="shared"): one forward and one backward pass then serve both.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import schema
from rlhf_jax.models import heads, roles, transformer, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import scorers
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.ensembles import Group, GroupWeights
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Value:
  """The critic."""

  init: str = "reward"  # its weights at the start; "random" is what PPO suffers
  # from, beside a verifier it starts at 0 on the policy's weights
  mode: str = "full"  # what trains: "full", "lora" or "head"
  first_layer: int = 0  # layers below are frozen, their output computed once
  hidden_units: int = 0  # residual MLP beside the head; 0: as the reward model
  pretrain_steps: int = 0  # rollouts on which only the critic learns
  trunk: str = "own"  # "shared": a head on the policy's last hidden state, one
  # pass serves both; with init="random"
  stops_gradient: bool = False  # of a shared trunk: the value loss trains the
  # head alone
  member: int | None = None  # of an ensemble that judges, the one that the
  # critic starts as; None: the mean of linear heads
  judge: str = ""  # of several judges with names, the reward model that the
  # critic starts as; "" where one reward model judges

  def __post_init__(self) -> None:
    if self.init not in ("reward", "random"):
      raise FieldError(
        f"init={self.init!r}: must be 'reward' (start as the reward model) "
        "or 'random'."
      )
    if self.judge and self.init == "random":
      raise FieldError(
        f"judge={self.judge!r} with init='random': is the judge that the "
        "critic starts as. Set '', or init='reward'."
      )
    if self.pretrain_steps < 0 or self.hidden_units < 0:
      raise FieldError(
        f"pretrain_steps={self.pretrain_steps}, hidden_units="
        f"{self.hidden_units}: both must be >= 0."
      )
    if self.member is not None and (self.member < 0 or self.init == "random"):
      raise FieldError(
        f"member={self.member} with init={self.init!r}: is the number, from 0, "
        "of the member that the critic starts as. Set None, or init='reward'."
      )
    schema.check_choice("trunk", self.trunk, ("own", "shared"))
    self._check_trunk()

  def _check_trunk(self) -> None:
    """Checks what is said of a critic with weights of its own, or without."""
    if not self.is_shared:
      if self.stops_gradient:
        raise FieldError(
          "stops_gradient=True: with trunk='own' the value loss does not reach "
          "the policy. Set False, or trunk='shared'."
        )
      return
    if self.init != "random":
      raise FieldError(
        f"init={self.init!r}: with trunk='shared' the critic is a head on the "
        "policy and cannot start as the reward model. Set init='random' (its "
        "values are 0 at first), or trunk='own'."
      )
    if self.mode != "full":
      raise FieldError(
        f"mode={self.mode!r}: with trunk='shared' the value loss trains what "
        "trainable.mode says. Set mode='full'; for the head alone "
        "stops_gradient=True."
      )
    if self.first_layer:
      raise FieldError(
        f"first_layer={self.first_layer}: with trunk='shared' "
        "trainable.first_layer says it. Set 0."
      )

  @property
  def is_shared(self) -> bool:
    """Whether the critic is a head on the policy's last hidden state."""
    return self.trunk == "shared"


def critic_head(settings: Value, scorer: reward_model.Scorer) -> heads.Config:
  """Returns the critic's head: the reward model's, or that and an MLP."""
  head = scorer.role.head
  if settings.init == "random" or not head.hidden_units:
    return dataclasses.replace(head, hidden_units=settings.hidden_units)
  if settings.hidden_units not in (0, head.hidden_units):
    raise FieldError(
      f"value.hidden_units={settings.hidden_units}: the critic starts "
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
    FieldError: the setting cannot work on that reward model.
  """
  judge_role = scorer.role.alone
  if settings.init == "reward" and scorer.score_of_steps:
    raise FieldError(
      "value.init='reward': the reward model judges steps, and its score of an "
      "answer is made of their probabilities, so a critic cannot start as it. "
      "Set value.init='random'."
    )
  goes_on = judge_role.trainable == "lora"
  is_moved = settings.first_layer != judge_role.first_layer
  if goes_on and settings.mode == "lora" and is_moved:
    raise FieldError(
      f"value.first_layer={settings.first_layer}: the critic goes on "
      "with the reward model's factors, which begin at layer "
      f"{judge_role.first_layer}. Set value.first_layer="
      f"{judge_role.first_layer}."
    )
  with schema.as_field("value: "):
    return dataclasses.replace(
      judge_role,
      model=judge_role.model if goes_on else model,
      trainable=settings.mode,
      first_layer=settings.first_layer,
      head=critic_head(settings, scorer),
    )


def _member_of(
  settings: Value,
  scorer: reward_model.Scorer | Group,
  weights: reward_model.Weights | GroupWeights,
  world: World,
) -> tuple[reward_model.Scorer, reward_model.Weights]:
  """Returns what the critic starts as: of an ensemble one member, or the mean.

  Raises:
    FieldError: it cannot be what the settings say.
  """
  is_group = isinstance(scorer, Group)
  count = len(scorer.parts) if is_group else scorer.role.members
  chosen = 0 if settings.init == "random" else settings.member
  if count == 1 and settings.member is not None:
    raise FieldError(
      f"value.member={chosen}: the reward model is no ensemble. Set None."
    )
  if count == 1:
    return scorer, weights
  has_mean = not is_group and not (
    scorer.role.own_factors or scorer.role.head.hidden_units
  )
  if chosen is None and has_mean:
    return scorer, weights
  if chosen is None or chosen >= count:
    raise FieldError(
      f"value.member={chosen}: the reward model is an ensemble of {count}, and "
      "a critic starts as one of its members, or as the mean where they are "
      f"linear heads on one trunk. Set value.member to one of 0 to {count - 1},"
      " or value.init='random'."
    )
  if is_group:
    alone = dataclasses.replace(settings, member=None)
    part = scorer.parts[chosen], weights.parts[chosen]
    return _member_of(alone, *part, world)
  return reward_model.of_member(scorer, weights, chosen, world.compute)


def starting_critic(
  settings: Value,
  scorer: reward_model.Scorer | Group,
  weights: reward_model.Weights | GroupWeights,
  model: transformer.Config,
  key: jax.Array,
  world: World,
) -> stages.Stage:
  """Returns the critic: the reward model, in units of its normalised score."""
  scorer, weights = _member_of(settings, scorer, weights, world)
  role = critic_role(settings, scorer, model)
  fold = reward_model.fold_normalisation
  if scorer.role.members > 1:
    fold = reward_model.mean_head

  def make_head(
    key: jax.Array, head: PyTree, mean: jax.Array, std: jax.Array
  ) -> PyTree:
    made = heads.init(role.head, role.model.width, key)
    if settings.init == "reward":
      made |= fold(head, mean, std)
    return {"head": made}

  if settings.init != "reward" and not world.is_planned:
    print(
      "policy: warning: value.init='random': an untrained critic gives noisy "
      "advantages at first. Prefer init='reward', or pretrain_steps > 0."
    )
  variables = dict(weights.variables) | world.compute(
    make_head, key, weights.variables["head"], weights.mean, weights.std
  )
  if role.trainable == "lora" and "lora" not in variables:
    variables |= world.compute(
      lambda k: {"lora": roles.fresh_lora(role, k)}, jax.random.fold_in(key, 1)
    )
  return stages.Stage(role, variables, {})


def _head_at_0(config: heads.Config, width: int, key: jax.Array) -> PyTree:
  """Returns a head whose values are 0."""
  head = heads.init(config, width, key)
  head["output"] = jax.tree.map(jnp.zeros_like, head["output"])
  return head


def shared_critic(
  settings: Value, policy: stages.Stage, key: jax.Array, world: World
) -> stages.Stage:
  """Returns a head of value 0 for the policy's last hidden state.

  Its variables are {"head"}; the rest is the policy, see `frozen_of`.

  Args:
    settings: the section `value`.
    policy: before training.
    key: of what is drawn.
    world: where it lives.
  """
  head = heads.Config(hidden_units=settings.hidden_units)
  role = dataclasses.replace(policy.role, head=head)
  width = role.model.width
  made = world.compute(lambda k: {"head": _head_at_0(head, width, k)}, key)
  return stages.Stage(role, made, {})


def frozen_of(plan: judge.Plan, params: PyTree, frozen: PyTree) -> PyTree:
  """Returns what the critic reads and does not train alone, {} without one.

  Args:
    plan: of the judge.
    params: {"policy", "value"?}, what trains.
    frozen: what does not, under the same keys.
  """
  if plan.is_value_on_policy:
    return trees.merge(params["policy"], frozen["policy"])
  return frozen.get("value", {})


def own_critic(
  settings: Value,
  policy: stages.Stage,
  base: Base,
  key: jax.Array,
  world: World,
) -> stages.Stage:
  """Returns a critic beside a verifier: 0 at first, on the policy's weights.

  Args:
    settings: the section `value`.
    policy: before training. Its LoRA factors are merged for a critic that
      trains whole; one with factors of its own, or a head alone, starts from
      the weights below them.
    base: the model underneath.
    key: of what is drawn.
    world: where it lives.

  Raises:
    FieldError: the model cannot train so.
  """
  with schema.as_field("value: "):
    role = roles.Role(
      model=base.config,
      trainable=settings.mode,
      first_layer=settings.first_layer,
      head=heads.Config(hidden_units=settings.hidden_units),
    )
  params = policy.variables["params"]
  if role.trainable == "full" and policy.role.trainable == "lora":
    params = world.merged(policy)

  def make(key: jax.Array) -> PyTree:
    made = {"head": _head_at_0(role.head, role.model.width, key)}
    if role.trainable == "lora":
      made["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
    return made

  return stages.Stage(role, {"params": params} | world.compute(make, key), {})


def start_critic(
  value: Value,
  settings: Any,
  base: Base,
  world: World,
  policy: stages.Stage,
  judging: scorers.Loaded | None,
) -> stages.Stage:
  """Returns the critic before training.

  Args:
    value: of the critic.
    settings: with seed and reward.
    base: the model underneath.
    world: where it lives.
    policy: before training.
    judging: the reward model, None beside a verifier.

  Raises:
    FieldError: it cannot start so.
  """
  key = jax.random.fold_in(jax.random.key(settings.seed), 1)
  if value.is_shared:
    return shared_critic(value, policy, key, world)
  if judging is None:
    return own_critic(value, policy, base, key, world)
  if judging.reader is None:
    model = judging.base.config
    found = judging.scorer, judging.weights
    return starting_critic(value, *found, model, key, world)
  if value.init == "reward":
    raise FieldError(
      f"value.init='reward': a critic reads the policy's tokens, and the "
      f"reward model {settings.reward}, on {judging.base.source}, reads text. "
      "Set value.init='random' (it starts at 0 on the policy's weights), or "
      "algorithm.name to a method without critic, such as 'rloo'."
    )
  return own_critic(value, policy, base, key, world)
