"""Online preference optimisation: pairs of the policy's own answers.

    each step:  G answers to each prompt from the current policy
                score them; the best against the worst (or two at random)
                one step of a loss of algorithms/preference on these pairs

OAIF (Guo et al. 2024, arXiv:2402.04792) with DPO, IPO or SLiC, there with an AI
judge; iterative DPO (Xiong et al. 2023, arXiv:2312.11456) with a reward model.
The answers are always the current policy's, so there is no lag between who
wrote them and who learns. Ties teach nothing: such pairs are dropped and
counted.

The reference is the start of the run. With pairing.reference_every = k it
becomes the policy every k steps, which is another objective: the tilts of all
rounds multiply, so the KL to the start is not bounded by beta. The policy is
the sampled one, temperature included, in the loss as in the KL.

Left out: several steps on one batch of pairs; the frozen lower layers are run
again in the update, where policy training keeps their output.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import (
  distributed,
  metrics,
  ops,
  optimizer,
  schema,
)
from rlhf_jax.algorithms.preference import pairing, registry
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.models import outputs, roles, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.programs import (
  abstract,
  build,
  offload,
  own_samples,
  sampled_settings,
  sampled_steps,
  supervised,
  watch,
)
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase, Program, planned_steps
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PreferenceBatch, PyTree, Rollout

NAME = "online_preference"
# What compares answers that one policy wrote; not KTO (single answers), not
# SPIN (answers of people against those of the policy).
METHODS = {
  name: module
  for name, module in registry.ALGORITHMS.items()
  if not registry.is_unpaired(module) and name != "spin"
}


def _check_method(module: Any) -> None:
  registry.check_method(module)
  if registry.is_unpaired(module):
    raise FieldError("it reads single answers, and pairs are compared here.")


@dataclasses.dataclass(frozen=True)
class Settings(sampled_settings.Sampled):
  """Online DPO, or another loss on pairs by its name (OAIF: rate 5e-7)."""

  algorithm: schema.Method = schema.method(
    METHODS, "dpo", _check_method, "compare two answers of one policy"
  )
  # the loss on pairs of the policy's own answers
  accumulation: preference.Config = preference.Config()  # how a batch is cut
  pairing: pairing.Config = pairing.Config()
  guards: watch.Guards = watch.Guards()
  optimizer: optimizer.Config = optimizer.Config(learning_rate=5e-7)

  def __post_init__(self) -> None:
    super().__post_init__()
    every = self.pairing.reference_every
    if every and registry.is_reference_free(self.algorithm.module):
      raise FieldError(
        f"pairing.reference_every={every}: {self.algorithm.name!r} has no "
        "reference. Set 0, or a method such as 'dpo'."
      )
    if every and self.reference:
      raise FieldError(
        f"reference={self.reference!r}: pairing.reference_every={every} makes "
        "the policy itself the reference, from its start on. Set one of them."
      )

  def code(self) -> dict[str, str]:
    return super().code() | {"algorithm": self.algorithm.name}

  @property
  def has_moving_reference(self) -> bool:
    """Whether the reference follows the policy."""
    return self.pairing.reference_every > 0


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  sampled_settings.check_sampled(settings, world)
  own_samples.check_answers(settings, 2)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  _check_rows(settings, world)
  build.check_portions(
    settings.schedule.batch_size, settings.generate, "schedule.batch_size"
  )


def _check_rows(settings: Settings, world: World) -> None:
  build.check_rows(
    world,
    settings.schedule.batch_size,
    parts=settings.accumulation.microbatches,
    cut="accumulation.microbatches",
  )


def logprobs(
  params: PyTree, frozen: PyTree, batch: PreferenceBatch, *, plan: judge.Plan
) -> Array:
  """Returns [B, K, L] log-probabilities at the temperature of sampling.

  Args:
    params: trainable tree of the policy.
    frozen: the rest of it.
    batch: prompts padded on the left.
    plan: whose policy.
  """
  shape = batch.tokens.shape
  tokens, valid, mask = (
    x.reshape(-1, shape[-1])
    for x in (batch.tokens, batch.valid_mask, batch.loss_mask)
  )
  positions = ops.positions_from_mask(valid)
  found, _ = outputs.logprobs(
    plan.policy,
    trees.merge(params, frozen),
    Rows(tokens, valid, positions),
    mask,
    temperature=plan.temperature,
    targets=plan.row_targets,
    is_unembedding_frozen=not roles.trains_unembedding(plan.policy),
  )
  return found.reshape(shape)


def learn(
  settings: Settings,
  phase: Phase,
  arrays: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  key: Array,
  step: int,
) -> tuple[PyTree, dict[str, float]]:
  """Returns the arrays after a step on a rollout's pairs, and metrics.

  Where all pairs are ties nothing is changed: momentum and weight decay would
  move the weights for nothing.

  Args:
    settings: of the run.
    phase: wired.
    arrays: "train", and "reference" where it moves.
    frozen: what does not train of the policy.
    rollout: judged.
    key: of the step.
    step: steps before this one.
  """
  pair_key, update_key = jax.random.split(key)
  batch, row = phase["pairs"](rollout, pair_key)
  row = {name: float(x) for name, x in distributed.fetch(row).items()}
  every = settings.pairing.reference_every
  if every:
    batch = phase["refer"](arrays["reference"], frozen, batch)
  if row["pair/used_share"] > 0.0:
    state, found = phase["update"](arrays["train"], frozen, batch, update_key)
    arrays = arrays | {"train": state}
    row |= {name: float(x) for name, x in distributed.fetch(found).items()}
  if every and (step + 1) % every == 0:
    moved = jax.tree.map(jnp.copy, arrays["train"].params)
    arrays = arrays | {"reference": moved}
  return arrays, row


def initial_arrays(
  params: PyTree,
  *,
  transform: Any,
  moves: bool,
  combination: Callable[[], PyTree] | None = None,
) -> PyTree:
  """Returns what a run carries from step to step, before the first.

  Args:
    params: trainable tree of the policy.
    transform: an optax.GradientTransformation.
    moves: whether the reference follows the policy.
    combination: makes the state of what combines several judges; None with one.
  """
  arrays = {"train": supervised.initial_state(params, transform)}
  if moves:
    arrays["reference"] = jax.tree.map(jnp.copy, params)
  if combination is not None:
    arrays["combination"] = combination()
  return arrays


def make_update(
  settings: Settings, plan: judge.Plan, transform: Any, mesh: Any
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
  """Returns the compiled (pairs, refer, update); nothing compiles yet.

  Args:
    settings: method and pairs.
    plan: whose policy.
    transform: an optax.GradientTransformation.
    mesh: where it runs.
  """
  apply = functools.partial(logprobs, plan=plan)

  def refer(
    params: PyTree, frozen: PyTree, batch: PreferenceBatch
  ) -> PreferenceBatch:
    return batch.replace(reference_logprobs=apply(params, frozen, batch))

  update = functools.partial(
    preference.update,
    algorithm=settings.algorithm.module,
    algorithm_config=settings.algorithm.config,
    config=settings.accumulation,
    apply=apply,
    optimizer=transform,
  )
  pairs = functools.partial(
    pairing.pairs_of,
    num_samples=settings.generate.num_samples,
    config=settings.pairing,
  )
  learn = jax.jit(
    update,
    donate_argnums=0,
    compiler_options=build.compiler_options(plan.policy, mesh),
  )
  return jax.jit(pairs), jax.jit(refer), learn


def wire(settings: Settings, opened: own_samples.Opened, total: int) -> Phase:
  """Returns the phase.

  Args:
    settings: of the pipeline.
    opened: roles, loaded or planned.
    total: steps.
  """
  world = opened.world
  transform = build.make_optimizer(settings.optimizer, total)
  arrays = world.state(
    functools.partial(
      initial_arrays,
      transform=transform,
      moves=settings.has_moving_reference,
      combination=settings.first_state,
    ),
    opened.actors.params["policy"],
  )
  pairs, refer, update = make_update(
    settings, opened.actors.plan, transform, world.mesh
  )
  key = functools.partial(abstract.key, world.mesh)
  count, steps = settings.schedule.batch_size, settings.schedule.steps or None
  make = functools.partial(Program, rows=count, calls=steps)
  plan, length = opened.actors.plan, opened.length
  learning = [
    make(
      name="pairs",
      function=pairs,
      arguments=lambda flow: ((flow["judged"][0], key()), {}),
      result="pairs",
    ),
    make(
      name="refer",
      function=refer,
      arguments=lambda flow: (
        (arrays["reference"], opened.frozen, flow["pairs"][0]),
        {},
      ),
      work=lambda: Passes(world.mesh).forward(
        [plan.policy], 2 * count, length, settings.generate.max_new_tokens
      ),
    ),
    make(
      name="update",
      function=update,
      arguments=lambda flow: (
        (arrays["train"], opened.frozen, flow["pairs"][0], key()),
        {},
      ),
      work=lambda: opened.training(
        2 * count, length, settings.accumulation.microbatches
      ),
      donates=0,
    ),
  ]
  answers = opened.answers(
    arrays["train"].params, settings.generate, count, calls=steps
  )
  programs = [*answers, *learning]
  if not settings.has_moving_reference:
    programs = [p for p in programs if p.name != "refer"]
  step = tuple(p.name for p in programs)
  programs += opened.heldout(arrays["train"].params, steps)
  return opened.phase(NAME, arrays, programs, step)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  sampled_settings.check_sampling(settings.generate)
  _check_rows(settings, world)
  opened = own_samples.Opened.of(settings, world, world.base(settings.model))
  phase = wire(settings, opened, planned_steps(settings.schedule))
  world.leave(world.workdir, phase.role, opened.actors.merged_from)
  return [phase]


def run(settings: Settings, world: World) -> dict:
  """Trains a policy on its own pairs; returns stage.json when finished."""
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, NAME, base, asked=settings.schedule.asked
  )
  if info is not None:
    return info
  opened = own_samples.Opened.of(settings, world, base)
  source, count = opened.source(settings.schedule.batch_size)
  total = build.announced(
    settings.schedule, count, NAME, {"optimizer": settings.optimizer}
  )
  phase = wire(settings, opened, total)
  source = opened.resting(source, NAME)
  key = jax.random.key(settings.seed)
  writer = metrics.MetricsWriter(
    world.workdir, writes_tensorboard=False, is_enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    sample_key, learn_key = jax.random.split(jax.random.fold_in(key, step))
    arrays = sampled_steps.parked(settings, arrays, source.timer)
    state = arrays.get("combination")
    judged = source.batch(arrays["train"].params, {}, sample_key, state=state)
    if settings.offload.prefetch:
      arrays = offload.fetch(settings.offload, arrays)
    group = settings.generate.num_samples
    row = sampled_steps.report(judged, settings.monitors, source.panel, group)
    facts = watch.guard(facts, row, step, settings.guards, NAME)
    arrays = offload.fetch(settings.offload, arrays)
    with source.timer("update"):
      arrays, found = learn(
        settings,
        phase,
        arrays,
        opened.frozen,
        sampled_steps.penalised(judged, settings.guards),
        learn_key,
        step,
      )
    moved, combined = sampled_steps.moved(source, judged)
    row |= found | combined
    row |= sampled_steps.write_texts(
      base.tokenizer, source.timer, judged, writer, step, NAME
    )
    return arrays | moved, facts, row

  return own_samples.train(
    opened,
    phase,
    source,
    one_step,
    total=total,
    same={"algorithm": settings.algorithm.name},
    show=(("preference/accuracy", "accuracy"), ("pair/used_share", "used")),
    algorithm={"name": settings.algorithm.name}
    | dataclasses.asdict(settings.algorithm.config),
  )


def _label(settings: Settings) -> str:
  return f"online {settings.algorithm.name.upper().replace('_', '-')}"


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=lambda settings: (
    f"{settings.schedule.describe()} prompts ({_label(settings)})"
  ),
  label=_label,
)
