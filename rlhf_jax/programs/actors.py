"""Who takes part where a policy samples: policy, reference, critic, judges.

Loads the stages before, decides what trains, and refuses combinations that
are known to fail before anything compiles. With a planned world all arrays are
abstract.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from rlhf_jax import generate, imported, schema
from rlhf_jax.algorithms.combination import registry
from rlhf_jax.data import unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import heads, roles
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  build,
  floor,
  heldout_settings,
  offload,
  scorers,
  several,
  starts,
  tax,
)
from rlhf_jax.programs.critic import Value, start_critic
from rlhf_jax.programs.pipeline import stage_field
from rlhf_jax.programs.scorers import Scoring
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import (
  combination,
  ensembles,
  functions,
  judge,
  named_judges,
  texts,
  verifiers,
)
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree

_COLUMNS = ("prompt", "response")  # of samples.jsonl, beside scores


@dataclasses.dataclass(frozen=True)
class Sampled(schema.Settings):
  """What every pipeline can be told that learns from its own, judged samples.

  A reward model, a verifier or a function judges: one of them, or several that
  have names, as `judges`.
  """

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  reference: str = stage_field(
    stages.POLICY
  )  # folder of the policy that the KL is measured to; "": the start
  reward: str = stage_field(
    stages.REWARD, several=True
  )  # folder of the finished reward run that judges, or of several with commas
  # between: one ensemble; "" where something else judges
  verifier: texts.Verifier = texts.Verifier()
  reward_fn: str = ""  # import path of a function that judges, file.py:name
  judges: dict[str, Any] = dataclasses.field(
    default_factory=dict
  )  # name -> one of several judges, {"reward": folder, "weight": 1.0}, say
  combination: schema.Method = schema.method(
    registry.COMBINATIONS, "sum", registry.check_module
  )  # what becomes of the scores of several judges
  monitors: dict[str, Any] = dataclasses.field(default_factory=dict)
  # name -> folder of a reward model that only watches
  scoring: Scoring = Scoring()  # how reward models read answers
  prompts: Data = Data()  # prompts that are answered
  heldout: Data = Data()  # prompts that are answered, not trained on, every
  # schedule.eval_every steps
  evaluation: heldout_settings.Config = heldout_settings.Config()  # how those
  # are answered
  tax: tax.Config = tax.Config()  # capabilities that are watched meanwhile
  generate: generate.Config = generate.Config()
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()
  offload: offload.Config = offload.Config()  # trees on the host between phases
  floor: floor.Config = floor.Config()  # what the start must have reached
  force: bool = False  # go on though the reward model is no better than chance,
  # or the start is below its floor

  @property
  def prompts_together(self) -> int:
    """Prompts that are answered at a time."""
    return self.schedule.batch_size

  @property
  def has_lora_critic(self) -> bool:
    """Whether a critic trains LoRA factors."""
    return False

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    build.check_trainable(
      self.model,
      self.trainable,
      has_lora_critic=self.has_lora_critic,
      start=self.init_from,
    )
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
    several.check(self, judges)
    if "reward" in self.offload.trees and not self.has_one_model:
      if not self.judge_folders and not self.monitors:
        raise FieldError(
          "offload.trees: 'reward': a verifier or function judges, and there "
          "are no monitors. Leave it out."
        )

  @functools.cached_property
  def named_judges(self) -> dict[str, named_judges.Named]:
    """The judges of the section `judges`, by name; {} where one judges."""
    return named_judges.read(self.judges)

  @property
  def judge_folders(self) -> dict[str, str]:
    """Name -> folder of those of them that are reward models."""
    return {
      name: found.reward
      for name, found in self.named_judges.items()
      if found.is_model
    }

  @property
  def first_state(self) -> Callable[[], PyTree] | None:
    """Makes the state of the combination before the first rollout, or None."""
    if not self.named_judges:
      return None
    return functools.partial(
      combination.init_state, self.named_judges, self.combination
    )

  @functools.cached_property
  def text_judge(self) -> Bound | None:
    """The verifier or function that judges; None where a reward model does."""
    return bound_judge(self.verifier, self.reward_fn)

  def origins(self) -> dict[str, str]:
    """Returns what a checkpoint must agree with about what a run builds on."""
    folders = stages.origins(
      init_from=self.init_from, reward=self.reward, reference=self.reference
    )
    folders |= several.origins(self)
    return folders | imported.fingerprints(**self.code())

  def code(self) -> dict[str, str]:
    """Returns field -> what may be the import path of a user's own code."""
    found = {"reward_fn": self.reward_fn} | self.verifier.code()
    return found | several.code(self)

  @property
  def judge_name(self) -> str:
    """What scores are called in samples.jsonl that no reward model gave."""
    return judge_label(self.verifier, self.reward_fn)

  @property
  def has_verifier(self) -> bool:
    """Whether a verifier or a function judges, and no reward model."""
    return bool(self.verifier.name or self.reward_fn)

  @property
  def has_one_model(self) -> bool:
    """Whether one reward model judges, and nothing else."""
    return not self.has_verifier and not self.named_judges


def bound_judge(verifier: texts.Verifier, reward_fn: str) -> Bound | None:
  """Returns what judges texts, None for nothing.

  Args:
    verifier: the section.
    reward_fn: import path of a function, in its place; "" for none.
  """
  if not reward_fn:
    return verifier.bound()
  with schema.as_field():
    function = imported.load(reward_fn, "reward_fn")
    return functions.bind(function, {}, "reward_fn", reward_fn)


def judge_label(verifier: texts.Verifier, reward_fn: str) -> str:
  """Returns what its scores are called, "" where nothing judges texts."""
  name = reward_fn if reward_fn else verifier.name
  return verifiers.label(name) if name else ""


def check_sampled(settings: Sampled, world: World) -> None:
  """Checks what samples and what judges.

  Raises:
    FieldError: nothing judges, no prompts, or sampling that does not fit.
  """
  if settings.has_one_model and not settings.reward:
    raise FieldError(
      "reward is empty: name the --workdir of a finished "
      "configs/reward.py run, or set verifier.name or reward_fn."
    )
  several.check_folders(settings)
  build.check_needed(settings.prompts, "prompts")
  unread.check(settings.prompts, "prompts", unread.PROMPTS)
  check_sampling(settings.generate)
  check_cache(settings.generate, settings.model.dtype)
  heldout_settings.check(settings, world)
  tax.check(settings.tax)


def check_cache(settings: generate.Config, dtype: str) -> None:
  """Raises FieldError for a cache that rounds where nothing else does.

  Below float32 log-probabilities of the sampler are computed again.
  """
  if settings.cache_dtype is not None and dtype == "float32":
    raise FieldError(
      f"generate.cache_dtype={settings.cache_dtype!r} with model.dtype="
      "'float32': the sampler's log-probabilities would not be the trainer's. "
      "Set model.dtype='bfloat16', where they are computed again, or "
      "cache_dtype=None."
    )


def check_sampling(settings: generate.Config) -> None:
  """Raises FieldError for sampling that breaks the importance ratio."""
  if settings.is_truncated:
    raise FieldError(
      f"generate.top_k={settings.top_k}, top_p={settings.top_p}, "
      f"min_p={settings.min_p}: truncated "
      "sampling changes the distribution that the importance ratio divides "
      "by (METHODS N2). Set top_k=0, top_p=1.0 and min_p=0.0 for policy "
      "training."
    )
  if settings.min_new_tokens:
    raise FieldError(
      f"generate.min_new_tokens={settings.min_new_tokens}: what may not be "
      "sampled has another probability in training (METHODS N2). Set 0 for "
      "policy training, and punish short answers by their reward."
    )
  if settings.temperature == 0.0:
    raise FieldError(
      "generate.temperature=0.0: greedy samples carry no policy gradient. Set "
      "a temperature > 0."
    )


def check_reward(info: dict, force: bool, name: str = "reward model") -> None:
  """Refuses a reward model that is no better than chance (METHODS 19).

  Args:
    info: its stage.json.
    force: go on all the same.
    name: in messages.
  """
  for level, message in info["guards"]:
    if level == "refuse" and not force:
      raise FieldError(
        f"force=False: {name}: {message} Pass --config.force=True to go "
        "on anyway."
      )
    print(f"policy: {name}: {level}: {message}")


@dataclasses.dataclass(frozen=True)
class Actors:
  """Everyone, loaded. Trees are split into trainable and frozen."""

  plan: judge.Plan
  weights: judge.Weights  # frozen: base, reference, reward models
  params: PyTree  # {"policy", "value"?}, trainable
  frozen: PyTree  # {"policy", "value"?}, the rest of the same roles
  merged_from: str  # SFT stage whose whole weights the policy started from
  readers: tuple[Reader, ...] = ()  # reward models that read text
  beside: PyTree = ()  # weights under reward models on other models

  @property
  def held(self) -> PyTree:
    """All frozen arrays but the policy's own."""
    return (self.weights, [x.weights for x in self.readers], self.beside)


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
  floor.check_start(settings.floor, settings.init_from, world, settings.force)
  policy = starts.starting_policy(settings, base, world)
  reference = starts.reference_policy(settings, base, world, policy)
  has_own_critic = value is not None and not value.is_shared
  mode = value.mode if has_own_critic else policy.role.trainable
  guess = dataclasses.replace(policy.role, trainable=mode, head=heads.Config())
  field = "value.mode" if has_own_critic else "trainable.mode"
  world.assume(stages.REWARD, guess, field)
  folders = {
    name: world.named(path) for name, path in settings.judge_folders.items()
  }
  if settings.has_one_model:
    folder = world.named(settings.reward)
    folders = {"reward": folder} if folder else {}
  judging = tuple(folders)
  folders |= settings.monitors
  found = {
    name: scorers.load(path, name, settings, base, world)
    for name, path in folders.items()
  }
  for name in judging:
    said = "reward model" if name == "reward" else f"judges.{name}"
    for part in found[name].alone:
      check_reward(part.info, settings.force, said)
  critic = None
  if value is not None:
    judging = found.get(value.judge or "reward")
    critic = start_critic(value, settings, base, world, policy, judging)
  tokens, readers = scorers.parted(found)
  made = assemble(
    base,
    policy,
    critic,
    tokens,
    settings.generate.temperature,
    row_targets,
    reference,
  )
  beside = scorers.bases(found, base)
  return dataclasses.replace(made, readers=readers, beside=beside)


def assemble(
  base: Base,
  policy: stages.Stage,
  critic: stages.Stage | None,
  judges: ensembles.Judges,
  temperature: float,
  row_targets: int,
  reference: stages.Stage | None = None,
) -> Actors:
  """Returns the actors of loaded stages; arrays may be abstract.

  Args:
    base: the model under all of them.
    policy: before training.
    critic: before training, or None without one; without "params" it is a head
      on the policy.
    judges: the reward model, named "reward" (absent with a verifier), or those
      of several judges by their names, and monitors.
    temperature: of sampling.
    row_targets: response tokens of a row at most.
    reference: what the KL is measured to; None for the policy before training.
  """
  reference = policy if reference is None else reference
  plan = judge.make_plan(
    base, policy, reference, critic, judges, temperature, row_targets
  )
  plan, own = judge.with_own_trunk(
    plan, {"policy": policy, "reference": reference, "value": critic}
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
      reference=reference.variables,
      own=own,
      **judge.scorer_weights(judges),
    ),
    params=params,
    frozen=frozen,
    merged_from=policy.info.get("merged_from", ""),
  )
