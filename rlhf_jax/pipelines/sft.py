"""Supervised fine-tuning: demonstrations in, a policy that imitates them out.

One file of data, one loop. The trained policy, or its LoRA factors, is the
start of reward models and the reference of PPO.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, metrics, optimizer, schema
from rlhf_jax.algorithms import sft
from rlhf_jax.data import (
  batches,
  dataset,
  layout,
  overlap,
  statistics,
  unread,
)
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  build,
  by_value,
  floor,
  language_model,
  starts,
)
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase, planned_steps
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Measure, Schedule
from rlhf_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Supervised fine-tuning. Rates: METHODS 1 (LoRA runs want 10x more)."""

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  data: Data = Data()  # demonstrations to train on
  validation: Data = Data()  # demonstrations for the loss at the end, and every
  # schedule.eval_every steps
  loss: sft.Config = sft.Config()  # the cross-entropy, and how a batch is cut
  optimizer: optimizer.Config = optimizer.Config(
    learning_rate=2e-5, schedule="cosine", weight_decay=0.1
  )
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()
  samples: int = 0  # answers sampled at the end, for reading and normalising
  sample_prompts: Data = Data()  # prompts of these samples
  generate: generate.Config = generate.Config()  # how they are sampled

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    schema.check_least(self, samples=0)
    build.check_trainable(self.model, self.trainable, start=self.init_from)
    if self.samples:
      build.check_room(self.sample_prompts, self.generate, "sample_prompts")


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.data, "data")
  unread.check(settings.data, "data", unread.DEMONSTRATIONS)
  unread.check(
    settings.validation, "validation", unread.DEMONSTRATIONS, packs=False
  )
  unread.check(settings.sample_prompts, "sample_prompts", unread.PROMPTS)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  build.check_measured(settings.schedule, settings.validation, "validation")
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )
  if settings.samples:
    build.check_needed(settings.sample_prompts, "sample_prompts")
    build.check_portions(settings.samples, settings.generate, "samples")
  elif settings.sample_prompts.source:
    raise schema.FieldError(
      f"sample_prompts.source={settings.sample_prompts.source!r}: nothing is "
      "sampled from it with samples=0. Set samples=256, say, or source=''."
    )


def wire(
  settings: Settings,
  world: World,
  base: Base,
  total: int,
  shape: layout.Shape,
) -> tuple[Phase, PyTree, Sampler, str]:
  """Returns the phase, what does not train, what samples, and "merged_from".

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    total: optimizer steps.
    shape: of the rows.
  """
  key = jax.random.fold_in(jax.random.key(settings.seed), 1)
  if settings.init_from:
    start = starts.starting_policy(settings, base, world, key)
  else:
    role = build.make_role(base, settings.trainable)
    start = starts.untrained_policy(role, base.params, world, key)
  role, (params, frozen) = start.role, start.parts
  state, update = language_model.wire(
    world,
    role,
    params,
    frozen,
    loss=settings.loss,
    transform=build.make_optimizer(settings.optimizer, total),
    rows=settings.schedule.batch_size,
    shape=shape,
    calls=settings.schedule.steps or None,
  )
  sampler = Sampler(role, frozen, base, settings.generate)
  programs = [update]
  if settings.samples:
    programs += sampler.programs(
      world.mesh,
      state.params,
      settings.sample_prompts,
      settings.samples,
      calls=1,
    )
  phase = Phase(
    name="sft",
    world=world,
    base=base,
    arrays={"train": state},
    frozen=(base.params, start.variables if settings.init_from else frozen),
    programs=tuple(programs),
    step=("update",),
    role=role,
  )
  return phase, frozen, sampler, str(start.info.get("merged_from", ""))


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )
  base = world.base(settings.model)
  length = settings.data.row_length
  shape = layout.Shape(length, length, settings.data.pack == "all")
  total = planned_steps(settings.schedule)
  phase, _, _, merged_from = wire(settings, world, base, total, shape)
  world.leave(world.workdir, phase.role, merged_from)
  return [phase]


def load_rows(settings: Settings, base: Base) -> tuple[list[dataset.Row], int]:
  """Returns training rows, packed if asked for, and how many examples.

  Args:
    settings: of the pipeline.
    base: whose tokenizer and context.
  """
  data = settings.data
  rows, dropped = dataset.demonstrations(data, base.tokenizer)
  lengths = statistics.of_rows(rows)
  dataset.report_dropped("sft", data.source, len(rows), dropped, lengths)
  overlap.say("sft", data, settings.validation, base.tokenizer)
  examples = len(rows)
  pretrained.check_context(base, statistics.longest(rows), "data")
  if data.pack == "all":
    rows, fill = layout.pack_examples(rows, data.max_length)
    print(f"sft: packed into {len(rows)} rows, {fill:.0%} filled")
  return rows, examples


def _shape(
  settings: Settings, world: World, rows: list[dataset.Row]
) -> layout.Shape:
  """Returns how the rows of a batch lie."""
  if settings.data.pack == "all":
    return layout.Shape.of(rows)
  unit = world.ways * settings.loss.microbatches
  size = settings.schedule.batch_size
  return layout.choose(rows, size, unit, settings.data.pack)


def run(settings: Settings, world: World) -> dict:
  """Trains, validates, samples; returns the numbers of stage.json.

  A finished run is not repeated: its stage.json is returned.
  """
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, "sft", base, asked=settings.schedule.asked
  )
  if info is not None:
    return info
  rows, examples = load_rows(settings, base)
  total = build.announced(
    settings.schedule, len(rows), "sft", {"optimizer": settings.optimizer}
  )
  shape = _shape(settings, world, rows)
  phase, frozen, sampler, merged_from = wire(
    settings, world, base, total, shape
  )
  identity = base.identity
  if settings.init_from:
    identity |= stages.origins(init_from=settings.init_from)
  validate, before = None, {}
  if settings.validation.source:
    validate = _validator(settings, phase, frozen)
    before = validate(phase.arrays["train"].params)
  told: dict[str, Any] = {}
  params = language_model.fit(
    phase,
    rows,
    frozen,
    shape=shape,
    schedule=settings.schedule,
    total_steps=total,
    seed=settings.seed,
    identity=identity,
    measure=validate,
    told=told,
  )
  facts = told | {"examples": examples}
  if validate is not None:
    after = validate(params)
    found = facts["validation_loss"] = after["validation/loss"]
    facts["validation_loss_before"] = before["validation/loss"]
    by, values = settings.validation.by, by_value.values_in(after)
    facts |= by_value.facts(by, values, ("loss",), before, after)
    print(
      f"sft: validation loss {found:.4f} nats a token, "
      f"{before['validation/loss']:.4f} before"
    )
  if settings.samples:
    facts |= _sample(settings, phase, sampler, params)
  facts["guards"] = floor.of_sft(facts)
  for level, message in facts["guards"]:
    print(f"sft: {level}: {message}")
  return stages.write_stage(
    world.workdir,
    "sft",
    base,
    phase.role,
    best=settings.schedule.best_of,
    asked=settings.schedule.asked,
    init_from=settings.init_from,
    merged_from=merged_from,
    **facts,
  )


def _validator(settings: Settings, phase: Phase, frozen: PyTree) -> Measure:
  """Returns trained tree -> metrics of held-out rows.

  Metrics:
    validation/loss: mean cross-entropy in nats a target. Up is bad: it
      overfits.
    validation/loss_VALUE: the same of the rows with a value of
      validation.by, such as a language. Above its start is bad: it is
      forgotten.

  Args:
    settings: of the pipeline, with held-out rows.
    phase: wired.
    frozen: what does not train.
  """
  tokenizer, size = phase.base.tokenizer, settings.schedule.batch_size
  source = settings.validation.source
  groups, dropped = dataset.demonstrations_by(settings.validation, tokenizer)
  rows = [row for those in groups.values() for row in those]
  if len(groups) == 1:  # as they are, which may be on disk
    (rows,) = groups.values()
  dataset.report_dropped(
    "sft, validation", source, len(rows), dropped, statistics.of_rows(rows)
  )
  pretrained.check_context(phase.base, statistics.longest(rows), "validation")
  shape = layout.whole(rows)
  forward = jax.jit(
    functools.partial(
      language_model.logprobs, role=phase.role, targets=shape.targets
    )
  )

  def sums(params: PyTree, those: Any) -> tuple[float, float]:
    total, count = 0.0, 0.0
    for _, batch in layout.in_order(those, shape, size, tokenizer.pad_id):
      logprobs, _ = forward(
        params, frozen, mesh_lib.spread_batch(phase.mesh, batch)
      )
      found = distributed.fetch(logprobs)
      total -= float(np.sum(found, dtype=np.float64))
      count += float(np.sum(batch.loss_mask))
    return total, count

  def validate(params: PyTree) -> dict[str, float]:
    found = {name: sums(params, those) for name, those in groups.items()}
    total, count = (sum(x) for x in zip(*found.values(), strict=True))
    told = {"validation/loss": total / count}
    if settings.validation.by:
      told |= {by_value.metric("loss", k): t / n for k, (t, n) in found.items()}
    return told

  return validate


def sample_prompts(settings: Any, base: Base) -> tuple[list[list[int]], int]:
  """Returns `samples` prompts, repeated as needed, and their common width.

  The width is that of all prompts, as in PPO: one compilation for both.
  """
  room = settings.sample_prompts.max_length - settings.generate.max_new_tokens
  data = settings.sample_prompts
  ids, dropped = dataset.prompts(data, base.tokenizer, room)
  dataset.report_dropped(
    "sample prompts",
    data.source,
    len(ids),
    dropped,
    {"prompt": [len(row) for row in ids]},
  )
  chosen = [ids[i % len(ids)] for i in range(settings.samples)]
  return chosen, max(len(row) for row in ids)


def _sample(
  settings: Settings, phase: Phase, sampler: Sampler, params: PyTree
) -> dict[str, Any]:
  """Samples the trained policy, for reading and to normalise rewards on.

  Returns the name of the file, and what the samples say, for stage.json.
  """
  tokenizer, workdir = phase.base.tokenizer, phase.world.workdir
  chosen, width = sample_prompts(settings, phase.base)
  prompts = batches.collate_prompts(chosen, tokenizer.pad_id, width)
  key: Array = jax.random.key(settings.seed)
  print(f"sft: samples {settings.samples} answers", flush=True)
  samples = distributed.fetch(
    sampler(
      params,
      mesh_lib.spread_batch(phase.mesh, prompts),
      jax.random.fold_in(key, 2**31 - 1),
    )
  )
  if distributed.is_first():
    np.savez(workdir / "samples.npz", **vars(samples))
  found = texts.sample_texts(tokenizer, samples)
  with metrics.MetricsWriter(
    workdir, is_enabled=distributed.is_first()
  ) as writer:
    rows = [{"prompt": p, "response": r} for p, r in found]
    writer.write_samples(0, rows, "sft")
  return {"samples": "samples.npz"} | floor.sample_facts(samples)


PIPELINE = Pipeline(
  name="sft",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=lambda settings: f"{settings.schedule.describe()} demonstrations",
  label=lambda settings: "SFT",
)
