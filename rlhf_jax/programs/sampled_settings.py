"""What a pipeline is told that learns from its own, judged samples.

Who judges, what is sampled, and how. Combinations that are known to fail are
refused before anything is loaded. actors.py loads who takes part.
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
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  build,
  floor,
  heldout_settings,
  offload,
  several,
  tax,
)
from rlhf_jax.programs.pipeline import stage_field
from rlhf_jax.programs.scorers import Scoring
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import (
  combination,
  functions,
  named_judges,
  texts,
  verifiers,
)
from rlhf_jax.rewards.functions import Bound
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
