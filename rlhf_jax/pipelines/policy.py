"""Policy optimisation against a reward model, by any policy-gradient method.

    samples = generate(policy)                 # jitted, log-probs from sampler
    rollout = judge(samples)                   # reference, reward, values
    rollout = advantages(shape(rollout))       # KL in the reward; the method's
    state   = update(state, rollout)           # epochs x minibatches

Roles `full` (four trees) or `lora` (one frozen base; the reference is the
base with the factors the policy started from). For the first
`value.pretrain_steps` rollouts only the critic learns. config.algorithm.name
chooses the method; those without a critic have no value tree at all. These four
lines are in programs/policy_training.py; sampling and judging in rollouts.py,
DAPO's resampling in resampling.py, the compiled functions in policy_step.py.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rlhf_jax import distributed, metrics
from rlhf_jax.data import batches, dataset, statistics
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import actors as actors_lib
from rlhf_jax.programs import (
  build,
  diagnosed,
  heldout,
  offload,
  policy_programs,
  policy_settings,
  policy_step,
  replay,
  rollouts,
  several,
  starts,
  tax,
)
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.programs.policy_training import Step
from rlhf_jax.programs.program import Phase, planned_steps
from rlhf_jax.programs.watch import observer
from rlhf_jax.programs.world import World
from rlhf_jax.runs import loop, stages
from rlhf_jax.types import PyTree


def ptx_loader(settings: Settings, world: World, base: Base) -> Any:
  """Returns the iterator of text mixed into PPO (PPO-ptx), or None."""
  if not settings.has_ptx:
    return None
  rows, dropped = dataset.demonstrations(settings.ptx, base.tokenizer)
  lengths = statistics.of_rows(rows)
  dataset.report_dropped(
    "ptx", settings.ptx.source, len(rows), dropped, lengths
  )
  longest = statistics.longest(rows)
  pretrained.check_context(base, longest, "ptx")
  return build.make_loader(
    world.mesh,
    rows,
    settings.ptx_batch_size,
    seed=settings.seed + 1,
    collate=functools.partial(
      batches.collate_tokens,
      length=batches.bucket_length(longest),
      pad_id=base.tokenizer.pad_id,
    ),
  )


def _load_actors(
  settings: Settings, world: World, base: Base
) -> actors_lib.Actors:
  value = settings.value if settings.has_critic else None
  targets = settings.row_targets(world.ways, base.config.attention)
  return actors_lib.load(settings, base, world, targets, value)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  policy_settings.check_batches(settings, world)
  base = world.base(settings.model)
  actors = _load_actors(settings, world, base)
  total = settings.value.pretrain_steps + planned_steps(settings.schedule)
  phase, _ = policy_programs.wire(settings, world, base, actors, total)
  world.leave(world.workdir, phase.role, actors.merged_from)
  return [phase]


def run(settings: Settings, world: World) -> dict:
  """Optimises a policy; returns stage.json. A finished run is not repeated."""
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, "policy", base, asked=settings.schedule.asked
  )
  if info is not None:
    return info
  actors = _load_actors(settings, world, base)
  loader, count = rollouts.prompt_loader(
    settings.prompts,
    settings.generate,
    settings.schedule.batch_size,
    base,
    settings.seed,
    world.mesh,
  )
  text = ptx_loader(settings, world, base)
  total = settings.value.pretrain_steps + build.announced(
    settings.schedule,
    count,
    "policy",
    settings.optimizers,
    settings.updates_a_step,
  )
  phase, sampler = policy_programs.wire(settings, world, base, actors, total)
  starts.say_reference(settings, "policy")
  policy_programs.warn_of_shaping(settings)
  policy_programs.say_rows(settings, world.ways, base.config.attention)
  source = rollouts.Source.of(
    settings,
    actors,
    sampler,
    phase["judge"],
    loader,
    world.mesh,
    packing=settings.packing,
    unit=settings.parts * world.ways,
    groups=settings.groups(world.ways, phase.role.model.attention),
    further=policy_step.further(settings),
    resting=offload.opened(
      settings.offload, actors, base, world.mesh, "policy"
    ),
  )
  return train(settings, phase, source, text, total)


def train(
  settings: Settings,
  phase: Phase,
  source: rollouts.Source,
  text: Any,
  total: int,
) -> dict:
  """Runs the steps; returns stage.json.

  Args:
    settings: of the pipeline.
    phase: wired.
    source: of judged samples.
    text: iterator of text mixed into the updates (PPO-ptx), or None.
    total: rollouts, those for the critic alone included.
  """
  base, workdir = phase.base, phase.world.workdir
  store = replay.Store.open(settings, source, workdir, base)
  measure = heldout.Heldout.of(settings, source, "policy")
  watching = tax.Tax.of(
    settings.tax, source.sampler, phase.mesh, workdir, "policy"
  )
  with metrics.MetricsWriter(
    workdir, writes_tensorboard=False, is_enabled=distributed.is_first()
  ) as writer:
    one_step = Step.of(settings, phase, source, text, writer, store)
    phase.warn_of_room()
    arrays, facts = loop.run_steps(
      tax.watched(watching, one_step, _policy_of, total, phase.arrays),
      phase="policy",
      workdir=workdir,
      schedule=settings.schedule,
      total_steps=total,
      arrays=phase.arrays,
      facts={"alarms": []},
      identity=base.identity
      | settings.origins()
      | replay.identity(settings.buffer),
      iterators={"prompts": source.loader} | ({"ptx": text} if text else {}),
      show=_shown(settings),
      measure=heldout.of_arrays(measure, _policy_of),
      observe=observer(settings, "policy"),
    )
  return stages.write_stage(
    workdir,
    "policy",
    base,
    phase.role,
    trained=stages.BESIDE_CRITIC,
    best=settings.schedule.best_of,
    asked=settings.schedule.asked,
    steps=int(np.asarray(arrays["train"].step)),
    init_from=settings.init_from,
    reference=settings.reference,
    merged_from=source.actors.merged_from,
    kl_coefficient=float(arrays["beta"]),
    **several.facts(settings),
    **tax.finished(watching, _policy_of(arrays), facts),
    findings=diagnosed.findings(settings, workdir, "policy"),
    halted=facts.get("halt"),
  )


def _shown(settings: Settings) -> tuple[tuple[str, str], ...]:
  """Returns (metric, word) of the line of progress."""
  return (
    ("rollout/score_mean", "score"),
    *((f"eval/{name}", name) for name in settings.monitors),
    ("rollout/kl_k1_sum", "kl"),
    ("rollout/length_mean", "length"),
    ("rollout/tokens_per_second", "tokens/s"),
    ("heldout/score", "held out"),
  )


def _policy_of(arrays: PyTree) -> PyTree:
  """Returns the policy's trained tree out of the arrays of a run."""
  return arrays["train"].params["policy"]


def _label(settings: Settings) -> str:
  return settings.algorithm.name.upper().replace("_", "-")


PIPELINE = Pipeline(
  name="policy",
  Settings=Settings,
  run=run,
  phases=phases,
  check=policy_settings.check,
  leaves=stages.POLICY,
  describe=lambda settings: (
    f"{settings.schedule.describe()} prompts ({_label(settings)})"
  ),
  label=_label,
)
