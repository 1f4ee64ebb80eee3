"""Process reward model: judged steps in, a probability for each step out.

Binary cross-entropy at the ends of steps (algorithms/process.py). The trunk may
train fully, through LoRA, or stay frozen ("head"): then its features at the
ends of steps are computed once. What it leaves is a reward model: an answer's
score is made of its steps, and every stage that a reward model judges takes it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from rlhf_jax import optimizer, schema
from rlhf_jax.algorithms import process
from rlhf_jax.data import dataset, layout, overlap, statistics, steps, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import step_model
from rlhf_jax.models import heads, pretrained, roles, trees
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  build,
  reward_facts,
  reward_training,
  step_facts,
  step_rows,
  supervised,
)
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase, planned_steps
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import FieldError, check_choice
from rlhf_jax.types import PyTree

NAME = "process_reward"
STEPS_PLANNED = 8  # of an answer, where a plan knows no data


@dataclasses.dataclass(frozen=True)
class StepsConfig:
  """What a step is, and what an answer's score is made of."""

  delimiter: str = (
    steps.LINE
  )  # stands between two steps, in the data and in samples
  score: str = "min"  # of an answer, from the probabilities of its steps: the
  # last, the least, all right (product), or the mean

  def __post_init__(self) -> None:
    check_choice("score", self.score, process.SCORES)
    if not self.delimiter:
      raise FieldError(
        "delimiter='': something must stand between steps. Set '\\n', say."
      )


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Process reward model on judged steps; one epoch (METHODS 27.4)."""

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  head: heads.Config = heads.Config()  # the scalar head on the trunk
  stop_layer: int = 0  # the trunk ends before it; 0: all layers
  steps: StepsConfig = StepsConfig()
  data: Data = Data(format="steps")  # answers with judged steps
  heldout: Data = Data(format="steps")  # the same for the diagnosis, and every
  # schedule.eval_every steps
  heldout_fraction: float = 0.1  # of prompts held out where heldout is not set
  loss: process.Config = process.Config()  # on the ends of steps
  optimizer: optimizer.Config = optimizer.Config(
    learning_rate=9e-6, schedule="cosine"
  )
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()
  reference_samples: str = ""  # samples.npz of the SFT run, to normalise on

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    schema.check_least(self, stop_layer=0)
    build.check_trainable(
      self.model,
      self.trainable,
      has_head=True,
      start=self.init_from,
      samples=False,
    )
    build.check_fraction(self)
    if self.head.outputs != 1:
      raise FieldError(
        f"head.outputs={self.head.outputs}: a step has one probability. Set 1."
      )


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.data, "data")
  packs = settings.trainable.mode != "head"
  unread.check(settings.data, "data", unread.STEPS, packs=packs)
  unread.check(settings.heldout, "heldout", unread.STEPS, packs=False)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )


def wire(
  settings: Settings, world: World, base: Base, total: int, shape: layout.Shape
) -> tuple[Phase, PyTree, PyTree, str]:
  """Returns the phase, the weights it starts from, what of them an update
  reads and does not train, and "merged_from".

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    total: optimizer steps.
    shape: of the rows of a batch; its targets are steps.
  """
  rows = shape.counts[0] if shape.counts else settings.schedule.batch_size
  return reward_training.wire(
    NAME,
    settings,
    world,
    base,
    total,
    make_update=step_rows.make_update,
    batch=lambda _, width: step_rows.abstract_batch(
      world.mesh, rows, shape, width
    ),
    rows=rows,
    read=rows,
    length=shape.length,
  )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )
  base = world.base(settings.model)
  length, is_packed = settings.data.row_length, settings.data.pack == "all"
  shape = layout.Shape(length, STEPS_PLANNED, is_packed)
  total = planned_steps(settings.schedule)
  phase, _, _, merged_from = wire(settings, world, base, total, shape)
  world.leave(world.workdir, phase.role, merged_from)
  return [phase]


def _load(
  settings: Settings, base: Base, name: str
) -> tuple[steps.Judged, steps.Judged, np.ndarray]:
  """Returns answers to train on and held out, and the delimiter's steps.table.

  Args:
    settings: of the pipeline.
    base: the model underneath.
    name: of the run, for messages.
  """
  data, heldout, tokenizer = settings.data, settings.heldout, base.tokenizer
  delimiter = settings.steps.delimiter
  with schema.as_field("steps."):
    table = steps.table(delimiter, tokenizer, base.config.vocab_size)
  train = steps.load(data, tokenizer, delimiter, table)
  _report(name, data.source, train)
  overlap.say(name, data, heldout, tokenizer)
  if heldout.source:
    held = steps.load(heldout, tokenizer, delimiter, table)
    _report(f"{name}, held out", heldout.source, held)
  else:
    train, held = steps.split(train, settings.heldout_fraction, settings.seed)
  longest = max(map(statistics.longest, (train.rows, held.rows)))
  pretrained.check_context(base, longest, "data")
  return train, held, table


def _report(name: str, source: str, found: steps.Judged) -> None:
  lengths = statistics.of_rows(found.rows)
  dataset.report_dropped(name, source, len(found.rows), found.dropped, lengths)
  labels = np.concatenate(step_facts.labels(found))
  print(
    f"{name}: {len(labels)} judged steps, {np.mean(labels > 0.5):.0%} of them "
    "right"
  )


def run(settings: Settings, world: World) -> dict:
  """Trains and diagnoses a process reward model; returns stage.json."""
  name, schedule = world.workdir.name, settings.schedule
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, NAME, base, stages.REWARD, schedule.asked
  )
  if info is not None:
    return info
  reward_facts.check_tokens(settings.reference_samples, base.tokenizer)
  train, held, table = _load(settings, base, name)
  rows, shape = _laid_out(settings, world, train, name)
  total = build.announced(
    schedule, len(rows), name, {"optimizer": settings.optimizer}
  )
  phase, variables, used, merged_from = wire(
    settings, world, base, total, shape
  )
  phase = dataclasses.replace(phase, name=name)
  _, frozen = roles.split(phase.role, variables)
  found, held_found = (
    _features(phase, variables["params"], data) for data in (train, held)
  )
  loader = _loader(settings, phase, rows, shape, found)
  read = functools.partial(
    step_rows.row_logits, phase, frozen=frozen, size=schedule.batch_size
  )
  told: dict[str, Any] = {}
  params = supervised.fit(
    phase,
    loader,
    used,
    seed=settings.seed,
    schedule=schedule,
    total_steps=total,
    identity=base.identity | stages.origins(init_from=settings.init_from),
    show=(
      ("process/loss", "loss"),
      ("process/accuracy", "accuracy"),
      ("validation/auc", "validation"),
    ),
    measure=lambda params: step_facts.validate(
      read(params, rows=held.rows, found=held_found), held
    ),
    told=told,
  )
  logits = read(params, rows=held.rows, found=held_found)
  diagnosis = step_facts.diagnose(logits, held, name)
  epochs = told["steps"] * schedule.batch_size / len(rows)

  def of_training() -> list[np.ndarray]:
    if found is not None:
      return read(params, rows=train.rows, found=found)
    rows = reward_facts.some_of(train.rows, settings.seed)
    return read(params, rows=rows, found=None)

  return reward_training.finish(
    NAME,
    settings,
    phase,
    step_model.guard(diagnosis, len(train.rows), epochs),
    diagnosis,
    merged_from=merged_from,
    **told,
    answers=len(train.rows),
    epochs=epochs,
    reads_end_token=settings.data.end_token,
    process=dataclasses.asdict(settings.steps),
    normalisation=step_facts.normalise(
      settings,
      phase.role,
      trees.merge(params, frozen),
      table,
      of_training,
    ),
  )


def _laid_out(
  settings: Settings, world: World, train: steps.Judged, name: str
) -> tuple[list[dict[str, np.ndarray]], layout.Shape]:
  """Returns what a batch counts, and the shape of its rows."""
  rows, size = train.rows, settings.schedule.batch_size
  if settings.trainable.mode == "head":  # features of rows are there
    return rows, layout.Shape.of(rows)
  if settings.data.pack == "all":
    rows, fill = layout.pack_examples(rows, settings.data.max_length)
    print(f"{name}: packed into {len(rows)} rows, {fill:.0%} filled")
    return rows, layout.Shape.of(rows)
  unit = world.ways * settings.loss.microbatches
  shape = layout.choose(rows, size, unit, settings.data.pack)
  print(f"{name}: {layout.describe(rows, size, shape)}")
  return rows, shape


def _features(
  phase: Phase, trunk: PyTree, data: steps.Judged
) -> list[np.ndarray] | None:
  """Returns features at judged steps, None where the trunk trains."""
  if phase.role.trainable != "head":
    return None
  return step_rows.row_features(phase, trunk, data.rows)


def _loader(
  settings: Settings,
  phase: Phase,
  rows: list[dict[str, np.ndarray]],
  shape: layout.Shape,
  found: list[np.ndarray] | None,
) -> object:
  """Returns the stream of this host's part of each batch."""
  if found is None:
    collate = functools.partial(
      steps.collate, shape=shape, pad_id=phase.base.tokenizer.pad_id
    )
    examples, content = rows, rows
  else:
    collate = functools.partial(
      step_rows.collate_features, rows=rows, found=found, most=shape.targets
    )
    examples, content = np.arange(len(rows)), rows
  return build.make_loader(
    phase.mesh,
    examples,
    settings.schedule.batch_size,
    seed=settings.seed,
    content=content,
    collate=collate,
    shares_rows=bool(shape.counts),
  )


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.REWARD,
  describe=lambda settings: f"{settings.schedule.describe()} judged answers",
)
