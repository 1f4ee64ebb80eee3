"""Policy training as programs: one list for a run and for a plan."""

from __future__ import annotations

import dataclasses
import functools

from rlhf_jax import generate
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.models import attention as attention_lib
from rlhf_jax.models import trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import (
  abstract,
  critic,
  heldout,
  offload,
  text_readers,
)
from rlhf_jax.programs.actors import Actors
from rlhf_jax.programs.layer_work import reads_last
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.programs.policy_step import (
  Functions,
  further,
  initial_arrays,
  judge_plan,
  make_functions,
  make_transforms,
)
from rlhf_jax.programs.program import (
  Flow,
  Phase,
  Program,
  known_steps,
  prompt_width,
)
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import World
from rlhf_jax.types import PyTree


def wire(
  settings: Settings, world: World, base: Base, actors: Actors, total: int
) -> tuple[Phase, Sampler]:
  """Returns the phase of policy training, and what samples its policy.

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    actors: loaded, or abstract.
    total: rollouts, those for the critic alone included.
  """
  transforms = make_transforms(settings, total)
  arrays = world.state(
    functools.partial(
      initial_arrays,
      transforms=transforms,
      beta=settings.shaping.kl_coefficient,
      has_pretraining=settings.value.pretrain_steps > 0,
      combination=settings.first_state,
    ),
    actors.params,
  )
  made = make_functions(settings, actors.plan, transforms, world.mesh)
  sampler = Sampler(
    actors.plan.policy,
    actors.frozen["policy"],
    base,
    settings.generate,
    actors.plan.taps(),
  )
  calls = known_steps(settings.schedule)
  if calls is not None:
    calls += settings.value.pretrain_steps
  wired = _Wired(settings, world, base, actors, arrays, made, calls)
  parts = wired.sampling(sampler), wired.judging(), wired.updates()
  step = [program for part in parts for program in part]
  programs = step + heldout.programs(
    settings, world, sampler, actors, arrays["train"].params["policy"], calls
  )
  frozen = (base.params, actors.held, actors.frozen)
  if settings.offload.releases:
    frozen = frozen[1:]
  phase = Phase(
    name="policy",
    world=world,
    base=base,
    arrays=arrays,
    frozen=frozen,
    programs=tuple(programs),
    away=offload.away(
      settings.offload, actors, arrays, *(_names(part) for part in parts)
    ),
    step=tuple(p.name for p in step if p.name != "value update"),
    role=actors.plan.policy,
  )
  return phase, sampler


def _names(programs: list[Program]) -> list[str]:
  return [program.name for program in programs]


USUAL_TARGETS = (5.0, 8.0)  # nats an answer, of an adaptive KL; METHODS 19


def warn_of_shaping(settings: Settings) -> None:
  """Prints odd targets of the KL, and where token rewards move the optimum."""
  low, high = USUAL_TARGETS
  target = settings.shaping.kl_target
  if settings.shaping.kl_controller == "adaptive" and not low <= target <= high:
    print(
      f"policy: note: shaping.kl_target={target:g} is outside of {low:g} to "
      f"{high:g} nats an answer, which are usual. Below, the policy hardly "
      "moves; above, watch a gold score."
    )
  if settings.shaping.token_rewards == "raw":
    print(
      "policy: warning: shaping.token_rewards='raw' is no potential: an answer "
      "with more steps earns more, and the optimum is another one than that of "
      "the score. Set 'potential' to keep it."
    )


def say_rows(settings: Settings, ways: int, attention: str) -> None:
  """Prints how the answers of a rollout lie.

  Args:
    settings: of the pipeline.
    ways: parts that rows are split into over a mesh.
    attention: the model's kind.
  """
  samples, new = settings.answers, settings.generate.max_new_tokens
  shape = packing.shape_of(
    settings.packing,
    samples,
    settings.prompts.max_length,
    new,
    settings.parts * ways,
    settings.groups(ways, attention),
  )
  note = ""
  is_able = attention in attention_lib.BRANCHING
  if settings.generate.num_samples > 1 and shape is not None and not is_able:
    note = f"; prompts stand once an answer, as attention={attention!r} reads "
    note += "segments"
  print(f"policy: {packing.describe(shape, samples)}{note}")


@dataclasses.dataclass(frozen=True)
class _Wired:
  """What the programs after sampling share."""

  settings: Settings
  world: World
  base: Base
  actors: Actors
  arrays: PyTree
  made: Functions
  calls: float | None

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows of a rollout, tokens of a row, response tokens of a row."""
    return self.shape_of(self.settings.generate)

  @property
  def _beside_value(self) -> PyTree:
    """What the critic reads and does not train alone."""
    params = self.arrays["train"].params
    return critic.frozen_of(self.actors.plan, params, self.actors.frozen)

  def shape_of(self, how: generate.Config) -> tuple[int, int, int]:
    """Returns the same of the answers that are sampled so."""
    new = how.max_new_tokens
    length = prompt_width(self.settings.prompts, how, self.base) + new
    return self.settings.schedule.batch_size * how.num_samples, length, new

  def packed(self) -> tuple[packing.Packing | None, int, int]:
    """Returns the layout of packed rows, their number and their length.

    At worst every sample has its full length.
    """
    rows, length, new = self.shape
    unit = self.settings.parts * self.world.ways
    attention = self.actors.plan.policy.model.attention
    groups = self.settings.groups(self.world.ways, attention)
    found = packing.shape_of(
      self.settings.packing, rows, length, new, unit, groups
    )
    if found is None:
      return None, rows, length
    layout = abstract.packed_layout(
      self.world.mesh,
      (rows, length),
      (found.most, found.tokens),
      has_branches=found.group > 1,
    )
    return layout, found.most, found.tokens

  def sampling(self, sampler: Sampler) -> list[Program]:
    """Returns what samples answers, and the further ones of the method."""
    drawn = {"": self.settings.generate} | {
      f"{name} ": how for name, how in further(self.settings).items()
    }
    return [
      program
      for label, how in drawn.items()
      for program in dataclasses.replace(sampler, config=how).programs(
        self.world.mesh,
        self.arrays["train"].params["policy"],
        self.settings.prompts,
        self.settings.schedule.batch_size,
        label,
        self.calls,
      )
    ]

  def judge(
    self, how: generate.Config, label: str, layout: packing.Packing | None
  ) -> list[Program]:
    """Returns what judges answers.

    Args:
      how: they were sampled.
      label: before the names of program and result.
      layout: of packed rows, or None.
    """
    actors, mesh = self.actors, self.world.mesh
    rows, length, new = self.shape_of(how)

    def judged(flow: Flow) -> tuple[tuple, dict]:
      value: PyTree = {}
      if actors.plan.value is not None:
        value = trees.merge(
          self.arrays["train"].params["value"], self._beside_value
        )
      drawn = flow[f"{label}decoded"], mesh, rows
      samples, streams = (
        abstract.samples_of(*drawn),
        abstract.streams_of(*drawn),
      )
      return (actors.weights, value, samples, layout, streams), {}

    program = Program(
      name=f"{label}judge",
      function=self.made.judge,
      arguments=judged,
      rows=rows,
      work=lambda: Passes(mesh).judge(
        judge_plan(actors.plan, self.settings),
        rows,
        length,
        new,
        actors.plan.taps(),
      ),
      result=f"{label}judged",
      calls=self.calls,
    )
    return [
      program,
      *text_readers.programs(
        actors.readers, self.world, rows, length, label, self.calls
      ),
    ]

  def judging(self) -> list[Program]:
    """Returns the programs between sampling and learning."""
    actors, arrays = self.actors, self.arrays
    rows, length, new = self.shape
    passes, others = Passes(self.world.mesh), further(self.settings)

    def recomputed(flow: Flow) -> tuple[tuple, dict]:
      rollout, _ = flow["judged"]
      layout, _, _ = self.packed()
      return (arrays["train"].params, actors.frozen, rollout, layout), {}

    def prepared(flow: Flow) -> tuple[tuple, dict]:
      rollout, _ = flow.get("recomputed", flow["judged"])
      layout, _, _ = self.packed()
      more = {name: flow[f"{name} judged"][0] for name in others}
      return (rollout, arrays["moments"], arrays["beta"], layout, more), {}

    make = functools.partial(Program, rows=rows, calls=self.calls)
    again = make(
      name="recompute",
      function=self.made.recompute,
      arguments=recomputed,
      work=lambda: passes.policy_and_value(
        actors.plan, *self.packed()[1:], actors.plan.row_targets
      ),
      result="recomputed",
    )
    stored = dataclasses.replace(
      again, name="reweigh", function=self.made.reweigh, result="reweighed"
    )
    prepare_ = make(
      name="prepare",
      function=self.made.prepare,
      arguments=prepared,
      result="prepared",
    )
    return [
      *self.judge(self.settings.generate, "", self.packed()[0]),
      *(
        program
        for name, how in others.items()
        for program in self.judge(how, f"{name} ", None)
      ),
      *([again] if self.made.recompute is not None else []),
      *([stored] if self.made.reweigh is not None else []),
      prepare_,
    ]

  def updates(self) -> list[Program]:
    """Returns the update, and the critic's alone where there is one."""
    settings, actors, arrays = self.settings, self.actors, self.arrays
    key = functools.partial(abstract.key, self.world.mesh)
    _, rows, _ = self.packed()
    pretrain = settings.value.pretrain_steps
    calls = None if self.calls is None else self.calls - pretrain

    def extra() -> tuple:
      if not settings.has_ptx:
        return ()
      length, count = settings.ptx.row_length, settings.ptx_batch_size
      return (abstract.token_batch(self.world.mesh, count, length, False),)

    update = Program(
      name="update",
      function=self.made.update,
      arguments=lambda flow: (
        (arrays["train"], actors.frozen, flow["prepared"][0], key(), *extra()),
        {},
      ),
      rows=rows,
      work=self._update_work,
      donates=0,
      calls=calls,
    )
    if "critic" not in arrays:
      return [update]
    alone = Program(
      name="value update",
      function=self.made.value_update,
      arguments=lambda flow: (
        (
          arrays["critic"],
          self._beside_value,
          flow["prepared"][0],
          key(),
        ),
        {},
      ),
      rows=rows,
      work=lambda: self._role_work("value"),
      donates=0,
      calls=pretrain,
    )
    return [update, alone]

  def _role_work(self, name: str) -> Work:
    """Returns what training a role on one rollout computes.

    On a shared trunk the critic alone is a head.
    """
    plan, epochs = self.actors.plan, self.settings.epochs
    _, rows, width = self.packed()
    role = getattr(plan, name)
    if name == "value" and plan.is_value_on_policy:
      role = dataclasses.replace(role, trainable="head")
    return Passes(self.world.mesh).training(
      role,
      abstract.bytes_of(self.arrays["train"].params[name]),
      rows,
      width,
      plan.row_targets,
      parts=epochs.minibatches * epochs.microbatches,
      steps=epochs.minibatches,
      repeats=epochs.epochs,
      is_lower_known=name in plan.known,
      is_critic=name == "value" and reads_last(role),
    )

  def _update_work(self) -> Work:
    settings, plan = self.settings, self.actors.plan
    total = self._role_work("policy")
    if plan.value is not None and not plan.is_value_on_policy:
      total += self._role_work("value")
    if settings.has_ptx:
      length, epochs = settings.ptx.row_length, settings.epochs
      total += Passes(self.world.mesh).training(
        plan.policy,
        abstract.bytes_of(self.arrays["train"].params["policy"]),
        settings.ptx_batch_size,
        length,
        length,
        parts=epochs.minibatches * epochs.microbatches,
        repeats=epochs.epochs,
      )
    return total
