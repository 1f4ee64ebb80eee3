"""What pipelines that learn from their own samples share, but for the loss.

Rejection sampling, online preference optimisation and BOND: a policy, its
start as the reference, something that judges, prompts. There is no critic and
no reward per token; policy_step.py has them.

Left out: log-probabilities of the trainer where they serve metrics alone. Below
float32 the KL that is reported is the sampler's, whose rounding differs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax import generate
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import (
  abstract,
  diagnosed,
  heldout,
  offload,
  rollouts,
  several,
  starts,
  tax,
  text_readers,
  watch,
)
from rlhf_jax.programs import actors as actors_lib
from rlhf_jax.programs.program import (
  Flow,
  Phase,
  Program,
  prompt_width,
)
from rlhf_jax.programs.sampled_settings import Sampled
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge
from rlhf_jax.runs import loop, stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PyTree, Rollout


def check_answers(settings: Sampled, least: int) -> None:
  """Raises FieldError for answers that cannot be compared as they should be.

  Args:
    settings: of the pipeline.
    least: answers that a comparison needs.
  """
  if settings.generate.num_samples < least:
    raise FieldError(
      f"generate.num_samples={settings.generate.num_samples}: answers to "
      f"one prompt are compared. Set >= {least}."
    )
  if settings.generate.cache_dtype is not None:
    raise FieldError(
      f"generate.cache_dtype={settings.generate.cache_dtype!r}: the KL is told "
      "from the sampler's log-probabilities and would carry what the cache "
      "rounds. Set None."
    )


@dataclasses.dataclass(frozen=True)
class Opened:
  """Everyone loaded, or planned, and what samples and judges them."""

  settings: Sampled
  world: World
  base: Base
  actors: actors_lib.Actors
  sampler: Sampler

  @staticmethod
  def of(settings: Sampled, world: World, base: Base) -> Opened:
    """Returns the roles that settings name.

    Raises:
      UserError: a stage is missing, or of another model.
    """
    sampling = settings.generate
    actors = actors_lib.load(settings, base, world, sampling.max_new_tokens)
    plan, frozen = actors.plan, actors.frozen["policy"]
    sampler = Sampler(plan.policy, frozen, base, sampling, plan.taps())
    return Opened(settings, world, base, actors, sampler)

  @property
  def frozen(self) -> PyTree:
    """What does not train of the policy."""
    return self.actors.frozen["policy"]

  @functools.cached_property
  def judge(self) -> Callable[..., tuple[Rollout, dict[str, Array]]]:
    """The compiled judge."""
    return judge.make_judge(self.actors.plan)

  @property
  def length(self) -> int:
    """Tokens of a prompt and its answer at most."""
    settings = self.settings
    width = prompt_width(settings.prompts, settings.generate, self.base)
    return width + settings.generate.max_new_tokens

  @property
  def identity(self) -> dict:
    """What a checkpoint of the run must agree with."""
    return self.base.identity | self.settings.origins()

  def source(self, batch_size: int) -> tuple[rollouts.Source, int]:
    """Returns an open source of judged samples, and the number of prompts.

    Args:
      batch_size: prompts of a batch.
    """
    settings, mesh = self.settings, self.world.mesh
    loader, count = rollouts.prompt_loader(
      settings.prompts,
      settings.generate,
      batch_size,
      self.base,
      settings.seed,
      mesh,
    )
    source = rollouts.Source.of(
      settings,
      self.actors,
      self.sampler,
      self.judge,
      loader,
      mesh,
      packing=packing.Config(row_tokens=0),
      unit=1,
    )
    return source, count

  def resting(
    self, source: rollouts.Source, name: str, also: PyTree = ()
  ) -> rollouts.Source:
    """Returns the source, some of what judges on the host between phases.

    What nothing of the run reads is deleted: wire everything before.

    Args:
      source: of judged samples.
      name: of the pipeline.
      also: see offload.leaves_of.
    """
    found = offload.opened(
      self.settings.offload,
      self.actors,
      self.base,
      self.world.mesh,
      name,
      also,
    )
    return dataclasses.replace(source, resting=found)

  def heldout(self, params: PyTree, steps: float | None) -> list[Program]:
    """Returns the programs of heldout.py.

    Args:
      params: trained tree of the policy.
      steps: of the run; None where only the data tell.
    """
    return heldout.programs(
      self.settings, self.world, self.sampler, self.actors, params, steps
    )

  def answers(
    self,
    params: PyTree,
    sampling: generate.Config,
    count: int,
    label: str = "",
    calls: float | None = None,
  ) -> list[Program]:
    """Returns the programs that sample and judge `count` prompts.

    Args:
      params: trained tree of the policy that samples.
      sampling: how.
      count: prompts at a time.
      label: before the names of programs and results.
      calls: how often in a run.
    """
    mesh, plan = self.world.mesh, self.actors.plan
    rows = count * sampling.num_samples
    sampler = dataclasses.replace(self.sampler, config=sampling)

    def judged(flow: Flow) -> tuple[tuple, dict]:
      drawn = flow[f"{label}decoded"], mesh, rows
      samples, streams = (
        abstract.samples_of(*drawn),
        abstract.streams_of(*drawn),
      )
      return (self.actors.weights, {}, samples, None, streams), {}

    return [
      *sampler.programs(
        mesh, params, self.settings.prompts, count, label, calls
      ),
      Program(
        name=f"{label}judge",
        function=self.judge,
        arguments=judged,
        rows=rows,
        work=lambda: Passes(mesh).judge(
          plan, rows, self.length, sampling.max_new_tokens, plan.taps()
        ),
        result=f"{label}judged",
        calls=calls,
      ),
      *text_readers.programs(
        self.actors.readers, self.world, rows, self.length, label, calls
      ),
    ]

  def training(self, rows: int, length: int, parts: int = 1) -> Work:
    """Returns the work of an update of the policy on so many rows."""
    return Passes(self.world.mesh).training(
      self.actors.plan.policy,
      abstract.bytes_of(self.actors.params["policy"]),
      rows,
      length,
      self.settings.generate.max_new_tokens,
      parts=parts,
    )

  def phase(
    self,
    name: str,
    arrays: dict[str, PyTree],
    programs: list[Program],
    step: tuple[str, ...] = (),
    also: PyTree = (),
  ) -> Phase:
    """Returns the wired phase.

    Args:
      name: of the pipeline.
      arrays: "train" and further trees.
      programs: of a step, and those that measure.
      step: names of those of a training step; () for all but those that
        measure held-out answers.
      also: see offload.leaves_of.
    """
    # The weights it starts from stay beside the ones that train.
    frozen = (self.base.params, self.actors.params)
    if self.settings.offload.releases:
      frozen = also
    own = [p for p in programs if not p.name.startswith(heldout.LABEL)]
    return Phase(
      name=name,
      world=self.world,
      base=self.base,
      arrays=arrays,
      frozen=(frozen, self.actors.held, self.frozen),
      programs=tuple(programs),
      away=self._away(arrays, own, also),
      step=step,
      role=self.actors.plan.policy,
    )

  def _away(
    self, arrays: PyTree, programs: list[Program], also: PyTree
  ) -> dict[str, tuple]:
    """Returns {program: arrays that are on the host while it runs}."""
    score = [p.name for p in programs if p.name.endswith(("judge", "by text"))]
    names = [p.name for p in programs]
    last = names.index(score[-1]) + 1
    drawn = [name for name in names[:last] if name not in score]
    return offload.away(
      self.settings.offload,
      self.actors,
      arrays,
      drawn,
      score,
      names[last:],
      also,
    )


def train(
  opened: Opened,
  phase: Phase,
  source: rollouts.Source,
  one_step: loop.OneStep,
  *,
  total: int,
  same: dict,
  show: tuple[tuple[str, str], ...],
  **facts: Any,
) -> dict:
  """Runs the steps of a pipeline; returns stage.json.

  Args:
    opened: roles.
    phase: wired.
    source: of judged samples.
    one_step: see loop.run_steps; it gets facts with "alarms".
    total: steps.
    same: what a checkpoint must agree with, beside model and runs.
    show: of the progress line.
    facts: for stage.json.
  """
  settings, workdir = opened.settings, opened.world.workdir
  starts.say_reference(settings, phase.name)
  measure = heldout.Heldout.of(settings, source, phase.name)
  watching = tax.Tax.of(
    settings.tax, source.sampler, opened.world.mesh, workdir, phase.name
  )
  phase.warn_of_room()
  arrays, found = loop.run_steps(
    tax.watched(
      watching,
      one_step,
      lambda x: x["train"].params,
      total,
      phase.arrays,
    ),
    phase=phase.name,
    workdir=workdir,
    schedule=settings.schedule,
    total_steps=total,
    arrays=phase.arrays,
    facts={"alarms": []},
    identity=opened.identity | same,
    iterators={"prompts": source.loader},
    show=(
      ("rollout/score_mean", "score"),
      ("rollout/kl_k1_sum", "kl"),
      *show,
      ("heldout/score", "held out"),
    ),
    measure=heldout.of_arrays(measure, lambda x: x["train"].params),
    observe=watch.observer(settings, phase.name),
  )
  facts = facts | several.facts(settings)
  return stages.write_stage(
    workdir,
    phase.name,
    opened.base,
    opened.actors.plan.policy,
    steps=int(np.asarray(arrays["train"].step)),
    best=settings.schedule.best_of,
    asked=settings.schedule.asked,
    init_from=settings.init_from,
    reference=settings.reference,
    merged_from=opened.actors.merged_from,
    **tax.finished(watching, arrays["train"].params, found),
    findings=diagnosed.findings(settings, workdir, phase.name),
    halted=found.get("halt"),
    **facts,
  )
