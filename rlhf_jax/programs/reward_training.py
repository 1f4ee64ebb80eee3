"""What runs of reward and process reward models share: the phase, and the end.

The trunk may train fully, through LoRA, or stay frozen ("head"): then features
of whole rows are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import abstract, build, features, starts, supervised
from rlhf_jax.programs.program import Phase, Program
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.runs import finite, stages
from rlhf_jax.types import PyTree


def wire(
  name: str,
  settings: Any,
  world: World,
  base: Base,
  total: int,
  *,
  make_update: Callable[..., Callable[..., tuple]],
  batch: Callable[[roles.Role, int], Any],
  rows: int,
  read: int,
  length: int,
) -> tuple[Phase, PyTree, PyTree, str]:
  """Returns the phase, the weights it starts from, what of them an update
  reads and does not train, and "merged_from".

  Args:
    name: of the pipeline.
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    total: optimizer steps.
    make_update: (role, loss, transform, mesh=) -> the compiled update.
    batch: (role, width of features or 0) -> an abstract batch.
    rows: examples of a batch.
    read: rows of tokens in them.
    length: tokens of a row.
  """
  role, variables, merged_from = starts.starting_reward(settings, base, world)
  params, frozen = roles.split(role, variables)
  transform = build.make_optimizer(settings.optimizer, total)
  state = supervised.train_state(world, params, transform)
  is_head = role.trainable == "head"
  used = {} if is_head else frozen

  def arguments(flow: dict) -> tuple[tuple, dict]:
    del flow
    width = abstract.feature_width(role) if is_head else 0
    return (state, used, batch(role, width), abstract.key(world.mesh)), {}

  update = Program(
    name="update",
    function=make_update(role, settings.loss, transform, mesh=world.mesh),
    arguments=arguments,
    rows=rows,
    work=lambda: Passes(world.mesh).training(
      role,
      abstract.bytes_of(state.params),
      read,
      length,
      0,
      parts=settings.loss.microbatches,
      is_lower_known=is_head,
    ),
    donates=0,
    calls=settings.schedule.steps or None,
  )
  before = []
  if is_head:
    known = settings.data.known_rows + settings.heldout.known_rows
    before = [features.program(world, role, variables["params"], length, known)]
  phase = Phase(
    name=name,
    world=world,
    base=base,
    arrays={"train": state},
    # The weights it starts from stay beside the ones that train.
    frozen=(base.params, variables if settings.init_from else frozen),
    programs=(*before, update),
    step=("update",),
    role=role,
  )
  return phase, variables, used, merged_from


def finish(
  pipeline: str,
  settings: Any,
  phase: Phase,
  guards: list[tuple[str, str]],
  diagnosis: dict[str, Any],
  **facts: Any,
) -> dict:
  """Tells what the guards say, and writes and returns stage.json.

  Args:
    pipeline: its name.
    settings: of the pipeline.
    phase: of the run.
    guards: level and message of each.
    diagnosis: numbers on held-out data.
    **facts: for stage.json.
  """
  for level, message in guards:
    print(f"{phase.name}: {level}: {message}")
  return stages.write_stage(
    phase.world.workdir,
    pipeline,
    phase.base,
    phase.role,
    best=settings.schedule.best_of,
    asked=settings.schedule.asked,
    init_from=settings.init_from,
    guards=guards,
    diagnosis=finite.or_none(diagnosis),
    **facts,
  )
