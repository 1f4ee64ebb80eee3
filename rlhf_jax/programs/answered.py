"""What every pipeline can be told that judges answers and trains nothing."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rlhf_jax import generate, schema
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import by_field, dataset, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import lora
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import answers, build, sampled_settings, text_readers
from rlhf_jax.programs.answer_numbers import SCORES
from rlhf_jax.programs.answer_parts import Parts
from rlhf_jax.programs.answers import Answers
from rlhf_jax.programs.compared import Compared
from rlhf_jax.programs.pipeline import stage_field
from rlhf_jax.programs.scorers import Scoring
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, check_choice
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
    return sampled_settings.bound_judge(self.verifier, self.reward_fn)

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
  found = {
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
      readers=text_readers.open_readers(
        wired.readers, settings.prompts, sampler, mesh
      ),
      tells_kl=wired.tells_kl and answers.has_kl(settings.generate),
      parts=parts,
    )
    for name, (sampler, params) in wired.samplers.items()
  }
  return {
    name: said if wired.draws[name] == 1 else said.best(chooser(settings))
    for name, said in found.items()
  }


def by_value(
  settings: Judged,
  found: dict[str, Answers],
  base: Base,
  numbers: Callable[[dict[str, Answers]], dict[str, Any]],
) -> dict[str, Any]:
  """Returns {"by": ...}: the numbers of prompts with each value of prompts.by.

  {} without that field. A value of one prompt has no standard errors: of it
  only the count is told.

  Args:
    settings: of the pipeline.
    found: answers of each policy, to the first prompts of the section.
    base: whose tokenizer.
    numbers: answers of each policy -> what is told of them.
  """
  field = settings.prompts.by
  if not field:
    return {}
  records, _ = dataset.records(settings.prompts, base.tokenizer)
  first = next(iter(found.values()))
  places: dict[str, list[int]] = {}
  for place in range(len(first.texts) // first.group):
    value = by_field.value_of(records[place % len(records)], field)
    places.setdefault(value, []).append(place)
  values: dict[str, dict[str, Any]] = {}
  for value, those in sorted(places.items()):
    if len(those) < 2:
      values[value] = {"evaluation_prompts": 1}
      continue
    some = {name: x.of(np.asarray(those)) for name, x in found.items()}
    values[value] = numbers(some)
  return {"by": {"field": field, "values": values}}


def chooser(settings: Judged) -> str:
  """Returns whose scores choose the best of several answers, a name of scores.

  Where nobody said, the reward model, or what judges texts. Gold chooses only
  where it is named: it is to judge the choice.
  """
  named = _named_chooser(settings)
  if named:
    return SCORES[named]
  return SCORES["proxy" if settings.reward else "verifier"]


def _named_chooser(settings: Judged) -> str:
  """Returns who is named to choose; a field of its own, or `choose`."""
  field = "chooser" if hasattr(settings, "chooser") else "choose"
  return getattr(settings, field)


def check_draws(settings: Judged, draws: Mapping[str, int]) -> None:
  """Checks policies that answer with the best of several.

  Args:
    settings: of the pipeline.
    draws: of each policy, answers of which it says the best.

  Raises:
    FieldError: nobody chooses, or nothing is chosen from.
  """
  given = {
    "proxy": bool(settings.reward),
    "gold": bool(settings.gold),
    "verifier": settings.text_judge is not None,
  }
  several = {name: n for name, n in draws.items() if n > 1}
  if not several:
    if _named_chooser(settings):
      raise FieldError(
        f"chooser={_named_chooser(settings)!r}: no policy chooses. Name one as "
        "FOLDER@best_of=16, or set ''."
      )
    return
  check_choice("chooser", _named_chooser(settings), ("", *SCORES))
  said = next(iter(several))
  wanted = next(k for k, name in SCORES.items() if name == chooser(settings))
  if not given[wanted]:
    field = "reward" if wanted == "proxy" else wanted
    raise FieldError(
      f"{said!r} answers with the best of {several[said]}, and no {wanted} "
      f"chooses. Set {field}, or another judge as the one that chooses."
    )
  if settings.generate.num_samples > 1:
    raise FieldError(
      f"generate.num_samples={settings.generate.num_samples}: {said!r} draws "
      "its own several answers. Set 1."
    )
  if settings.generate.temperature == 0.0:
    raise FieldError(
      f"generate.temperature=0.0: the answers that {said!r} chooses from would "
      "all be the same. Set a temperature > 0."
    )
