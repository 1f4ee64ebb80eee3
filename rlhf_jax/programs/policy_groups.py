"""Policies that are evaluated together, by the model that each stands on."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import adapters
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.programs import scorers
from rlhf_jax.programs.world import World
from rlhf_jax.runs import answerers, stages
from rlhf_jax.schema import FieldError

MODEL = "model"  # in place of a folder: the model itself


@dataclasses.dataclass(frozen=True)
class Group:
  """Policies that stand on one model.

  section: the model's.
  named: their folders by name, of one that says the best of n with its mark.
  number: of the group; the first has the policy that others are compared with.
  """

  section: Model
  named: dict[str, str]
  number: int

  @property
  def phase(self) -> str:
    """The name of its phase."""
    return f"evaluation {self.number}" if self.number > 1 else "evaluation"


def of(settings: Any, world: World, base: Base) -> list[Group]:
  """Returns the policies by the model that they stand on, in their order.

  Args:
    settings: of the pipeline, with `named` folders.
    world: where they live.
    base: the model of the section `model`.
  """
  named = settings.named if settings.folders else {"policy": world.named("")}
  found: dict[Model, dict[str, str]] = {}
  for name, said in named.items():
    folder, _ = answerers.split(said, "policies")
    section = settings.model
    if folder != MODEL and not adapters.is_adapter(stages.place(folder)[0]):
      other = scorers.other_model(folder, "policy", settings, base)
      section = section if other is None else other
    found.setdefault(section, {})[name] = said
  return [
    Group(section, own, number)
    for number, (section, own) in enumerate(found.items(), 1)
  ]


def base_of(group: Group, settings: Any, world: World, base: Base) -> Base:
  """Returns the model that a group stands on.

  Args:
    group: of policies.
    settings, world, base: see `of`.
  """
  return base if group.section == settings.model else world.base(group.section)


def check_prompts(data: Data, bases: list[Base], groups: list[Group]) -> None:
  """Checks that policies with several tokenizers are asked the same.

  Args:
    data: the section of the prompts.
    bases: of the groups, in their order.
    groups: see `of`.

  Raises:
    FieldError: which prompts there are depends on the tokenizer.
  """
  if len(bases) < 2:
    return
  if data.prefix_tokens:
    raise FieldError(
      f"prompts.prefix_tokens={data.prefix_tokens}: prompts are the first "
      "tokens of texts, and these policies have several tokenizers. Give "
      "prompts of another format, or evaluate policies of one model together."
    )
  asked = [
    [record.where for record in dataset.records(data, base.tokenizer)[0]]
    for base in bases
  ]
  for group, other in zip(groups, asked, strict=True):
    if other != asked[0]:
      raise FieldError(
        f"prompts: {', '.join(group.named)}, on {group.section.source}, would "
        f"be asked {len(other)} prompts, and the first policy {len(asked[0])} "
        "or other ones: a filter counts tokens. Leave out prompts.max_prompt_"
        "tokens, max_text_tokens, or evaluate policies of one model together."
      )
