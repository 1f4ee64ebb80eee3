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
again in the update, where policy.py keeps their output.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import distributed, generate, metrics, ops, optimizer
from rlhf_jax.algorithms.preference import pairing, registry
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.models import roles, trees
from rlhf_jax.pipelines import (
  build,
  judge,
  method_sections,
  sampled,
  stages,
  supervised,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Schedule,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.types import Array, PreferenceBatch, PyTree, Rollout

PHASE = "online_preference"
SECTIONS = sampled.SECTIONS | {"algorithm", "accumulation", "pairing", "guards"}
# What compares answers that one policy wrote; not KTO (single answers), not
# SPIN (answers of people against those of the policy).
METHODS = {
  name: module
  for name, module in registry.ALGORITHMS.items()
  if name not in registry.UNPAIRED and name != "spin"
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of an online preference configuration, checked."""

  method: method_sections.Method
  update: preference.Config
  pairing: pairing.Config
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
  name = config.algorithm.get("name")
  if name in registry.ALGORITHMS and name not in METHODS:
    raise ConfigError(
      f"config.{prefix}algorithm.name={name!r}: does not compare two answers "
      f"of one policy. Set one of {', '.join(METHODS)}."
    )
  settings = Settings(
    method=method_sections.read(
      config.algorithm, METHODS, f"{prefix}algorithm"
    ),
    update=section(
      preference.Config, config.accumulation, f"{prefix}accumulation"
    ),
    pairing=section(pairing.Config, config.pairing, f"{prefix}pairing"),
    generate=section(generate.Config, config.generate, f"{prefix}generate"),
    schedule=section(Schedule, config.schedule, f"{prefix}schedule"),
    guards=section(sampled.Guards, config.guards, f"{prefix}guards"),
  )
  is_free = name in registry.REFERENCE_FREE
  if settings.pairing.reference_every and is_free:
    raise ConfigError(
      f"config.{prefix}pairing.reference_every="
      f"{settings.pairing.reference_every}: {name!r} has no reference. Set 0, "
      "or a method such as 'dpo'."
    )
  sampled.check_answers(config, settings.generate, 2, prefix)
  return settings


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
  found, _ = roles.logprobs(
    plan.policy,
    trees.merge(params, frozen),
    roles.Rows(tokens, valid, positions),
    mask,
    temperature=plan.temperature,
    targets=plan.row_targets,
    frozen_unembedding=not roles.trains_unembedding(plan.policy),
  )
  return found.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled functions of a step, after sampling and judging."""

  pairs: Callable[..., tuple[PreferenceBatch, dict[str, Array]]]
  refer: Callable[..., PreferenceBatch]  # writes the moved reference's
  update: Callable[..., tuple[Any, dict[str, Array]]]


def make_programs(
  settings: Settings, plan: judge.Plan, optimizer_: Any
) -> Programs:
  """Returns the compiled functions; nothing compiles yet.

  Args:
    settings: method and pairs.
    plan: whose policy.
    optimizer_: an optax.GradientTransformation.
  """
  apply = functools.partial(logprobs, plan=plan)

  def refer(params, frozen, batch: PreferenceBatch) -> PreferenceBatch:
    return batch.replace(reference_logprobs=apply(params, frozen, batch))

  update = functools.partial(
    preference.update,
    algorithm=settings.method.module,
    algorithm_config=settings.method.config,
    config=settings.update,
    apply=apply,
    optimizer=optimizer_,
  )
  return Programs(
    pairs=jax.jit(
      functools.partial(
        pairing.pairs_of,
        num_samples=settings.generate.num_samples,
        config=settings.pairing,
      )
    ),
    refer=jax.jit(refer),
    update=jax.jit(update, donate_argnums=0),
  )


def learn(
  settings: Settings,
  programs: Programs,
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
    programs: compiled.
    arrays: "train", and "reference" where it moves.
    frozen: what does not train of the policy.
    rollout: judged.
    key: of the step.
    step: steps before this one.
  """
  pair_key, update_key = jax.random.split(key)
  batch, row = programs.pairs(rollout, pair_key)
  row = {name: float(x) for name, x in distributed.fetch(row).items()}
  every = settings.pairing.reference_every
  if every:
    batch = programs.refer(arrays["reference"], frozen, batch)
  if row["pair/used_share"] > 0.0:
    state, found = programs.update(arrays["train"], frozen, batch, update_key)
    arrays = arrays | {"train": state}
    row |= {name: float(x) for name, x in distributed.fetch(found).items()}
  if every and (step + 1) % every == 0:
    moved = jax.tree.map(jnp.copy, arrays["train"].params)
    arrays = arrays | {"reference": moved}
  return arrays, row


def initial_arrays(params: PyTree, *, transform: Any, moves: bool) -> PyTree:
  """Returns what a run carries from step to step, before the first.

  Args:
    params: trainable tree of the policy.
    transform: an optax.GradientTransformation.
    moves: whether the reference follows the policy.
  """
  arrays = {"train": supervised.initial_state(params, transform)}
  if moves:
    arrays["reference"] = jax.tree.map(jnp.copy, params)
  return arrays


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Trains a policy on its own pairs; returns stage.json when finished."""
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
  programs = make_programs(settings, actors.plan, transform)
  frozen = actors.frozen["policy"]
  key = jax.random.key(config.seed)
  writer = metrics.MetricsWriter(
    workdir, tensorboard=False, enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    sample_key, learn_key = jax.random.split(jax.random.fold_in(key, step))
    judged = source.batch(arrays["train"].params, {}, sample_key)
    row = sampled.report(judged, config.monitors)
    facts = sampled.guard(facts, row, step, settings.guards, PHASE)
    with source.timer("update"):
      arrays, found = learn(
        settings,
        programs,
        arrays,
        frozen,
        sampled.penalised(judged, settings.guards),
        learn_key,
        step,
      )
    row |= found | sampled.texts(opened, judged, writer, step, PHASE)
    return arrays, facts, row

  return sampled.train(
    opened,
    config,
    workdir,
    one_step,
    functools.partial(
      initial_arrays,
      transform=transform,
      moves=settings.pairing.reference_every > 0,
    ),
    phase=PHASE,
    schedule=settings.schedule,
    total=total,
    same={"algorithm": settings.method.name},
    show=(("pref/acc", "accuracy"), ("pair/used_share", "used")),
    algorithm={"name": settings.method.name}
    | dataclasses.asdict(settings.method.config),
  )
