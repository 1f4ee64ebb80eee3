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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import distributed, generate, metrics, optimizer
from rlhf_jax.algorithms import accumulate, best_of_n, bond
from rlhf_jax.models import roles
from rlhf_jax.pipelines import build, judge, sampled, stages, supervised
from rlhf_jax.pipelines.config import (
  ConfigError,
  Schedule,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, TrainState

PHASE = "bond"
SECTIONS = sampled.SECTIONS | {"distillation", "target", "guards"}
# Scores closer than this are equal: one answer, judged in two batches of other
# sizes, differs by rounding, and a rank must not be made of that.
TIE = 1e-4


@dataclasses.dataclass(frozen=True)
class Target:
  """Which distribution is distilled."""

  kind: str = "j_bond"  # or "bond", see the module
  n: int = 2  # best of n; 2 in J-BOND, at most generate.num_samples in BOND

  def __post_init__(self) -> None:
    if self.kind not in ("j_bond", "bond"):
      raise ValueError(f"kind={self.kind!r}: must be 'j_bond' or 'bond'.")
    if self.n < 2:
      raise ValueError(
        f"n={self.n}: the best of one answer is that answer. Set n >= 2."
      )
    if self.kind == "j_bond" and self.n != 2:
      raise ValueError(
        f"n={self.n}: J-BOND takes the best of 2 answers of a moving anchor. "
        "Set n=2, or kind='bond'."
      )


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a BOND configuration, checked."""

  distillation: bond.Config
  target: Target
  generate: generate.Config
  schedule: Schedule
  guards: sampled.Guards


def read_settings(config: Any, prefix: str = "") -> Settings:
  """Returns the checked sections.

  Args:
    config: of the pipeline.
    prefix: where it stands in a whole run ("policy."), for messages.

  Raises:
    ConfigError: a value that cannot be right.
  """
  check_sections(config, SECTIONS, prefix)
  settings = Settings(
    distillation=section(
      bond.Config, config.distillation, f"{prefix}distillation"
    ),
    target=section(Target, config.target, f"{prefix}target"),
    generate=section(generate.Config, config.generate, f"{prefix}generate"),
    schedule=section(Schedule, config.schedule, f"{prefix}schedule"),
    guards=section(sampled.Guards, config.guards, f"{prefix}guards"),
  )
  samples, target = settings.generate.num_samples, settings.target
  if target.kind == "j_bond" and samples != 2:
    raise ConfigError(
      f"config.{prefix}generate.num_samples={samples}: J-BOND compares with "
      "two answers of the anchor. Set 2, or target.kind='bond'."
    )
  if target.n > samples:
    raise ConfigError(
      f"config.{prefix}target.n={target.n}: the best of n is taken from "
      f"generate.num_samples={samples} answers of the anchor. Raise that, or "
      "lower n."
    )
  if settings.distillation.has_baseline and settings.schedule.batch_size < 2:
    raise ConfigError(
      f"config.{prefix}schedule.batch_size={settings.schedule.batch_size}: the "
      "baseline is the mean of the other answers. Set >= 2, or distillation."
      "has_baseline=False."
    )
  sampled.check_answers(config, settings.generate, 2, prefix)
  return settings


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
    bond/grad_norm: before clipping. Sudden growth is bad.
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
      "bond/grad_norm": applied.grad_norm,
      "sys/skipped_updates": 1.0 - applied.applied,
    },
  )


def initial_arrays(params: PyTree, *, transform: Any) -> PyTree:
  """Returns what a run carries from step to step, before the first."""
  return {
    "train": supervised.initial_state(params, transform),
    "anchor": jax.tree.map(jnp.copy, params),
  }


def make_update(
  settings: Settings, plan: judge.Plan, transform: Any
) -> Callable[..., tuple[TrainState, PyTree, Metrics]]:
  """Returns the compiled `update`.

  Args:
    settings: of the run.
    plan: whose policy.
    transform: an optax.GradientTransformation.
  """
  return jax.jit(
    functools.partial(
      update,
      apply=functools.partial(
        judge.policy_and_value,
        plan=plan,
        frozen_unembedding=not roles.trains_unembedding(plan.policy),
      ),
      config=settings.distillation,
      target=settings.target,
      optimizer_=transform,
    ),
    donate_argnums=(0, 2),
  )


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Distils best of n; returns stage.json. A finished run is not repeated."""
  settings = read_settings(config)
  mesh, base = sampled.load_base(config)
  info = stages.finished(workdir, PHASE, base)
  if info is not None:
    return info
  opened = sampled.open_source(
    config, mesh, base, settings.generate, settings.schedule.batch_size
  )
  source, actors = opened.source, opened.actors
  total = settings.schedule.total_steps(opened.prompts)
  transform = optimizer.make_optimizer(
    optimizer_section(config.optimizer, "optimizer", total)
  )
  step_program = make_update(settings, actors.plan, transform)
  once = dataclasses.replace(settings.generate, num_samples=1, batch_size=None)
  key = jax.random.key(config.seed)
  writer = metrics.MetricsWriter(
    workdir, tensorboard=False, enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    anchor_key, own_key = jax.random.split(jax.random.fold_in(key, step))
    state, prompts = arrays["train"], source.prompts()
    anchor = source.answer(arrays["anchor"], {}, prompts, anchor_key)
    own = source.answer(state.params, {}, prompts, own_key, once)
    row = sampled.report(own, config.monitors)
    facts = sampled.guard(facts, row, step, settings.guards, PHASE)
    with source.timer("update"):
      state, moved, found = step_program(
        state,
        actors.frozen["policy"],
        arrays["anchor"],
        sampled.penalised(anchor, settings.guards),
        sampled.penalised(own, settings.guards),
      )
      row |= distributed.fetch(found)
    row |= sampled.texts(opened, own, writer, step, PHASE)
    return {"train": state, "anchor": moved}, facts, row

  return sampled.train(
    opened,
    config,
    workdir,
    one_step,
    functools.partial(initial_arrays, transform=transform),
    phase=PHASE,
    schedule=settings.schedule,
    total=total,
    same={},
    show=(("bond/forward", "forward"),),
    target=dataclasses.asdict(settings.target),
    distillation=dataclasses.asdict(settings.distillation),
  )
