"""What a pipeline is: one line of the table in pipelines/__init__.py.

Defaults, checks, the forecast, the whole run, stages and plan read these
fields; nothing else knows a pipeline by its name. A new pipeline is one file
that makes a Pipeline, and one line there, or an import path in an experiment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import config_tree, distributed, schema, startup
from rlhf_jax.data import dataset, statistics
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import model_sources
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import answerers, stages


def _no_check(settings: Any, world: World) -> None:
  del settings, world


def _no_label(settings: Any) -> str:
  del settings
  return ""


def _no_change(values: Any, name: str, workdir: Path) -> Any:
  del name, workdir
  return values


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A pipeline.

  name: in config.pipeline.
  Settings: all that it can be told, a subclass of schema.Settings; its
    docstring says what the pipeline does.
  run: (settings, world) -> the numbers of stage.json; does all of it.
  phases: (settings, world) -> what is in memory and what runs, for plan and
    forecast; with a planned world nothing is read and nothing computed.
  describe: settings -> what is done, in a line: "20 steps of 64 prompts".
  check: (settings, world) raises a FieldError for settings that are wrong
    together, on these devices; before a model is loaded.
  leaves: what its folder holds when it is finished, stages.POLICY,
    stages.REWARD, or "" for nothing that another stage starts from.
  label: settings -> what trains, for people: "PPO".
  result: the file in its folder that marks it as finished.
  connect: (tree, prefix, workdir) -> the tree with what the pipeline itself
    fills in, before it is read.
  stages: settings -> name -> job of each stage, of a run that has some.
  results: (settings, folder) -> (prefix of its fields, file that marks it done)
    of each stage; None where each has a folder of its name.
  tell: (settings, folder) prints what it found, when it runs alone; None for
    the numbers of stage.json.
  """

  name: str
  Settings: type
  run: Callable[[Any, World], dict]
  phases: Callable[[Any, World], list[Phase]]
  describe: Callable[[Any], str]
  check: Callable[[Any, World], None] = _no_check
  leaves: str = ""
  label: Callable[[Any], str] = _no_label
  result: str = stages.STAGE_FILE
  connect: Callable[[Any, str, Path], Any] = _no_change
  stages: Callable[[Any], dict[str, Job]] | None = None
  results: Callable[[Any, Path], list[tuple[str, Path]]] | None = None
  tell: Callable[[Any, Path], None] | None = None

  def read(
    self, values: Any, name: str, workdir: Path, stage: Callable[..., Job]
  ) -> Any:
    """Returns its Settings out of a tree; see schema.read.

    Args:
      values: its part of the tree.
      name: where that stands, "" or "policy".
      workdir: of the whole run.
      stage: (values, name, metadata) -> the job of one of its stages.
    """
    values = self.connect(values, name, workdir)
    return schema.read(self.Settings, values, name, stage)

  def fits(self, leaves: str, fields: tuple[str, ...]) -> bool:
    """Says whether it can be a stage of a whole run; see stage_of_run.

    A run that has stages of its own is none.
    """
    known = self.Settings.__dataclass_fields__
    if self.stages is not None:
      return False
    return self.leaves == leaves and all(name in known for name in fields)

  def tree(self, settings: Any = None) -> ConfigDict:
    """Returns the config tree of settings, or of the defaults."""
    chosen = self.Settings if settings is None else settings
    config = ConfigDict({"pipeline": self.name})
    config.update(config_tree.tree(chosen))
    return config


@dataclasses.dataclass(frozen=True)
class Job:
  """A pipeline and what it was told.

  prefix: where its settings stand in the experiment, "" or "policy.".
  """

  pipeline: Pipeline
  settings: Any
  prefix: str = ""

  def as_tree(self) -> ConfigDict:
    """Returns its part of a config tree."""
    return self.pipeline.tree(self.settings)

  def changed(self, **changes: Any) -> Job:
    """Returns it with other settings, checked as those of a file are."""
    with schema.located(self.prefix):
      settings = dataclasses.replace(self.settings, **changes)
    return dataclasses.replace(self, settings=settings)

  @property
  def first(self) -> Job:
    """Itself, or the first stage of a run that has some."""
    if self.pipeline.stages is None:
      return self
    return next(iter(self.pipeline.stages(self.settings).values()))

  def open(self, workdir: str | Path) -> World:
    """Returns the world that it begins in: devices and a folder."""
    first = self.first
    with schema.located(first.prefix):
      return World.open(first.settings.mesh, Path(workdir))

  def check(self, world: World, *, is_alone: bool = True) -> None:
    """Checks all that can be checked without a model and without results.

    Args:
      world: where it will run.
      is_alone: whether finished stages that it names must be there; those of
        a whole run come to be.

    Raises:
      UserError: value, rule and remedy.
    """
    with schema.located(self.prefix):
      check_models(self.settings)
      self.pipeline.check(self.settings, world)
      check_data(self.settings)
      if is_alone:
        check_stages(self.settings)
        if hasattr(self.settings, "check_alone"):
          self.settings.check_alone()

  def run(self, world: World) -> dict:
    """Runs it; returns what the pipeline returns."""
    startup.begin()
    folder = world.workdir if distributed.is_first() else None
    with (
      schema.located(self.prefix),
      mesh_lib.current(world.mesh),
      statistics.recording(folder),
    ):
      return self.pipeline.run(self.settings, world)

  def phases(self, world: World) -> list[Phase]:
    """Returns its phases in a planned world."""
    with schema.located(self.prefix):
      return self.pipeline.phases(self.settings, world)

  def results(self, workdir: Path) -> list[tuple[str, Path]]:
    """Returns (prefix of its fields, file that marks it done) of each stage."""
    if self.pipeline.results is not None:
      return self.pipeline.results(self.settings, workdir)
    if self.pipeline.stages is None:
      return [("", workdir / self.pipeline.result)]
    return [
      (f"{name}.", workdir / name / job.pipeline.result)
      for name, job in self.pipeline.stages(self.settings).items()
    ]

  def is_finished(self, folder: Path) -> bool:
    """Says whether a folder holds its result."""
    return (folder / self.pipeline.result).is_file()

  def goes_on(self, folder: Path) -> bool:
    """Says whether it asks a finished stage for more steps than it has."""
    of = self.settings
    where = of if hasattr(of, "asked") else getattr(of, "schedule", None)
    return where is not None and stages.asks_for_more(folder, where.asked)


def stage_of_run(pipeline: Pipeline, *fields: str) -> Any:
  """Returns a field of Settings that is a stage of a whole run.

  Another pipeline may stand there if it leaves the same and has the fields.

  Args:
    pipeline: the usual one, with its default settings.
    fields: that the run fills in, or reads.
  """
  return dataclasses.field(
    default=Job(pipeline, pipeline.Settings()),
    metadata={"leaves": pipeline.leaves, "fields": fields},
  )


def stage_field(
  kind: str, *, several: bool = False, answers: bool = False
) -> Any:
  """Returns a field of Settings that names the folder of a finished stage.

  Args:
    kind: what the stage must leave, stages.POLICY or stages.REWARD.
    several: whether it may name several, with commas between.
    answers: whether it only answers, so that FOLDER@best_of=n may stand there.
  """
  metadata = {"stage": kind, "several": several, "answers": answers}
  return dataclasses.field(default="", metadata=metadata)


def check_stages(settings: Any) -> None:
  """Checks that the finished stages that a stage starts from are there.

  Raises:
    UserError: a folder without such a stage.
  """
  for field in dataclasses.fields(settings):
    if "stage" not in field.metadata:
      continue
    named = getattr(settings, field.name)
    if field.metadata["answers"]:
      named, _ = answerers.split(named, field.name)
    listed = stages.listed(named) if field.metadata["several"] else [named]
    for folder in filter(None, listed):
      schema.check_local(folder, field.name)
      stages.need_stage(folder, field.metadata["stage"], f"config.{field.name}")
  for name, named in getattr(settings, "judge_folders", {}).items():
    where = f"judges.{name}.reward"
    for folder in filter(None, stages.listed(named)):
      schema.check_local(folder, where)
      stages.need_stage(folder, stages.REWARD, f"config.{where}")


def optional_model() -> Any:
  """Returns a field of Settings that may name no model at all."""
  return dataclasses.field(default=Model(), metadata={"is_optional": True})


def check_models(settings: Any) -> None:
  """Checks that models are there.

  Raises:
    FieldError: value, rule and remedy.
  """
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    is_optional = field.metadata.get("is_optional", False)
    if isinstance(value, Model) and (value.source or not is_optional):
      model_sources.check_source(value.source, field.name)


def check_data(settings: Any) -> None:
  """Reads the files of records once, so that a broken one is found early.

  Raises:
    FieldError, DataError: value, rule and remedy.
  """
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if isinstance(value, Data) and value.source:
      dataset.check(value, field.name)
