"""Direct preference optimisation: comparisons in, an aligned policy out.

    reference = policy before training       # log-probabilities, once
    state = update(state, comparisons)       # one loss, one optimizer

No reward model and no sampling. config.algorithm.name chooses the method
(algorithms/preference/registry.py). The result stands wherever an SFT run
does: as a start, as a reference, and as the policy that is evaluated.

online_preference.py compares the policy's own answers, new ones in each step.
self_play.py samples between the rounds of SPIN, each of which is a run of this.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax import imported, optimizer, schema
from rlhf_jax.algorithms.preference import registry
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.data import layout, unread
from rlhf_jax.data.dataset import Comparisons, Data
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Role, Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  abstract,
  build,
  by_value,
  pair_reference,
  pairs,
  preference_data,
  starts,
  supervised,
)
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase, Program, planned_steps
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Measure, Schedule
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """DPO, or another method of algorithms/preference by its name."""

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  reference: str = stage_field(
    stages.POLICY
  )  # folder of the policy that is the reference; "": the start
  algorithm: schema.Method = schema.method(
    registry.ALGORITHMS, "dpo", registry.check_method
  )
  # the loss on preferences
  accumulation: preference.Config = preference.Config()  # how a batch is cut
  data: Data = Data()  # comparisons to train on; of KTO judged answers
  heldout: Data = Data()  # comparisons for the report at the end, and every
  # schedule.eval_every steps
  heldout_fraction: float = 0.1  # of prompts held out where heldout is not set
  optimizer: optimizer.Config = optimizer.Config(learning_rate=1e-6)
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    build.check_trainable(
      self.model, self.trainable, start=self.init_from, samples=False
    )
    build.check_fraction(self)
    self._check_by()
    if self.reference and not self.has_reference:
      raise FieldError(
        f"reference={self.reference!r}: {self.algorithm.name!r} has no "
        "reference. Set '', or a method such as 'dpo'."
      )
    for key in ("data", "heldout"):
      data = getattr(self, key)
      if data.source and data.has_format("labelled") and not self.is_unpaired:
        raise FieldError(
          f"{key}.format='labelled': single answers, and "
          f"{self.algorithm.name!r} compares two. Set algorithm.name='kto', or "
          "give comparisons."
        )

  def _check_by(self) -> None:
    """Checks that what is held out tells by the field of what trains."""
    by, held = self.data.by, self.heldout.by
    if self.is_unpaired and (by or held):
      raise FieldError(
        f"data.by={by!r}: {self.algorithm.name!r} reads single answers, of "
        "which nothing is told by a field. Set ''."
      )
    if self.heldout.source and by != held:
      raise FieldError(
        f"heldout.by={held!r}: data.by is {by!r}, and held-out numbers are "
        "told by one field. Set both alike."
      )

  @property
  def is_unpaired(self) -> bool:
    """Whether the method reads single judged answers."""
    return registry.is_unpaired(self.algorithm.module)

  @property
  def has_reference(self) -> bool:
    """Whether the method reads a reference."""
    return not registry.is_reference_free(self.algorithm.module)


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.data, "data")
  use, packs = unread.COMPARISONS, not settings.is_unpaired
  unread.check(settings.data, "data", use, packs=packs, trains=True)
  unread.check(settings.heldout, "heldout", use, packs=False)
  build.check_pairs(settings)
  preference_data.check_rankings(settings)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  _check_rows(settings, world)


def _check_rows(settings: Settings, world: World) -> None:
  build.check_rows(
    world,
    settings.schedule.batch_size,
    parts=settings.accumulation.microbatches,
    cut="accumulation.microbatches",
  )


def wire(
  settings: Settings,
  world: World,
  base: Base,
  total: int,
  shape: layout.Shape,
  shared: layout.Shape | None = None,
) -> tuple[Phase, stages.Stage, stages.Stage]:
  """Returns the phase, the policy before training, and the reference.

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    total: optimizer steps.
    shape: of the rows, a candidate each.
    shared: of the rows that an update reads, where that is another one.
  """
  stage = starts.starting_policy(settings, base, world)
  role, (params, frozen) = stage.role, stage.parts
  fixed = starts.reference_policy(settings, base, world, stage)
  transform = build.make_optimizer(settings.optimizer, total)
  state = supervised.train_state(world, params, transform)
  rows, mesh = settings.schedule.batch_size, world.mesh

  def arguments(flow: dict) -> tuple[tuple, dict]:
    del flow
    batch = abstract.preference_batch(
      mesh, rows, shape.length, 0, has_reference=settings.has_reference
    )
    return (state, frozen, batch, abstract.key(mesh)), {}

  update = Program(
    name="update",
    function=pairs.make_update(
      role,
      settings.algorithm,
      settings.accumulation,
      transform,
      (shape if shared is None else shared).targets,
      mesh=mesh,
    ),
    arguments=arguments,
    rows=rows,
    work=lambda: _work(settings, Passes(mesh), role, state.params, shape),
    donates=0,
    calls=settings.schedule.steps or None,
  )
  before = []
  if settings.has_reference:
    before = [pair_reference.program(settings, world, fixed, shape)]
  phase = Phase(
    name="preference",
    world=world,
    base=base,
    arrays={"train": state},
    # The weights it starts from stay beside the ones that train.
    frozen=(base.params, stage.variables, fixed.variables),
    programs=(*before, update),
    step=("update",),
    role=role,
  )
  return phase, stage, fixed


def _work(
  settings: Settings,
  passes: Passes,
  role: Role,
  params: PyTree,
  shape: layout.Shape,
) -> Work:
  """Returns the work of an update on so many rows of a shape."""
  rows = settings.schedule.batch_size
  training = passes.training(
    role,
    abstract.bytes_of(params),
    rows if settings.is_unpaired else 2 * rows,
    shape.length,
    shape.targets,
    parts=settings.accumulation.microbatches,
  )
  if not settings.is_unpaired:
    return training
  # the mismatched answers, without gradients
  return training + passes.forward([role], rows, shape.length, shape.targets)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data.

  A row may be all answer: no target is left out of the count.
  """
  _check_rows(settings, world)
  base = world.base(settings.model)
  length = settings.data.row_length
  shape = layout.Shape(length, length, False)
  total = planned_steps(settings.schedule)
  phase, stage, _ = wire(settings, world, base, total, shape)
  world.leave(world.workdir, phase.role, stage.info.get("merged_from", ""))
  return [phase]


def run(settings: Settings, world: World) -> dict:
  """Trains a policy on preferences; returns the numbers of stage.json.

  A finished run is not repeated: its stage.json is returned.
  """
  schedule, algorithm = settings.schedule, settings.algorithm
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, "preference", base, asked=settings.schedule.asked
  )
  if info is not None:
    return info
  train, held = preference_data.load(settings, base, "preference")
  pairs.report_balance(algorithm, train.labels, "preference")
  total = build.announced(
    schedule, len(train.pairs), "preference", {"optimizer": settings.optimizer}
  )
  shape = layout.Shape.of([*train.rows, *held.rows])
  shared = preference_data.choose_rows(
    settings, world, base, train, "preference"
  )
  phase, stage, fixed = wire(settings, world, base, total, shape, shared)
  if settings.has_reference:
    starts.say_reference(settings, "preference")
  digest = pair_reference.add(
    settings, phase, fixed, {"train": train, "heldout": held}
  )
  params_before, frozen = stage.parts
  evaluate = pairs.evaluator(
    algorithm, schedule.batch_size, phase, frozen, held
  )
  before = pairs.measure_by(evaluate, held, params_before)
  told: dict[str, Any] = {}
  params = supervised.fit(
    phase,
    preference_data.make_loader(settings, phase, train, shared),
    frozen,
    seed=settings.seed,
    schedule=schedule,
    total_steps=total,
    identity=base.identity
    | stages.origins(init_from=settings.init_from)
    | imported.fingerprints(algorithm=algorithm.name)
    | {"algorithm": algorithm.name, "reference_fingerprint": digest},
    show=(
      ("preference/loss", "loss"),
      ("preference/accuracy", "accuracy"),
      ("preference/margin", "margin"),
      ("validation/loss", "validation"),
    ),
    measure=lambda params: (
      _as_validation(evaluate(params))
      | pairs.measure_by(evaluate, held, params)
    ),
    told=told,
  )
  found, of_values = _heldout(settings, evaluate, held, before, params)
  return stages.write_stage(
    world.workdir,
    "preference",
    base,
    phase.role,
    best=schedule.best_of,
    asked=schedule.asked,
    examples=len(train.pairs),
    epochs=told["steps"] * schedule.batch_size / len(train.pairs),
    algorithm={"name": algorithm.name} | dataclasses.asdict(algorithm.config),
    heldout=found,
    heldout_examples=len(held.pairs),
    reference_fingerprint=digest,
    init_from=settings.init_from,
    reference=settings.reference,
    merged_from=stage.info.get("merged_from", ""),
    **told,
    **of_values,
  )


def _heldout(
  settings: Settings,
  evaluate: Measure,
  held: Comparisons,
  before: dict[str, float],
  params: PyTree,
) -> tuple[dict[str, float], dict]:
  """Returns held-out numbers, and facts of those by the value of a field.

  Args:
    settings: of the pipeline.
    evaluate: params -> numbers.
    held: held-out rows.
    before: numbers by value before training.
    params: trained.
  """
  found = evaluate(params)
  print(
    f"preference: held-out accuracy {found['preference/accuracy']:.3f}, margin "
    f"{found['preference/margin']:.3f} on {len(held.pairs)} rows"
  )
  told = ("loss", "accuracy", "nll_chosen")
  values = pairs.values_of(held)
  field = settings.data.by if values else ""
  after = pairs.measure_by(evaluate, held, params)
  return found, by_value.facts(field, values, told, before, after)


def _as_validation(found: dict[str, float]) -> dict[str, float]:
  """Returns held-out metrics as validation/loss, validation/accuracy, ...

  They are those of the training batches, preference/*, of held-out rows; which
  direction is bad is the same.
  """
  names = {name: f"validation/{name.rpartition('/')[2]}" for name in found}
  return {names[name]: value for name, value in found.items()}


def _describe(settings: Settings) -> str:
  rows = "judged answers" if settings.is_unpaired else "comparisons"
  return f"{settings.schedule.describe()} {rows} ({_label(settings)})"


def _label(settings: Settings) -> str:
  return settings.algorithm.name.upper().replace("_", "-")


PIPELINE = Pipeline(
  name="preference",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=_describe,
  label=_label,
)
