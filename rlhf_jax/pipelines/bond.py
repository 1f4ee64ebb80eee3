"""BOND and J-BOND: distil the best of n answers into the policy.

    each step:  M answers of the anchor and one of the policy to each prompt
                score them; the anchor's best teaches by cross-entropy, the
                rank of the policy's own answer by policy gradient
                anchor <- (1 - anchor_rate) anchor + anchor_rate policy

Sessa et al. 2024, arXiv:2407.14622; the mathematics is algorithms/bond.py.
target.kind:
  j_bond   M = 2, and the moving anchor makes best of two into ever larger n
  bond     best of n against M answers, whose quantiles are estimated; with
           anchor_rate = 0 the anchor stays the start, as in the paper

The KL to the start of the run is watched as in other pipelines; bond/kl is that
to the anchor. The policy is the sampled one, temperature included.

Left out: microbatches (the baseline is the mean of the other answers of the
whole batch) and several steps on one batch (the gradient is on-policy).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import distributed, metrics, optimizer
from rlhf_jax.algorithms import accumulate, best_of_n, bond
from rlhf_jax.models import policy_value, roles
from rlhf_jax.programs import (
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
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, TrainState

NAME = "bond"
# Scores closer than this are equal: one answer, judged in two batches of other
# sizes, differs by rounding, and a rank must not be made of that.
TIE = 1e-4


@dataclasses.dataclass(frozen=True)
class Target:
  """Which distribution is distilled."""

  kind: str = "j_bond"  # best of two answers of a moving anchor, or of n
  n: int = 2  # best of n; 2 in J-BOND, at most generate.num_samples in BOND

  def __post_init__(self) -> None:
    if self.kind not in ("j_bond", "bond"):
      raise FieldError(f"kind={self.kind!r}: must be 'j_bond' or 'bond'.")
    if self.n < 2:
      raise FieldError(
        f"n={self.n}: the best of one answer is that answer. Set n >= 2."
      )
    if self.kind == "j_bond" and self.n != 2:
      raise FieldError(
        f"n={self.n}: J-BOND takes the best of 2 answers of a moving anchor. "
        "Set n=2, or kind='bond'."
      )


@dataclasses.dataclass(frozen=True)
class Settings(sampled_settings.Sampled):
  """J-BOND: best of two answers of a moving anchor, distilled."""

  distillation: bond.Config = bond.Config()
  target: Target = Target()
  guards: watch.Guards = watch.Guards()
  optimizer: optimizer.Config = optimizer.Config(learning_rate=3e-6)


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  sampled_settings.check_sampled(settings, world)
  samples, target = settings.generate.num_samples, settings.target
  if target.kind == "j_bond" and samples != 2:
    raise FieldError(
      f"generate.num_samples={samples}: J-BOND compares with "
      "two answers of the anchor. Set 2, or target.kind='bond'."
    )
  if target.n > samples:
    raise FieldError(
      f"target.n={target.n}: the best of n is taken from "
      f"generate.num_samples={samples} answers of the anchor. Raise that, or "
      "lower n."
    )
  own_samples.check_answers(settings, 2)
  size = settings.schedule.batch_size
  if settings.distillation.has_baseline and size < 2:
    raise FieldError(
      f"schedule.batch_size={size}: the "
      "baseline is the mean of the other answers. Set >= 2, or distillation."
      "has_baseline=False."
    )
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  build.check_rows(world, size)
  build.check_portions(size, settings.generate, "schedule.batch_size")


def teach(
  anchor: Rollout, own: Rollout, target: Target
) -> tuple[Rollout, Array]:
  """Returns the anchor's best answers [P] and log(target / anchor) [P].

  Args:
    anchor: [P M, L] judged answers of the anchor, those of a prompt together.
    own: [P, L] judged answers of the policy.
    target: what is distilled.
  """
  scores = anchor.score.reshape(own.score.shape[0], -1)
  starts = jnp.arange(scores.shape[0]) * scores.shape[1]
  rows = starts + best_of_n.select_best(scores[:, : target.n])
  best = jax.tree.map(
    lambda x: jnp.take(x, rows, axis=0), anchor.replace(hidden={})
  )
  if target.kind == "j_bond":
    return best, bond.j_bond_ratio(own.score + TIE, scores)
  log_at_most = bond.log_quantile(own.score + TIE, scores)
  return best, bond.log_best_of_n_ratio(log_at_most, target.n)


def update(
  state: TrainState,
  frozen: PyTree,
  anchor_params: PyTree,
  anchor: Rollout,
  own: Rollout,
  *,
  apply: Callable[..., tuple[Array, Array, Array | None]],
  config: bond.Config,
  target: Target,
  optimizer_: Any,
) -> tuple[TrainState, PyTree, Metrics]:
  """Returns the state after a step, the anchor moved after it, and metrics.

  Metrics: those of bond.loss, and
    bond/anchor_score: mean score of the anchor's answers. Falling is bad.
    bond/best_score: of its best ones. Close to the former leaves nothing to
      learn.
    bond/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: params is the policy's trainable tree; donate it.
    frozen: what does not train.
    anchor_params: the anchor's tree of the same form; donate it.
    anchor, own: see `teach`.
    apply: (params {"policy"}, frozen {"policy"}, rollout) -> (log-probs,
      entropies, None).
    config: weights of the loss, rate of the anchor.
    target: what is distilled.
    optimizer_: an optax.GradientTransformation.
  """
  best, log_target_ratio = teach(anchor, own, target)
  own = own.replace(hidden={})

  def logprobs(params: PyTree, rollout: Rollout) -> Array:
    return apply({"policy": params}, {"policy": frozen}, rollout)[0]

  reference = logprobs(anchor_params, own)

  def loss(params: PyTree) -> tuple[Array, Metrics]:
    return bond.loss(
      logprobs(params, best),
      best.response_mask,
      logprobs(params, own),
      own.response_mask,
      reference,
      log_target_ratio,
      config,
    )

  (value, found), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
  state, applied = accumulate.apply_gradients(
    state, grads, optimizer_, jnp.isfinite(value)
  )
  moved = bond.move_anchor(anchor_params, state.params, config.anchor_rate)
  return (
    state,
    moved,
    found
    | {
      "bond/anchor_score": jnp.mean(anchor.score),
      "bond/best_score": jnp.mean(best.score),
      "bond/gradient_norm": applied.gradient_norm,
      "sys/skipped_updates": 1.0 - applied.applied,
    },
  )


def initial_arrays(
  params: PyTree,
  *,
  transform: Any,
  combination: Callable[[], PyTree] | None = None,
) -> PyTree:
  """Returns what a run carries from step to step, before the first.

  Args:
    params: trainable tree of the policy.
    transform: an optax.GradientTransformation.
    combination: makes the state of what combines several judges; None with one.
  """
  arrays = {
    "train": supervised.initial_state(params, transform),
    "anchor": jax.tree.map(jnp.copy, params),
  }
  if combination is not None:
    arrays["combination"] = combination()
  return arrays


def make_update(
  settings: Settings, plan: judge.Plan, transform: Any, mesh: Any
) -> Callable[..., tuple[TrainState, PyTree, Metrics]]:
  """Returns the compiled `update`.

  Args:
    settings: of the run.
    plan: whose policy.
    transform: an optax.GradientTransformation.
    mesh: where it runs.
  """
  return jax.jit(
    functools.partial(
      update,
      apply=functools.partial(
        policy_value.policy_and_value,
        policy=plan.policy,
        value=plan.value,
        temperature=plan.temperature,
        targets=plan.row_targets,
        is_unembedding_frozen=not roles.trains_unembedding(plan.policy),
      ),
      config=settings.distillation,
      target=settings.target,
      optimizer_=transform,
    ),
    donate_argnums=(0, 2),
    compiler_options=build.compiler_options(plan.policy, mesh),
  )


def wire(settings: Settings, opened: own_samples.Opened, total: int) -> Phase:
  """Returns the phase, in which two policies sample.

  Args:
    settings: of the pipeline.
    opened: roles, loaded or planned.
    total: steps.
  """
  world = opened.world
  transform = build.make_optimizer(settings.optimizer, total)
  arrays = world.state(
    functools.partial(
      initial_arrays, transform=transform, combination=settings.first_state
    ),
    opened.actors.params["policy"],
  )
  state, anchor = arrays["train"], arrays["anchor"]
  count, steps = settings.schedule.batch_size, settings.schedule.steps or None
  plan, sampling = opened.actors.plan, settings.generate
  update_ = Program(
    name="update",
    function=make_update(settings, plan, transform, world.mesh),
    arguments=lambda flow: (
      (
        state,
        opened.frozen,
        anchor,
        flow["anchor judged"][0],
        flow["own judged"][0],
      ),
      {},
    ),
    rows=count,
    work=lambda: (
      opened.training(2 * count, opened.length)
      + Passes(world.mesh).forward(
        [plan.policy], count, opened.length, sampling.max_new_tokens
      )
    ),
    donates=0,
    calls=steps,
  )
  programs = [
    *opened.answers(anchor, sampling, count, "anchor ", steps),
    *opened.answers(state.params, once(settings), count, "own ", steps),
    update_,
  ]
  step = tuple(program.name for program in programs)
  programs += opened.heldout(state.params, steps)
  return opened.phase(NAME, arrays, programs, step)


def once(settings: Settings) -> Any:
  """Returns how the policy's own answer to each prompt is sampled."""
  return dataclasses.replace(
    settings.generate, num_samples=1, batch_size=None, refill=None
  )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  sampled_settings.check_sampling(settings.generate)
  build.check_rows(world, settings.schedule.batch_size)
  opened = own_samples.Opened.of(settings, world, world.base(settings.model))
  phase = wire(settings, opened, planned_steps(settings.schedule))
  world.leave(world.workdir, phase.role, opened.actors.merged_from)
  return [phase]


def run(settings: Settings, world: World) -> dict:
  """Distils best of n; returns stage.json. A finished run is not repeated."""
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
  key, alone = jax.random.key(settings.seed), once(settings)
  writer = metrics.MetricsWriter(
    world.workdir, writes_tensorboard=False, is_enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    anchor_key, own_key = jax.random.split(jax.random.fold_in(key, step))
    arrays = sampled_steps.parked(settings, arrays, source.timer)
    params, prompts = arrays["train"].params, source.prompts()
    anchor = source.answer(
      arrays["anchor"],
      {},
      prompts,
      anchor_key,
      state=arrays.get("combination"),
    )
    own = source.answer(
      params, {}, prompts, own_key, alone, state=anchor.combination
    )
    anchor = source.again(anchor, own.combination)  # on one scale
    if settings.offload.prefetch:
      arrays = offload.fetch(settings.offload, arrays)
    row = sampled_steps.report(own, settings.monitors, source.panel, 1)
    facts = watch.guard(facts, row, step, settings.guards, NAME)
    state = offload.fetch(settings.offload, arrays)["train"]
    with source.timer("update"):
      state, moved, found = phase["update"](
        state,
        opened.frozen,
        arrays["anchor"],
        sampled_steps.penalised(anchor, settings.guards),
        sampled_steps.penalised(own, settings.guards),
      )
      row |= distributed.fetch(found)
    row |= sampled_steps.write_texts(
      base.tokenizer, source.timer, own, writer, step, NAME
    )
    after, combined = sampled_steps.moved(source, own)
    return {"train": state, "anchor": moved} | after, facts, row | combined

  return own_samples.train(
    opened,
    phase,
    source,
    one_step,
    total=total,
    same={},
    show=(("bond/forward", "forward"),),
    target=dataclasses.asdict(settings.target),
    distillation=dataclasses.asdict(settings.distillation),
  )


def _label(settings: Settings) -> str:
  return settings.target.kind.upper().replace("_", "-")


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
