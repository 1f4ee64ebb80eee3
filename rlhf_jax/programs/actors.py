"""Who takes part where a policy samples: policy, reference, critic, judges.

Loads the stages before, decides what trains, and refuses combinations that
are known to fail before anything compiles. With a planned world all arrays are
abstract.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import generate, imported, schema
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import heads, roles, transformer
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import build
from rlhf_jax.programs.pipeline import stage_field
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import functions, judge, texts, verifiers
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import PyTree

_COLUMNS = ("prompt", "response")  # of samples.jsonl, beside scores


@dataclasses.dataclass(frozen=True)
class Sampled(schema.Settings):
  """What every pipeline can be told that learns from its own, judged samples.

  A reward model, a verifier or a function judges: one of them.
  """

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  reward: str = stage_field(
    stages.REWARD
  )  # folder of the finished reward run that judges; "" where something else
  verifier: texts.Verifier = texts.Verifier()
  reward_fn: str = ""  # import path of a function that judges, file.py:name
  monitors: dict[str, Any] = dataclasses.field(default_factory=dict)
  # name -> folder of a reward model that only watches
  prompts: Data = Data()  # prompts that are answered
  generate: generate.Config = generate.Config()
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()
  force: bool = False  # go on though the reward model is no better than chance

  def __post_init__(self) -> None:
    schema.check_least(self, seed=0)
    build.check_trainable(self.model, self.trainable)
    build.check_room(self.prompts, self.generate)
    named = {
      "reward": self.reward,
      "verifier.name": self.verifier.name,
      "reward_fn": self.reward_fn,
    }
    judges = [f"{field}={value!r}" for field, value in named.items() if value]
    if len(judges) > 1:
      raise FieldError(
        f"{' and '.join(judges)}: one of them judges. Set the others to ''; a "
        "reward model can watch as one of monitors."
      )
    if self.text_judge is not None and self.judge_name in _COLUMNS:
      raise FieldError(
        f"{judges[0]}: its scores would be written over {self.judge_name!r} in "
        "samples.jsonl. Call the function otherwise."
      )

  @functools.cached_property
  def text_judge(self) -> Bound | None:
    """The verifier or function that judges; None where a reward model does."""
    if not self.reward_fn:
      return self.verifier.bound()
    with schema.as_field():
      function = imported.load(self.reward_fn, "reward_fn")
      return functions.bind(function, {}, "reward_fn", self.reward_fn)

  @property
  def judge_name(self) -> str:
    """What scores are called in samples.jsonl that no reward model gave."""
    name = self.reward_fn if self.reward_fn else self.verifier.name
    return verifiers.label(name) if name else ""

  @property
  def has_verifier(self) -> bool:
    """Whether a verifier or a function judges, and no reward model."""
    return bool(self.verifier.name or self.reward_fn)


def check_sampled(settings: Sampled, world: World) -> None:
  """Checks what samples and what judges.

  Raises:
    FieldError: nothing judges, no prompts, or sampling that does not fit.
  """
  if not settings.has_verifier and not settings.reward:
    raise FieldError(
      "reward is empty: name the --workdir of a finished "
      "configs/reward.py run, or set verifier.name or reward_fn."
    )
  build.check_needed(settings.prompts, "prompts")
  check_sampling(settings.generate, world.mesh.size)


@dataclasses.dataclass(frozen=True)
class Value:
  """The critic."""

  init: str = "reward"  # its weights at the start; "random" is what PPO suffers
  # from, beside a verifier it starts at 0 on the policy's weights
  mode: str = "full"  # what trains: "full", "lora" or "head"
  first_layer: int = 0  # layers below are frozen, their output computed once
  hidden_units: int = 0  # residual MLP beside the head; 0: as the reward model
  pretrain_steps: int = 0  # rollouts on which only the critic learns

  def __post_init__(self) -> None:
    if self.init not in ("reward", "random"):
      raise FieldError(
        f"init={self.init!r}: must be 'reward' (start as the reward model) "
        "or 'random'."
      )
    if self.pretrain_steps < 0 or self.hidden_units < 0:
      raise FieldError(
        f"pretrain_steps={self.pretrain_steps}, hidden_units="
        f"{self.hidden_units}: both must be >= 0."
      )


def check_sampling(settings: generate.Config, devices: int) -> None:
  """Raises FieldError for sampling that breaks the importance ratio."""
  if settings.top_k or settings.top_p < 1.0:
    raise FieldError(
      f"generate.top_k={settings.top_k}, top_p={settings.top_p}: truncated "
      "sampling changes the distribution that the importance ratio divides "
      "by (METHODS N2). Set top_k=0 and top_p=1.0 for policy training."
    )
  if settings.temperature == 0.0:
    raise FieldError(
      "generate.temperature=0.0: greedy samples carry no policy gradient. Set "
      "a temperature > 0."
    )
  if settings.compact and devices > 1:
    raise FieldError(
      f"generate.compact=True on {devices} devices: rows would have to move "
      "between them. Set generate.compact=False."
    )


def starting_policy(settings: Any, base: Base, world: World) -> stages.Stage:
  """Returns the policy before training, with the role it trains in.

  A LoRA run on a LoRA start goes on with its factors; otherwise the start is
  merged into whole weights first.

  Args:
    settings: with init_from, trainable and seed.
    base: the model underneath.
    world: where it lives.
  """
  role = build.make_role(base, settings.trainable)
  world.assume(stages.POLICY, role, "trainable.mode")
  folder, key = world.named(settings.init_from), jax.random.key(settings.seed)
  variables, info = {"params": base.params}, {}
  if folder:
    start = stages.load(folder, stages.POLICY, base, world)
    if start.role == role:
      merged = stages.merged_folder(folder, start.info)
      return stages.Stage(role, start.variables, {"merged_from": str(merged)})
    variables = {"params": world.merged(start)}
    info = {"merged_from": settings.init_from}
  if role.trainable == "lora":
    variables |= world.compute(
      lambda k: {"lora": roles.fresh_lora(role, k)}, key
    )
  return stages.Stage(role, variables, info)


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
  judge_role = scorer.role
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


def starting_critic(
  settings: Value,
  scorer: reward_model.Scorer,
  weights: reward_model.Weights,
  model: transformer.Config,
  key: jax.Array,
  world: World,
) -> stages.Stage:
  """Returns the critic: the reward model, in units of its normalised score."""
  role = critic_role(settings, scorer, model)

  def make_head(
    key: jax.Array, head: PyTree, mean: jax.Array, std: jax.Array
  ) -> PyTree:
    made = heads.init(role.head, role.model.width, key)
    if settings.init == "reward":
      made |= reward_model.fold_normalisation(head, mean, std)
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
    head = heads.init(role.head, role.model.width, key)
    head["output"] = jax.tree.map(jnp.zeros_like, head["output"])
    made = {"head": head}
    if role.trainable == "lora":
      made["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
    return made

  return stages.Stage(role, {"params": params} | world.compute(make, key), {})


def check_reward(info: dict, force: bool) -> None:
  """Refuses a reward model that is no better than chance (METHODS 19)."""
  for level, message in info["guards"]:
    if level == "refuse" and not force:
      raise UserError(
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
  settings: Sampled,
  base: Base,
  world: World,
  row_targets: int,
  value: Value | None = None,
) -> Actors:
  """Returns the actors that settings name; abstract ones in a planned world.

  Args:
    settings: of a pipeline that samples.
    base: the model under all of them.
    world: where they live.
    row_targets: response tokens of a row at most.
    value: of the critic; None without one.

  Raises:
    UserError: a stage is missing, or a setting cannot work.
    CheckpointError: a stage was trained on another model or tokenizer.
  """
  policy = starting_policy(settings, base, world)
  mode = policy.role.trainable if value is None else value.mode
  guess = dataclasses.replace(policy.role, trainable=mode, head=heads.Config())
  field = "trainable.mode" if value is None else "value.mode"
  world.assume(stages.REWARD, guess, field)
  scorers, critic = {}, None
  folder = "" if settings.has_verifier else world.named(settings.reward)
  if folder:
    scorer, weights, info = reward_model.load(folder, base, world)
    check_reward(info, settings.force)
    scorers["reward"] = (scorer, weights)
  for name, path in settings.monitors.items():
    scorers[name] = reward_model.load(path, base, world)[:2]
  if value is not None:
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    if folder:
      critic = starting_critic(value, scorer, weights, base.config, key, world)
    else:
      critic = own_critic(value, policy, base, key, world)
  return assemble(
    base, policy, critic, scorers, settings.generate.temperature, row_targets
  )


def assemble(
  base: Base,
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
