"""A pipeline of a user's own, in one file: weights grow a little in each step.

tests/pipelines/test_table.py copies it and names it by its import path.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import schema
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import starts, supervised
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase, Program, known_steps
from rlhf_jax.programs.work import Work
from rlhf_jax.runs import loop, stages
from rlhf_jax.runs.loop import Schedule


@dataclasses.dataclass(frozen=True)
class Growth:
  """How much."""

  rate: float = 0.01  # of each weight in a step

  def __post_init__(self):
    schema.check_least(self, rate=0.0)


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Multiplies the weights of a policy."""

  seed: int = 0  # of nothing
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(stages.POLICY)
  growth: Growth = Growth()
  schedule: Schedule = Schedule(steps=3)
  mesh: mesh_lib.Config = mesh_lib.Config()


def check(settings, world):
  """Refuses weights that would double."""
  total = settings.growth.rate * settings.schedule.steps
  if total > 1.0:
    raise schema.FieldError(
      f"growth.rate={settings.growth.rate}: grows by {total:g} in all, on "
      f"{world.mesh.size} devices. Lower it."
    )


@partial(jax.jit, donate_argnums=0, static_argnames="rate")
def grow(state, *, rate):
  """Returns the state after a step, and its metrics."""
  params = jax.tree.map(lambda x: x * (1.0 + rate), state.params)
  state = state.replace(step=state.step + 1, params=params)
  return state, {"growth/rate": jnp.float32(rate)}


def wire(settings, world, base):
  """Returns the phase, and the policy before training."""
  stage = starts.starting_policy(settings, base, world)
  params, frozen = stage.parts
  state = supervised.train_state(world, params, optax.identity())
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  program = Program(
    name="grow",
    function=grow,
    arguments=lambda flow: ((state,), {"rate": settings.growth.rate}),
    rows=0,
    work=lambda: Work(flops=float(count)),
    donates=0,
    calls=known_steps(settings.schedule),
  )
  phase = Phase(
    name="growth",
    world=world,
    base=base,
    arrays={"train": state},
    frozen=(base.params, frozen),
    programs=(program,),
    step=("grow",),
    role=stage.role,
  )
  return phase, stage


def phases(settings, world):
  """Returns what a plan knows."""
  phase, stage = wire(settings, world, world.base(settings.model))
  merged_from = stage.info.get("merged_from", "")
  world.leave(world.workdir, phase.role, merged_from)
  return [phase]


def run(settings, world):
  """Trains; returns stage.json. A finished run is not repeated."""
  base = world.base(settings.model)
  info = stages.finished(world.workdir, "growth", base)
  if info is not None:
    return info
  phase, stage = wire(settings, world, base)

  def one_step(step, arrays, facts):
    del step
    state, row = phase["grow"](arrays["train"], rate=settings.growth.rate)
    return {"train": state}, facts, row

  loop.run_steps(
    one_step,
    phase="growth",
    workdir=world.workdir,
    schedule=settings.schedule,
    total_steps=settings.schedule.total_steps(1),
    arrays=phase.arrays,
    facts={},
    identity=base.identity,
    iterators={},
    show=(),
  )
  return stages.write_stage(
    world.workdir,
    "growth",
    base,
    phase.role,
    steps=settings.schedule.steps,
    init_from=settings.init_from,
    merged_from=stage.info.get("merged_from", ""),
  )


PIPELINE = Pipeline(
  name="growth",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=lambda settings: f"{settings.schedule.steps} steps of growth",
  label=lambda settings: "growth",
)
JUDGE = dataclasses.replace(PIPELINE, leaves=stages.REWARD)
REPORT = dataclasses.replace(PIPELINE, leaves="")
