"""Reward models of a run: which model is under each, and how it reads answers.

A reward run's stage.json names its model. Where that is the run's own, or
another one with the same tokenizer, the reward model reads the policy's tokens
in the judge's pass (rewards/judge.py). Where the tokenizer is another one it
reads text (rewards/reader.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.models import pretrained, shapes
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import ensembles
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.ensembles import Group, GroupWeights
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stage_file, stages
from rlhf_jax.schema import FieldError, UserError, as_field, check_choice
from rlhf_jax.types import PyTree

READS = ("auto", "tokens", "text")


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How reward models read answers that may be of another tokenizer."""

  reads: str = "auto"  # "tokens": the policy's own, for one tokenizer only;
  # "text": decoded and encoded again; "auto": text where tokenizers differ, or
  # chat templates that render the prompts
  source: str = ""  # model under the reward run; "": what its stage.json says
  combine: str = "mean"  # members of an ensemble that judges: "mean"; "min",
  # the worst case; "uwo", the mean less their variance (Coste et al. 2023)
  uncertainty_weight: float | None = None  # variances that "uwo" takes off: 0.1
  # for policy gradients, 0.5 for best of n

  def __post_init__(self) -> None:
    check_choice("reads", self.reads, READS)
    with as_field():
      Combination(self.combine, self.uncertainty_weight)

  @property
  def combination(self) -> Combination:
    """How members become one score."""
    return Combination(self.combine, self.uncertainty_weight)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A reward model, ready to score.

  scorer, weights: of an ensemble of several runs a Group and its weights.
  base: the model under it.
  reader: where it reads text, else None.
  parts: the runs of an ensemble of several.
  """

  scorer: reward_model.Scorer | Group
  weights: reward_model.Weights | GroupWeights
  info: dict
  base: Base
  reader: Reader | None
  parts: tuple[Loaded, ...] = ()

  @property
  def alone(self) -> tuple[Loaded, ...]:
    """Itself, or the runs that it is made of."""
    return self.parts if self.parts else (self,)


def load(
  folder: str, name: str, settings: Any, base: Base, world: World
) -> Loaded:
  """Returns the reward model of a finished run; abstract in a planned world.

  Several runs, with commas between, make one ensemble. What judges combines its
  members as scoring.combine says; monitors and held-out models by their mean.

  Args:
    folder: of the run, or of several.
    name: "reward", or of a monitor.
    settings: with model, scoring and prompts.
    base: the model under the policy.
    world: where it lives.

  Raises:
    UserError: it is not there, or cannot read what the policy writes.
    CheckpointError: it was trained on another model or tokenizer than it says.
  """
  watches = name == "gold" or name in getattr(settings, "monitors", ())
  how = Combination() if watches else settings.scoring.combination
  folders = stages.listed(folder)
  if len(folders) > 1:
    return _load_group(folders, name, settings, base, world, how)
  found = _load_one(folder, name, name, settings, base, world, how)
  if found.scorer.objectives and how.combine == "uwo":
    raise FieldError(
      f"scoring.combine='uwo': {folder} scores {found.scorer.objectives}, and "
      "what objectives differ in is no doubt. Set 'mean' or 'min'."
    )
  if found.scorer.role.members == 1 and how != Combination():
    raise FieldError(
      f"scoring.combine={how.combine!r}: {folder} is one reward model, so "
      "there is nothing to combine. Train one with ensemble.members=4, name "
      "several runs with commas between, or set 'mean'."
    )
  return found


def _load_group(
  folders: list[str],
  name: str,
  settings: Any,
  base: Base,
  world: World,
  how: Combination,
) -> Loaded:
  """Returns several runs as one ensemble; see `load`."""
  if len(set(folders)) < len(folders):
    raise FieldError(
      f"{name}={','.join(folders)!r}: one run stands there twice. Leave it out."
    )

  def loaded(settings: Any) -> tuple[Loaded, ...]:
    return tuple(
      _load_one(x, ensembles.part_name(name, i), name, settings, base, world)
      for i, x in enumerate(folders)
    )

  parts = loaded(settings)
  if len({x.reader is None for x in parts}) > 1:  # they are combined in a place
    scoring = dataclasses.replace(settings.scoring, reads="text")
    parts = loaded(dataclasses.replace(settings, scoring=scoring))
  known = ensembles.reference_deviation([x.info for x in parts])
  deviation = None if known is None else world.number(known)
  if known is None and not world.is_planned:
    print(
      f"{name}: its runs were normalised on other samples, or long ago, so "
      "what their deviation is on the reference is not known"
    )
  group = Group(tuple(x.scorer for x in parts), how)
  weights = GroupWeights(tuple(x.weights for x in parts), deviation)
  joined = ensembles.joined({name: (group, weights)})[0]
  parts = tuple(
    x
    if x.reader is None
    else dataclasses.replace(
      x,
      reader=dataclasses.replace(x.reader, group=joined, deviation=deviation),
    )
    for x in parts
  )
  first = parts[0]
  return Loaded(group, weights, first.info, first.base, first.reader, parts)


def _load_one(
  folder: str,
  name: str,
  judge: str,
  settings: Any,
  base: Base,
  world: World,
  how: Combination = reward_model.ALONE,
) -> Loaded:
  """Returns the reward model of one run.

  Args:
    folder, settings, base, world: see `load`.
    name: of the scorer.
    judge: of what it judges as, alone or with others.
    how: its members are combined.
  """
  other = other_model(folder, judge, settings, base)
  theirs = base if other is None else _their_base(other, folder, name, world)
  if other is not None and world.is_planned:
    found = _planned(folder, theirs, world, how)
  else:
    found = reward_model.load(folder, theirs, world, how)
  found = _of_output(found, folder, judge, settings, world)
  is_text = _reads_text(name, settings, base, theirs, world)
  if other is not None and not world.is_planned:
    how = "decoded answers, encoded again" if is_text else "the policy's tokens"
    print(f"{name}: {folder} stands on {other.source} and reads {how}")
  if not is_text:
    if other is not None:
      pretrained.check_context(theirs, settings.prompts.max_length, "prompts")
    return Loaded(*found, theirs, None)
  scorer, weights, _ = found
  tokenizer, deviation = theirs.tokenizer, weights.deviation
  reader = Reader(name, scorer, weights, tokenizer, deviation=deviation)
  return Loaded(*found, theirs, reader)


def _of_output(
  found: tuple, folder: str, judge: str, settings: Any, world: World
) -> tuple:
  """Returns a reward model, or the output of it that a judge names."""
  scorer, weights, info = found
  named = getattr(settings, "named_judges", {}).get(judge)
  output = "" if named is None else named.output
  if not output:
    if scorer.objectives and not world.is_planned:
      print(
        f"{judge}: {folder} has an output for each of "
        f"{', '.join(scorer.objectives)}; they are combined by their "
        f"{scorer.combination.combine}, each in its own deviations"
      )
    return found
  if output not in scorer.objectives:
    known = ", ".join(scorer.objectives) or "none by name: set ''"
    raise FieldError(
      f"judges.{judge}.output={output!r}: {folder} has the outputs {known}."
    )
  number = scorer.objectives.index(output)
  alone = reward_model.of_member(scorer, weights, number, world.compute)
  return *alone, info


def _their_base(model: Model, folder: str, name: str, world: World) -> Base:
  """Returns the model under a reward run."""
  try:
    return world.base(model)
  except UserError as error:
    raise UserError(
      f"{name}: {folder} stands on the model {model.source}, and {error} If it "
      "is elsewhere now, name that as scoring.source."
    ) from error


def _planned(
  folder: str, theirs: Base, world: World, how: Combination
) -> tuple:
  """Returns what reward_model.load would, of a run on another model."""
  info, before = stages.read_stage(stages.place(folder)[0]), world.assumed
  facts = before[stages.REWARD] if info is None else info
  role = stage_file.role_of(facts["role"], theirs)
  world.assumed = dict(before)
  world.assume(stages.REWARD, role)
  found = reward_model.load(folder, theirs, world, how)
  world.assumed = before
  return found


def other_model(
  folder: str, name: str, settings: Any, base: Base
) -> Model | None:
  """Returns the section of the model under a reward run, None for the run's.

  Args:
    folder, name, settings, base: see `load`.
  """
  path, _ = stages.place(folder)
  info, scoring = stages.read_stage(path), settings.scoring
  own = scoring.source if name == "reward" else ""
  if info is None and not own:  # planned, on the run's own model
    return None
  info = {} if info is None else info
  is_same = all(info.get(k) == x for k, x in base.identity.items())
  source = own if own else info["model_source"]
  tokenizer = info.get("tokenizer_source", "")
  theirs = (_place(source), _place(tokenizer))
  is_same |= theirs == (_place(base.source), _place(base.tokenizer_source))
  if is_same:
    return None
  return dataclasses.replace(
    settings.model,
    source=source,
    tokenizer=tokenizer,
    chat_template=stage_file.template_of(path),
    prompt_end=info.get("prompt_end", settings.model.prompt_end),
    scan_layers=info.get("scan_layers", settings.model.scan_layers),
    quantize=info.get("quantize", settings.model.quantize),
  )


def _place(source: str) -> str:
  """Returns one spelling of where a model is."""
  if not source or source.startswith(("asset:", shapes.PREFIX)):
    return source
  return os.path.abspath(os.path.expanduser(source))


def _reads_text(
  name: str, settings: Any, base: Base, theirs: Base, world: World
) -> bool:
  """Says whether a reward model on another model reads text.

  Raises:
    FieldError: it is to read tokens of another tokenizer.
  """
  reads = settings.scoring.reads
  is_same = base.tokenizer.fingerprint == theirs.tokenizer.fingerprint
  if world.is_planned and base is not theirs:  # no tokenizer is read
    if reads == "auto":
      world.notes.append(
        f"assumed: {name}, on {theirs.source}, reads text, as no tokenizer is "
        "read here; scoring.reads='tokens' says otherwise"
      )
    return reads != "tokens"
  if reads == "tokens" and not is_same:
    raise FieldError(
      f"scoring.reads='tokens': the tokenizer of {name}, {theirs.source}, is "
      f"another one than that of {base.source}, so its tokens mean other text. "
      "Set 'text' or 'auto'."
    )
  if reads != "auto":
    return reads == "text"
  templates = {
    getattr(model.tokenizer, "chat_template", None) for model in (base, theirs)
  }
  return not is_same or (settings.prompts.chat and len(templates) > 1)


def parted(
  found: Mapping[str, Loaded],
) -> tuple[ensembles.Judges, tuple[Reader, ...]]:
  """Returns those that read tokens, by name, and those that read text."""
  readers = tuple(
    part.reader
    for x in found.values()
    for part in x.alone
    if part.reader is not None
  )
  tokens = {
    name: (x.scorer, x.weights) for name, x in found.items() if x.reader is None
  }
  return tokens, readers


def bases(found: Mapping[str, Loaded], base: Base) -> list[PyTree]:
  """Returns the weights under reward models, but those of the policy's base.

  They stay in memory beside those that a reward model trained whole.
  """
  parts = [part for x in found.values() for part in x.alone]
  others = {id(x.base.params): x.base.params for x in parts}
  others.pop(id(base.params), None)
  return list(others.values())
