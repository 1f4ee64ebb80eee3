"""What every pipeline can be told that judges answers and trains nothing."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from rlhf_jax import generate, schema
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import lora
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import actors, answers, build, scorers
from rlhf_jax.programs.answer_parts import Parts
from rlhf_jax.programs.answers import Answers
from rlhf_jax.programs.compared import Compared
from rlhf_jax.programs.pipeline import stage_field
from rlhf_jax.programs.scorers import Scoring
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PromptBatch


@dataclasses.dataclass(frozen=True)
class Judged(schema.Settings):
  """What is asked, how it is answered, and who judges the answers."""

  seed: int = 1  # of the answers
  model: Model = Model()
  reward: str = stage_field(
    stages.REWARD, several=True
  )  # folder of the reward model, or of several: one ensemble; or ""
  gold: str = stage_field(
    stages.REWARD, several=True
  )  # folder of a held-out one, or of several, or ""
  scoring: Scoring = Scoring()  # how reward models read answers
  verifier: texts.Verifier = texts.Verifier()  # what else judges
  reward_fn: str = ""  # import path of a function that judges, in its place
  prompts: Data = Data()  # held-out prompts that are answered
  generate: generate.Config = generate.Config()
  packing: packing.Config = packing.Config()  # several samples in a row
  count: int = 256  # prompts that are answered
  batch_size: int = 64  # prompts at a time
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    build.check_room(self.prompts, self.generate)
    if self.generate.temperature == 0.0 and self.generate.num_samples > 1:
      raise FieldError(
        f"generate.num_samples={self.generate.num_samples} with temperature="
        "0.0: greedy answers to one prompt are all the same. Set 1, or a "
        "temperature > 0."
      )
    if self.verifier.name and self.reward_fn:
      raise FieldError(
        f"verifier.name={self.verifier.name!r} and reward_fn="
        f"{self.reward_fn!r}: one of them judges texts. Set the other to ''."
      )

  @functools.cached_property
  def text_judge(self) -> Bound | None:
    """The verifier or function that judges, or None."""
    return actors.bound_judge(self.verifier, self.reward_fn)

  def code(self) -> dict[str, str]:
    """Returns field -> what may be the import path of a user's own code."""
    return {"reward_fn": self.reward_fn} | self.verifier.code()

  @property
  def answering(self) -> list[str]:
    """The folders of the policies that answer, "" left out."""
    return []

  def check_alone(self) -> None:
    """Checks what only finished runs can say.

    Raises:
      FieldError: see `check_factors`.
    """
    check_factors(self.model, self.answering)


def check_factors(model: Model, folders: list[str]) -> None:
  """Checks what is said of LoRA factors, which come with the runs.

  A rank and a scale that are those of the runs may stand there.

  Args:
    model: the section.
    folders: of the policies that answer.

  Raises:
    FieldError: factors that no policy has, or other ones than said.
  """
  usual, rank = Model.__dataclass_fields__, model.lora_rank
  runs = {x: stages.read_stage(stages.place(x)[0]) for x in folders}
  ranks = {x: info["role"] for x, info in runs.items() if info}
  ranks = {x: r for x, r in ranks.items() if r["lora_rank"]}
  for name in ("lora_targets", *(() if rank else ("lora_scale",))):
    if getattr(model, name) != usual[name].default:
      raise FieldError(
        f"model.{name}={getattr(model, name)!r}: nothing reads it here, as "
        "factors come with the runs that are judged. Leave it out."
      )
  if rank and not ranks:
    raise FieldError(
      f"model.lora_rank={rank}: nothing reads it, as no policy here has "
      "factors. Set 0."
    )
  scale = model.lora_scale
  if model.lora_alpha is not None:
    scale = lora.scale_of(model.lora_alpha, rank, model.lora_is_rank_stabilised)
  for folder, role in ranks.items() if rank else ():
    if role["lora_rank"] != rank:
      raise FieldError(
        f"model.lora_rank={rank}: {folder} has factors of rank "
        f"{role['lora_rank']}, which come with it. Set 0."
      )
    if scale != 1.0 and not math.isclose(scale, role["lora_scale"]):
      raise FieldError(
        f"model.lora_scale={scale:g}: {folder} has {role['lora_scale']:g}, "
        "which comes with it. Leave it out, and lora_alpha."
      )


def check(settings: Judged, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.prompts, "prompts")
  unread.check(settings.prompts, "prompts", unread.PROMPTS)
  build.check_rows(world, settings.batch_size, "batch_size")
  build.check_portions(settings.batch_size, settings.generate, "batch_size")


def answer(
  settings: Judged,
  wired: Compared,
  prompt_batches: list[PromptBatch],
  base: Base,
  mesh: Any,
  parts: Parts | None = None,
  numbers: Mapping[str, int] | None = None,
) -> dict[str, Answers]:
  """Returns the answers of each policy, by name.

  Each policy has random keys of its own.

  Args:
    settings: of the pipeline.
    wired: what samples and judges.
    prompt_batches: on the host.
    base: the model underneath.
    mesh: where everything is.
    parts: where each batch is kept when it is done, or None.
    numbers: name of a policy -> of its keys; None: as they come.

  Raises:
    UserError: prompts that cannot be judged.
  """
  if numbers is None:
    numbers = {name: i for i, name in enumerate(wired.samplers)}
  verifier = texts.load(settings.text_judge, settings.prompts, base.tokenizer)
  return {
    name: answers.answer(
      sampler,
      params,
      wired.phase[f"{name} judge"],
      wired.weights,
      prompt_batches,
      jax.random.fold_in(jax.random.key(settings.seed), numbers[name]),
      name=name,
      mesh=mesh,
      packed=settings.packing,
      verifier=verifier,
      readers=scorers.open_readers(
        wired.readers, settings.prompts, sampler, mesh
      ),
      tells_kl=wired.tells_kl and answers.has_kl(settings.generate),
      parts=parts,
    )
    for name, (sampler, params) in wired.samplers.items()
  }
