"""The compiled functions of one step of policy training, and their settings.

  sample   prompts -> samples, log-probabilities from the sampler
  judge    samples -> rollout with reference, values, scores
  prepare  rollout -> shaped rewards and the method's advantages, packed
  update   state, rollout -> state

policy.py runs them; planning/ compiles them for slices that are not there.
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
  epochs,
  further_rollouts,
  groups,
  importance,
  packing,
  shaping,
)
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.algorithms.policy_gradient.registry import further_of
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import (
  build,
  judge,
  methods,
  sft,
  supervised,
  verify,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Schedule,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, Samples

SECTIONS = frozenset(
  "pipeline seed model trainable init_from reward verifier monitors value "
  "prompts generate shaping algorithm importance epochs packing "
  "policy_optimizer value_optimizer schedule mesh ptx ptx_batch_size "
  "force".split()
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a policy configuration, checked."""

  schedule: Schedule
  generate: generate.Config
  shaping: shaping.Config
  method: methods.Method
  importance: importance.Config
  update: epochs.Config
  packing: packing.Config
  value: actors_lib.Value
  prompts: Data
  ptx: Data
  correct_above: float | None = None  # score; None without a verifier

  @property
  def algorithm(self) -> Any:
    """The Config of the method."""
    return self.method.config


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled functions of one step."""

  sample: Callable[[PyTree, Any, Array], Samples]
  judge: Callable[..., tuple[Rollout, dict[str, Array]]]
  prepare: Callable[..., tuple[Rollout, shaping.Moments, Metrics]]
  update: Callable[..., tuple[Any, Metrics]]
  value_update: Callable[..., tuple[Any, Metrics]] | None
  recompute: Callable[..., tuple[Rollout, Metrics]] | None
  greedy: Callable[[PyTree, Any, Array], Samples] | None


def read_settings(config: Any) -> Settings:
  """Returns the checked sections; raises ConfigError."""
  check_sections(config, SECTIONS, "")
  sampling = section(generate.Config, config.generate, "generate")
  settings = Settings(
    schedule=section(Schedule, config.schedule, "schedule"),
    generate=sampling,
    shaping=section(shaping.Config, config.shaping, "shaping"),
    method=methods.read(config.algorithm, sampling.num_samples),
    importance=section(importance.Config, config.importance, "importance"),
    update=section(epochs.Config, config.epochs, "epochs"),
    packing=section(packing.Config, config.packing, "packing"),
    value=section(actors_lib.Value, config.value, "value"),
    prompts=section(Data, config.prompts, "prompts"),
    ptx=section(Data, config.ptx, "ptx"),
    correct_above=verify.correct_above(config.verifier),
  )
  methods.check(
    settings.method,
    num_samples=sampling.num_samples,
    kl_coefficient=settings.shaping.kl_coefficient,
    steps_per_rollout=settings.update.epochs * settings.update.minibatches,
    pretrain_steps=settings.value.pretrain_steps,
  )
  methods.check_importance(settings.importance, config.model.dtype)
  is_ptx = settings.algorithm.ptx_coefficient > 0.0
  if is_ptx and not settings.ptx.source:
    raise ConfigError(
      f"config.algorithm.ptx_coefficient={settings.algorithm.ptx_coefficient}:"
      " needs a stream of text. Set ptx.source, or the coefficient to 0."
    )
  return settings


def row_targets(settings: Settings) -> int:
  """Returns how many response tokens a row of a rollout holds at most."""
  if settings.packing.row_tokens:
    return settings.packing.targets
  return settings.generate.max_new_tokens


def ptx_apply(params: PyTree, frozen: PyTree, batch, *, role: roles.Role):
  """Returns log-probabilities and entropies of pre-training text."""
  return sft.apply(params["policy"], frozen["policy"], batch, role=role)


def prepare(
  rollout: Rollout,
  moments: shaping.Moments,
  beta: Array,
  layout: packing.Packing | None,
  greedy: Rollout | None = None,
  *,
  shape: shaping.Config,
  method: methods.Method,
  correct_above: float | None = None,
) -> tuple[Rollout, shaping.Moments, Metrics]:
  """Returns the rollout with rewards, advantages and returns, packed.

  Args:
    rollout: judged.
    moments: of the scores of earlier rollouts.
    beta: KL coefficient.
    layout: how to pack, or None.
    greedy: the judged greedy answer to each prompt, where the method needs it.
    shape: settings of the reward.
    method: whose advantages.
    correct_above: a score above it is a right answer, for group/pass1.
  """
  rollout, moments, row = shaping.shape_rewards(rollout, moments, beta, shape)
  if greedy is not None:
    rollout = further_rollouts.attach(
      rollout, {"greedy": greedy}, moments, shape
    )
  rollout = method.module.advantages(rollout, method.config)
  if method.group_size is not None:
    row |= groups.metrics(rollout, method.group_size, correct_above)
  row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  if layout is not None:
    rollout = packing.pack_rollout(rollout, layout)
    row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  return rollout, moments, row


def make_merge(plan: judge.Plan) -> Callable[[PyTree, PyTree], PyTree]:
  """Returns the compiled (trainable, frozen) -> what the sampler reads."""
  return jax.jit(functools.partial(roles.sampling_params, plan.policy))


def make_sample(
  plan: judge.Plan, frozen: PyTree, base: build.Base, settings: generate.Config
) -> Callable[..., Samples]:
  """Returns (policy params, prompts, key) -> samples, `how` may differ.

  Args:
    plan: whose policy.
    frozen: what does not train, by role.
    base: whose tokenizer.
    settings: of sampling.
  """
  merged = make_merge(plan)

  def sample(
    policy_params: PyTree,
    prompts: Any,
    key: Array,
    how: generate.Config = settings,
  ) -> Samples:
    return generate.generate(
      merged(policy_params, frozen["policy"]),
      prompts,
      key,
      model=plan.policy.model,
      config=how,
      eos_ids=(base.tokenizer.eos_id,),
      pad_id=base.tokenizer.pad_id,
    )

  return sample


def recompute(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  apply: Callable[..., tuple[Array, Array, Array | None]],
  weights: importance.Config,
) -> tuple[Rollout, Metrics]:
  """Returns the rollout with behaviour log-probs of the training program.

  Below float32 the sampler, which decodes token by token, rounds otherwise
  than the trainer; the importance ratio and the KL would carry the difference
  (METHODS N3). rollout/sampler_gap: its mean size in nats a token. Up is bad.
  The samples stay the sampler's: `weights` makes up for that, where it is on.
  """
  logprobs, _, _ = apply(params, frozen, rollout)
  mask = rollout.response_mask
  gap = ops.masked_mean(jnp.abs(logprobs - rollout.behaviour_logprobs), mask)
  sampler_logprobs = rollout.behaviour_logprobs
  rollout = rollout.replace(
    behaviour_logprobs=jnp.where(mask > 0, logprobs, 0.0)
  )
  rollout, found = importance.weigh(rollout, sampler_logprobs, weights)
  return rollout, found | {"rollout/sampler_gap": gap}


def make_programs(
  settings: Settings,
  plan: judge.Plan,
  frozen: PyTree,
  base: build.Base,
  transforms: dict[str, Any],
  mesh: jax.sharding.Mesh,
) -> Programs:
  """Returns the compiled functions of a step; nothing compiles yet."""
  sample = make_sample(plan, frozen, base, settings.generate)
  is_ptx = settings.algorithm.ptx_coefficient > 0.0
  constrain = functools.partial(mesh_lib.constrain_rows, mesh)
  apply = functools.partial(
    judge.policy_and_value,
    plan=plan,
    frozen_unembedding=not roles.trains_unembedding(plan.policy)
    and settings.algorithm.entropy_coefficient == 0.0,
  )
  update = functools.partial(
    pg.update,
    algorithm=settings.method.module,
    algorithm_config=settings.algorithm,
    config=settings.update,
    apply=apply,
    optimizer=transforms["both"],
    constrain=constrain,
    ptx_apply=functools.partial(ptx_apply, role=plan.policy)
    if is_ptx
    else None,
  )
  value_update = None
  if settings.method.has_critic:
    value_update = functools.partial(
      pg.value_update,
      config=settings.update,
      apply=functools.partial(judge.value_only, plan=plan),
      optimizer=transforms["value"],
      constrain=constrain,
    )
    value_update = jax.jit(value_update, donate_argnums=0)
  greedy = None
  if settings.method.needs_greedy:
    changes = further_of(settings.method.module, settings.algorithm)
    how = dataclasses.replace(settings.generate, **changes["greedy"])
    greedy = functools.partial(sample, how=how)
  is_exact = plan.policy.model.dtype == "float32"
  return Programs(
    sample=sample,
    judge=judge.make_judge(plan),
    prepare=jax.jit(
      functools.partial(
        prepare,
        shape=settings.shaping,
        method=settings.method,
        correct_above=settings.correct_above,
      )
    ),
    update=jax.jit(update, donate_argnums=0),
    value_update=value_update,
    recompute=None
    if is_exact
    else jax.jit(
      functools.partial(recompute, apply=apply, weights=settings.importance)
    ),
    greedy=greedy,
  )


def make_transforms(
  config: Any, settings: Settings, total: int
) -> dict[str, Any]:
  """Returns optimizers: "both" of PPO and "value" of critic pre-training.

  Each schedule runs over the updates of its own part: `total` rollouts, of
  which the first value.pretrain_steps are for the critic alone.
  """
  pretrain = settings.value.pretrain_steps
  each = settings.update.epochs * settings.update.minibatches

  def value(rollouts: int) -> optimizer.Config:
    return optimizer_section(
      config.value_optimizer, "value_optimizer", rollouts * each
    )

  policy = optimizer_section(
    config.policy_optimizer, "policy_optimizer", (total - pretrain) * each
  )
  if not settings.method.has_critic:
    return {"both": optimizer.make_labelled({"policy": policy})}
  both = {"policy": policy, "value": value(total - pretrain)}
  return {
    "both": optimizer.make_labelled(both),
    "value": optimizer.make_optimizer(value(pretrain if pretrain else total)),
  }


def initial_arrays(
  params: PyTree,
  *,
  transforms: dict[str, Any],
  beta: float,
  has_pretraining: bool,
) -> PyTree:
  """Returns what a run carries from step to step, before the first."""
  arrays = {
    "train": supervised.initial_state(params, transforms["both"]),
    "moments": shaping.init_moments(),
    "beta": jnp.float32(beta),
  }
  if has_pretraining:
    arrays["critic"] = supervised.initial_state(
      params["value"], transforms["value"]
    )
  return arrays


def learn(
  programs: Programs,
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
    state, found = programs.update(state, frozen, rollout, key, *extra)
    return arrays | {"train": state}, found
  critic, found = programs.value_update(
    arrays["critic"], frozen["value"], rollout, key
  )
  arrays = arrays | {"critic": critic}
  if is_last_pretraining:
    trained = jax.tree.map(jnp.copy, critic.params)
    arrays["train"] = state.replace(params=state.params | {"value": trained})
    # A refused last step must not count against the policy for ever.
    arrays["critic"] = critic.replace(skipped=jnp.zeros_like(critic.skipped))
  return arrays, found
