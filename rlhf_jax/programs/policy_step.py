"""The programs of one step of policy training.

  sample   prompts -> samples, log-probabilities from the sampler
  judge    samples -> rollout with reference, values, scores
  prepare  rollout -> shaped rewards and the method's advantages, packed
  update   state, rollout -> state

`wire` makes them for a run, with loaded actors, and for a plan, with abstract
ones. policy_training.py calls them, step after step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import generate, ops, optimizer
from rlhf_jax.algorithms.policy_gradient import (
  further_rollouts,
  groups,
  importance,
  packing,
  registry,
  returns,
  shaping,
  value_pretraining,
)
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.models import policy_value, roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import build, language_model, supervised
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.programs.program import Phase
from rlhf_jax.rewards import judge, texts
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, Metrics, PyTree, Rollout


def ptx_apply(params: PyTree, frozen: PyTree, batch: Any, *, role: roles.Role):
  """Returns log-probabilities and entropies of pre-training text."""
  return language_model.logprobs(
    params["policy"], frozen["policy"], batch, role=role
  )


def prepare(
  rollout: Rollout,
  moments: shaping.Moments,
  beta: Array,
  layout: packing.Packing | None,
  further: dict[str, Rollout],
  *,
  settings: Settings,
) -> tuple[Rollout, shaping.Moments, Metrics]:
  """Returns the rollout with rewards, advantages and returns, packed.

  rollout/fill: share of the trained positions that hold a token. Down is bad:
    updates compute padding.

  Args:
    rollout: judged.
    moments: of the scores of earlier rollouts.
    beta: KL coefficient.
    layout: how to pack, or None.
    further: name -> the judged further answers that the method wants.
    settings: of the reward and the method.
  """
  answered = returns.exists(rollout)  # those too that shaping takes out
  rollout, moments, row = shaping.shape_rewards(
    rollout, moments, beta, settings.shaping
  )
  rollout = further_rollouts.attach(rollout, further, moments, settings.shaping)
  rollout = registry.compute_advantages(
    settings.advantages, rollout, settings.method
  ).replace(components=None)
  if settings.group_size is not None:
    right = texts.correct_above(settings.text_judge)
    row |= groups.metrics(rollout, settings.group_size, right, answered)
  row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  if layout is not None:
    rollout = packing.pack_rollout(rollout, layout)
    row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  return rollout, moments, row


def recompute(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  layout: packing.Packing | None = None,
  *,
  apply: Callable[..., tuple[Array, Array, Array | None]],
  weights: importance.Config,
  has_values: bool = False,
) -> tuple[Rollout, Metrics]:
  """Returns the rollout with behaviour log-probs of the training program.

  Below float32 the sampler, which decodes token by token, rounds otherwise
  than the trainer; the importance ratio and the KL would carry the difference
  (METHODS N3). rollout/sampler_gap: its mean size in nats a token. Up is bad.
  The samples stay the sampler's: `weights` makes up for that, where it is on.
  With has_values the same pass gives the values: the critic shares its trunk.
  It reads packed rows where there is a layout; the rollout stays as it is.
  """
  rows, spread = rollout, lambda x: x
  if layout is not None:
    rows = packing.pack_rollout(rollout, layout)
    spread = functools.partial(packing.unpack, packing=layout)
  logprobs, _, values = apply(params, frozen, rows)
  logprobs = spread(logprobs)
  mask = rollout.response_mask
  gap = ops.masked_mean(jnp.abs(logprobs - rollout.behaviour_logprobs), mask)
  sampler_logprobs = rollout.behaviour_logprobs
  rollout = rollout.replace(
    behaviour_logprobs=jnp.where(mask > 0, logprobs, 0.0)
  )
  if has_values:
    rollout = rollout.replace(values=jnp.where(mask > 0, spread(values), 0.0))
  rollout, found = importance.weigh(rollout, sampler_logprobs, weights)
  return rollout, found | {"rollout/sampler_gap": gap}


def judge_plan(plan: judge.Plan, settings: Settings) -> judge.Plan:
  """Returns what the judge computes: no values where `recompute` gives them.

  A critic on the policy's trunk then costs no pass of its own. Where tokens are
  rewarded the reward model is read on all beginnings of an answer.

  Args:
    plan: of all roles.
    settings: of the pipeline.

  Raises:
    FieldError: these rewards need one that reads the policy's tokens.
  """
  mode = settings.shaping.token_rewards
  if mode != "none":
    judging = dict(plan.scorers).get("reward")
    if judging is None:
      raise FieldError(
        f"shaping.token_rewards={mode!r}: no single reward model reads the "
        "policy's tokens: there are several, or it reads text, as its "
        "tokenizer or template is another one. Set 'none', or take one that "
        "does."
      )
    plan = dataclasses.replace(plan, reads_prefixes=True)
  if plan.is_value_on_policy and plan.policy.model.dtype != "float32":
    return dataclasses.replace(plan, value=None)
  return plan


def make_apply(settings: Settings, plan: judge.Plan) -> Callable[..., Any]:
  """Returns (params, frozen, rollout) -> log-probs, entropies, values."""
  how = {
    "policy": plan.policy,
    "value": plan.value,
    "temperature": plan.temperature,
    "targets": plan.row_targets,
    "is_unembedding_frozen": not roles.trains_unembedding(plan.policy)
    and settings.method.entropy_coefficient == 0.0,
  }
  if not plan.is_value_on_policy:
    return functools.partial(policy_value.policy_and_value, **how)
  stops = settings.value.stops_gradient
  return functools.partial(
    policy_value.shared_trunk, **how, stops_gradient=stops
  )


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions of a step, compiled when they are first called."""

  judge: Callable[..., tuple[Rollout, dict[str, Array]]]
  prepare: Callable[..., tuple[Rollout, shaping.Moments, Metrics]]
  update: Callable[..., tuple[Any, Metrics]]
  value_update: Callable[..., tuple[Any, Metrics]] | None
  recompute: Callable[..., tuple[Rollout, Metrics]] | None
  reweigh: Callable[..., tuple[Rollout, Metrics]] | None  # of stored rollouts


def make_functions(
  settings: Settings,
  plan: judge.Plan,
  transforms: dict[str, Any],
  mesh: jax.sharding.Mesh,
  *,
  donates: bool = True,
) -> Functions:
  """Returns the functions of a step; nothing compiles yet.

  Args:
    settings: of the pipeline.
    plan: of the judge.
    transforms: see `make_transforms`; without "value" there is no update of
      the critic alone.
    mesh: where it runs.
    donates: whether a new state takes the memory of the old one.
  """
  donated = 0 if donates else ()
  options = build.compiler_options(plan.policy, mesh)
  constrain = functools.partial(mesh_lib.constrain_rows, mesh)
  apply = make_apply(settings, plan)
  update = functools.partial(
    pg.update,
    algorithm=settings.algorithm.module,
    algorithm_config=settings.method,
    config=settings.epochs,
    objective=settings.objective,
    apply=apply,
    optimizer=transforms["both"],
    constrain=constrain,
    ptx_apply=functools.partial(ptx_apply, role=plan.policy)
    if settings.has_ptx
    else None,
  )
  value_update = None
  if settings.has_critic and "value" in transforms:
    value_update = functools.partial(
      value_pretraining.value_update,
      config=settings.epochs,
      apply=functools.partial(
        policy_value.value_only,
        role=plan.value,
        stream=plan.value_stream,
        targets=plan.row_targets,
      ),
      optimizer=transforms["value"],
      constrain=constrain,
    )
    value_update = jax.jit(
      value_update, donate_argnums=donated, compiler_options=options
    )
  again = functools.partial(
    recompute,
    apply=apply,
    weights=settings.importance,
    has_values=plan.is_value_on_policy,
  )
  reweigh = functools.partial(again, weights=settings.buffer.weights)
  is_exact = plan.policy.model.dtype == "float32"
  return Functions(
    judge=judge.make_judge(judge_plan(plan, settings)),
    prepare=jax.jit(functools.partial(prepare, settings=settings)),
    update=jax.jit(update, donate_argnums=donated, compiler_options=options),
    value_update=value_update,
    recompute=None if is_exact else jax.jit(again),
    reweigh=jax.jit(reweigh) if settings.buffer.is_on else None,
  )


def make_transforms(settings: Settings, total: int) -> dict[str, Any]:
  """Returns optimizers: "both" of PPO and "value" of critic pre-training.

  Each schedule runs over the updates of its own part: `total` rollouts, of
  which the first value.pretrain_steps are for the critic alone.
  """
  pretrain, each = settings.value.pretrain_steps, settings.updates_a_step
  fit = functools.partial(
    build.optimizer_of_run, settings.value_optimizer, "value_optimizer"
  )
  policy = build.optimizer_of_run(
    settings.policy_optimizer, "policy_optimizer", (total - pretrain) * each
  )
  if not settings.has_critic:
    return {"both": optimizer.make_labelled({"policy": policy})}
  both = {"policy": policy, "value": fit((total - pretrain) * each)}
  alone = fit((pretrain if pretrain else total) * each)
  return {
    "both": optimizer.make_labelled(both),
    "value": optimizer.make_optimizer(alone),
  }


def further(settings: Settings) -> dict[str, generate.Config]:
  """Returns how further answers to each prompt are sampled, by their name."""
  wanted = registry.further_of(settings.algorithm.module, settings.method)
  return {
    name: dataclasses.replace(settings.generate, **changes)
    for name, changes in wanted.items()
  }


def initial_arrays(
  params: PyTree,
  *,
  transforms: dict[str, Any],
  beta: float,
  has_pretraining: bool,
  combination: Callable[[], PyTree] | None = None,
) -> PyTree:
  """Returns what a run carries from step to step, before the first.

  Args:
    params: trainable trees.
    transforms: optimizers.
    beta: of the KL.
    has_pretraining: whether a critic learns alone at first.
    combination: makes the state of what combines several judges; None with one.
  """
  arrays = {
    "train": supervised.initial_state(params, transforms["both"]),
    "moments": shaping.init_moments(),
    "beta": jnp.float32(beta),
  }
  if has_pretraining:
    arrays["critic"] = supervised.initial_state(
      params["value"], transforms["value"]
    )
  if combination is not None:
    arrays["combination"] = combination()
  return arrays


def learn(
  phase: Phase,
  arrays: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  key: Array,
  extra: tuple,
  *,
  is_pretraining: bool,
  is_last_pretraining: bool,
) -> tuple[PyTree, Metrics]:
  """Returns the arrays after the updates of one rollout, and metrics."""
  state = arrays["train"]
  if not is_pretraining:
    state, found = phase["update"](state, frozen, rollout, key, *extra)
    return arrays | {"train": state}, found
  critic, found = phase["value update"](
    arrays["critic"], frozen["value"], rollout, key
  )
  arrays = arrays | {"critic": critic}
  if is_last_pretraining:
    trained = jax.tree.map(jnp.copy, critic.params)
    arrays["train"] = state.replace(params=state.params | {"value": trained})
    # A refused last step must not count against the policy for ever.
    arrays["critic"] = critic.replace(skipped=jnp.zeros_like(critic.skipped))
  return arrays, found
