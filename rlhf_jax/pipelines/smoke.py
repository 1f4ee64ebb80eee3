"""--smoke: any experiment in a very short form, to see that all of it runs.

Two steps a stage, small batches, few records, short answers; model, method and
everything else stay. What the command line sets itself is not changed. Where
the experiment cannot be cut so far (rows must divide among minibatches and
devices, say) the next larger size is taken, at last its own.

What is cut stands in tables by the type of the section, so that a pipeline of a
user's own needs no line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import generate, pipelines
from rlhf_jax.data.dataset import Data
from rlhf_jax.pipelines import self_play
from rlhf_jax.programs import heldout_settings, iterated_settings
from rlhf_jax.programs.critic import Value
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.programs.rejection_samples import Rounds
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import Settings, UserError, located

Cuts = dict[str, int | float]  # field of the experiment -> its new value
STEPS = 2
# Type of a section -> field -> at most.
LENGTHS = {
  Data: {"limit": 64, "pairs": 256},
  Rounds: {"count": 2},
  Value: {"pretrain_steps": 1},
  heldout_settings.Config: {"count": 8},
  iterated_settings.Rounds: {"count": 2, "late_from": 2},
  self_play.Rounds: {"count": 2},
  iterated_settings.Comparisons: {"count": 16, "test": 8, "candidates": 2},
}
ANSWERS = {generate.Config: {"max_new_tokens": 16}}
# Type of a section -> field -> how many times the rows of a batch.
ROWS = {
  Schedule: {"batch_size": 1},
  Rounds: {"batch_size": 1, "prompts": 2},
  generate.Config: {"batch_size": 1},
  Settings: {"batch_size": 1, "ptx_batch_size": 1, "count": 4, "samples": 4},
}
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)  # the first that fits


def shorten(config: Any, workdir: Path, given: Collection[str] = ()) -> None:
  """Cuts an experiment, in place, and prints what was cut.

  Args:
    config: a tree of defaults.py, changed.
    workdir: of the run.
    given: fields that the command line sets, which stay.

  Raises:
    UserError: the experiment is wrong, also as it is.
  """
  before = pipelines.read(config, workdir)
  stages = _stages(before)
  for stage in stages.values():
    _set(config, _steps(stage) | _cut(stage, LENGTHS), given)
  pipelines.read(config, workdir)
  for name, stage in stages.items():
    if stage.pipeline.stages is not None:
      continue  # has no batches of its own
    for rows in BATCHES:
      if _try(config, workdir, _cut(stage, ROWS, rows), given, [name]):
        break
  answers: Cuts = {}  # of all stages at once: they must be equal
  for stage in stages.values():
    answers |= _cut(stage, ANSWERS)
  _try(config, workdir, answers, given, list(stages))
  _say(stages, _stages(pipelines.read(config, workdir)))


def _stages(job: Job) -> dict[str, Job]:
  """Returns the job itself as "", and the stages of a whole run by name."""
  if job.pipeline.stages is None:
    return {"": job}
  return {"": job} | job.pipeline.stages(job.settings)


def _sections(stage: Job) -> Iterator[tuple[str, type, Any]]:
  """Yields (prefix of its fields, type, section) of a stage's settings."""
  yield stage.prefix, Settings, stage.settings
  for field in dataclasses.fields(stage.settings):
    value = getattr(stage.settings, field.name)
    yield f"{stage.prefix}{field.name}.", type(value), value


def _steps(stage: Job) -> Cuts:
  """Returns the length of training, in steps, and what follows from it."""
  cuts: Cuts = {}
  for prefix, kind, section in _sections(stage):
    if kind is Settings and hasattr(section, "force"):
      cuts[f"{prefix}force"] = True  # two steps make no good reward model
    if kind is Schedule:
      steps = min(section.steps, STEPS) if section.steps else STEPS
      cuts |= {f"{prefix}steps": steps, f"{prefix}epochs": 0.0}
  return cuts


def _cut(
  stage: Job, table: Mapping[type, Mapping[str, int]], rows: int = 1
) -> Cuts:
  """Returns the fields of a stage that a table cuts.

  Args:
    stage: as it was.
    table: type of a section -> field -> at most.
    rows: what the table's numbers are multiplied by.
  """
  cuts: Cuts = {}
  for prefix, kind, section in _sections(stage):
    for field, most in table.get(kind, {}).items():
      value, most = getattr(section, field, None), most * rows
      if field == "limit" and section.source and not value:
        cuts[prefix + field] = most  # 0 is all
      elif value is not None and value > most:
        cuts[prefix + field] = most
  return cuts


def _set(config: Any, cuts: Cuts, given: Collection[str]) -> Cuts:
  """Sets fields of a tree; returns what they were before."""
  before: Cuts = {}
  for path, value in cuts.items():
    section, _, field = path.rpartition(".")
    sibling = {"steps": "epochs", "epochs": "steps"}.get(field, field)
    if {path, f"{section}.{sibling}".lstrip(".")} & set(given):
      continue
    part = config
    for name in filter(None, section.split(".")):
      part = part[name]
    before[path], part[field] = part[field], value
  return before


def _try(
  config: Any,
  workdir: Path,
  cuts: Cuts,
  given: Collection[str],
  names: list[str],
) -> bool:
  """Sets fields; takes that back where stages cannot be so; says whether."""
  before = _set(config, cuts, given)
  try:
    stages = _stages(pipelines.read(config, workdir))
    for name in names:
      stage = stages[name]
      with located(stage.prefix):
        stage.pipeline.check(stage.settings, stage.open(workdir))
  except UserError:
    _set(config, before, ())
    return False
  return True


def _say(before: Mapping[str, Job], after: Mapping[str, Job]) -> None:
  """Prints what was cut, a line for each stage."""
  print(
    "--smoke: a short trial of this experiment, to see that all of it runs. "
    "Its numbers mean nothing."
  )
  for name, stage in before.items():
    parts = []
    for old, new in zip(_sections(stage), _sections(after[name]), strict=True):
      if not dataclasses.is_dataclass(new[2]):
        continue
      for field in dataclasses.fields(new[2]):
        was, now = (getattr(part[2], field.name) for part in (old, new))
        if was != now and not dataclasses.is_dataclass(now):
          label = f"{old[0].removeprefix(stage.prefix)}{field.name}"
          parts.append(f"{label} {was} -> {now}")
    if stage.pipeline.stages is not None and not parts:
      continue
    print(f"  {name}{': ' if name else ''}{', '.join(parts)}", flush=True)
