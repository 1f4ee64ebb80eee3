"""Policy optimisation against a reward model: PPO with a critic.

    samples = generate(policy)                 # jitted, log-probs from sampler
    rollout = judge(samples)                   # reference, reward, values
    rollout = advantages(shape(rollout))       # KL in the reward, GAE
    state   = update(state, rollout)           # epochs x minibatches

Roles `full` (four trees) or `lora` (one frozen base; the reference is the
base with the factors the policy started from). For the first
`value.pretrain_steps` rollouts only the critic learns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate, metrics, ops, optimizer
from rlhf_jax.algorithms.policy_gradient import epochs, packing, ppo, shaping
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.data import batches
from rlhf_jax.models import roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import build, inputs, judge, loop, sft
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.pipelines.watch import shown, text_metrics, watch
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, Samples

SECTIONS = frozenset(
  "pipeline seed model trainable init_from reward monitors value prompts "
  "generate shaping algorithm epochs packing policy_optimizer value_optimizer "
  "schedule mesh ptx ptx_batch_size force".split()
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a policy configuration, checked."""

  schedule: Schedule
  generate: generate.Config
  shaping: shaping.Config
  algorithm: ppo.Config
  update: epochs.Config
  packing: packing.Config
  value: actors_lib.Value
  prompts: Data
  ptx: Data


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled functions of one step."""

  sample: Callable[[PyTree, Any, Array], Samples]
  judge: Callable[..., tuple[Rollout, dict[str, Array]]]
  prepare: Callable[..., tuple[Rollout, shaping.Moments, Metrics]]
  update: Callable[..., tuple[Any, Metrics]]
  value_update: Callable[..., tuple[Any, Metrics]]
  recompute: Callable[..., tuple[Rollout, Metrics]] | None


def read_settings(config: Any) -> Settings:
  """Returns the checked sections; raises ConfigError."""
  check_sections(config, SECTIONS, "")
  settings = Settings(
    schedule=section(Schedule, config.schedule, "schedule"),
    generate=section(generate.Config, config.generate, "generate"),
    shaping=section(shaping.Config, config.shaping, "shaping"),
    algorithm=section(ppo.Config, config.algorithm, "algorithm"),
    update=section(epochs.Config, config.epochs, "epochs"),
    packing=section(packing.Config, config.packing, "packing"),
    value=section(actors_lib.Value, config.value, "value"),
    prompts=section(Data, config.prompts, "prompts"),
    ptx=section(Data, config.ptx, "ptx"),
  )
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


def prompt_loader(
  settings: Settings, base: build.Base, seed: int, mesh: jax.sharding.Mesh
) -> tuple[Any, int]:
  """Returns (iterator of PromptBatch, number of prompts)."""
  room = settings.prompts.max_length - settings.generate.max_new_tokens
  ids, dropped = inputs.prompts(settings.prompts, base.tokenizer, room)
  build.report_dropped("policy", settings.prompts.source, len(ids), dropped)
  width = max(len(row) for row in ids)

  def collate(index: list[int]):
    return batches.collate_prompts(
      [ids[i] for i in index], base.tokenizer.pad_id, width, index=index
    )

  loader = build.make_loader(
    mesh,
    np.arange(len(ids)),
    settings.schedule.batch_size,
    seed=seed,
    collate=collate,
  )
  return loader, len(ids)


def ptx_loader(
  config: Any, settings: Settings, base: build.Base, mesh: jax.sharding.Mesh
) -> Any:
  """Returns the iterator of text mixed into PPO (PPO-ptx), or None."""
  if settings.algorithm.ptx_coefficient == 0.0:
    return None
  rows, dropped = inputs.demonstrations(settings.ptx, base.tokenizer)
  build.report_dropped("ptx", settings.ptx.source, len(rows), dropped)
  build.check_context(base, max(len(r["tokens"]) for r in rows), "ptx")
  return build.make_loader(
    mesh,
    rows,
    config.ptx_batch_size,
    seed=config.seed + 1,
    collate=functools.partial(
      batches.collate_tokens,
      length=batches.bucket_length(max(len(r["tokens"]) for r in rows)),
      pad_id=base.tokenizer.pad_id,
    ),
  )


def ptx_apply(params: PyTree, frozen: PyTree, batch, *, role: roles.Role):
  """Returns log-probabilities and entropies of pre-training text."""
  return sft.apply(params["policy"], frozen["policy"], batch, role=role)


def prepare(
  rollout: Rollout,
  moments: shaping.Moments,
  beta: Array,
  layout: packing.Packing | None,
  *,
  shape: shaping.Config,
  algorithm: ppo.Config,
) -> tuple[Rollout, shaping.Moments, Metrics]:
  """Returns the rollout with rewards, advantages and returns, packed."""
  rollout, moments, row = shaping.shape_rewards(rollout, moments, beta, shape)
  rollout = ppo.advantages(rollout, algorithm)
  row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  if layout is not None:
    rollout = packing.pack_rollout(rollout, layout)
    row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  return rollout, moments, row


def make_merge(plan: judge.Plan) -> Callable[[PyTree, PyTree], PyTree]:
  """Returns the compiled (trainable, frozen) -> what the sampler reads."""
  return jax.jit(functools.partial(roles.sampling_params, plan.policy))


def recompute(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  apply: Callable[..., tuple[Array, Array, Array | None]],
) -> tuple[Rollout, Metrics]:
  """Returns the rollout with behaviour log-probs of the training program.

  Below float32 the sampler, which decodes token by token, rounds otherwise
  than the trainer; the importance ratio and the KL would carry the difference
  (METHODS N3). rollout/sampler_gap: its mean size in nats a token.
  """
  logprobs, _, _ = apply(params, frozen, rollout)
  mask = rollout.response_mask
  gap = ops.masked_mean(jnp.abs(logprobs - rollout.behaviour_logprobs), mask)
  logprobs = jnp.where(mask > 0, logprobs, 0.0)
  return rollout.replace(behaviour_logprobs=logprobs), {
    "rollout/sampler_gap": gap
  }


def make_programs(
  settings: Settings,
  plan: judge.Plan,
  frozen: PyTree,
  base: build.Base,
  transforms: dict[str, Any],
  mesh: jax.sharding.Mesh,
) -> Programs:
  """Returns the compiled functions of a step; nothing compiles yet."""
  merged = make_merge(plan)

  def sample(policy_params: PyTree, prompts: Any, key: Array) -> Samples:
    return generate.generate(
      merged(policy_params, frozen["policy"]),
      prompts,
      key,
      model=plan.policy.model,
      config=settings.generate,
      eos_ids=(base.tokenizer.eos_id,),
      pad_id=base.tokenizer.pad_id,
    )

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
    algorithm=ppo,
    algorithm_config=settings.algorithm,
    config=settings.update,
    apply=apply,
    optimizer=transforms["both"],
    constrain=constrain,
    ptx_apply=functools.partial(ptx_apply, role=plan.policy)
    if is_ptx
    else None,
  )
  value_update = functools.partial(
    pg.value_update,
    config=settings.update,
    apply=functools.partial(judge.value_only, plan=plan),
    optimizer=transforms["value"],
    constrain=constrain,
  )
  is_exact = plan.policy.model.dtype == "float32"
  return Programs(
    sample=sample,
    judge=judge.make_judge(plan),
    prepare=jax.jit(
      functools.partial(
        prepare, shape=settings.shaping, algorithm=settings.algorithm
      )
    ),
    update=jax.jit(update, donate_argnums=0),
    value_update=jax.jit(value_update, donate_argnums=0),
    recompute=None
    if is_exact
    else jax.jit(functools.partial(recompute, apply=apply)),
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
    "train": sft.initial_state(params, transforms["both"]),
    "moments": shaping.init_moments(),
    "beta": jnp.float32(beta),
  }
  if has_pretraining:
    arrays["critic"] = sft.initial_state(params["value"], transforms["value"])
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


def run(config: Any, workdir: Path) -> dict:
  """Optimises a policy; returns stage.json. A finished run is not repeated."""
  settings = read_settings(config)
  mesh = build.make_mesh(config)
  actors_lib.check_sampling(settings.generate, mesh.size)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = build.finished(workdir, "policy", base)
  if info is not None:
    return info
  actors = actors_lib.load(
    config,
    base,
    mesh,
    settings.value,
    settings.generate.temperature,
    row_targets(settings),
  )
  loader, count = prompt_loader(settings, base, config.seed, mesh)
  text = ptx_loader(config, settings, base, mesh)
  pretrain = settings.value.pretrain_steps
  total = pretrain + settings.schedule.total_steps(count)
  transforms = make_transforms(config, settings, total)
  programs = make_programs(
    settings, actors.plan, actors.frozen, base, transforms, mesh
  )
  key = jax.random.key(config.seed)
  timer = metrics.Timer()
  writer = metrics.MetricsWriter(
    workdir, tensorboard=False, enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    step_key = jax.random.fold_in(key, step)
    sample_key, update_key = jax.random.split(step_key)
    is_pretraining = step < pretrain
    state = arrays["train"]
    value = arrays["critic"].params if is_pretraining else state.params["value"]
    with timer("rollout"):
      prompts = mesh_lib.shard_batch(mesh, next(loader))
      samples = jax.block_until_ready(
        programs.sample(state.params["policy"], prompts, sample_key)
      )
    with timer("score"):
      layout = None
      if settings.packing.row_tokens:
        layout = packing.plan(distributed.fetch(samples), settings.packing)
      rollout, scores = programs.judge(
        actors.weights,
        trees.merge(value, actors.frozen["value"]),
        samples,
        layout,
      )
      gap = {}
      if programs.recompute is not None:
        rollout, gap = programs.recompute(state.params, actors.frozen, rollout)
      rollout, moments, row = jax.block_until_ready(
        programs.prepare(rollout, arrays["moments"], arrays["beta"], layout)
      )
      row |= gap
    with timer("update"):
      is_mixed = text is not None and not is_pretraining
      extra = (mesh_lib.shard_batch(mesh, next(text)),) if is_mixed else ()
      arrays, found = learn(
        programs,
        arrays,
        actors.frozen,
        rollout,
        update_key,
        extra,
        is_pretraining=is_pretraining,
        is_last_pretraining=step + 1 == pretrain,
      )
      jax.block_until_ready(found)
    beta = arrays["beta"]
    if not is_pretraining:
      beta = shaping.update_kl_coefficient(
        beta,
        row["rollout/kl_k1_sum"],
        len(scores["reward"]),
        settings.shaping,
      )
    arrays = arrays | {"moments": moments, "beta": beta}
    row = {k: float(v) for k, v in jax.device_get(row | found).items()}
    for name in config.monitors:
      row[f"eval/{name}"] = float(jnp.mean(scores[name]))
    row |= timer.pop()
    samples = distributed.fetch(samples)
    row |= text_metrics(base.tokenizer, samples)
    sampled = float(np.sum(samples.response_mask))
    row["rollout/tok_per_s"] = sampled / row["sys/t_rollout"]
    facts = watch(facts, row, step, settings.shaping)
    writer.write_samples(
      step + 1, shown(base.tokenizer, samples, scores), "policy"
    )
    return arrays, facts, row

  start = functools.partial(
    initial_arrays,
    transforms=transforms,
    beta=settings.shaping.kl_coefficient,
    has_pretraining=pretrain > 0,
  )
  arrays, facts = loop.run_steps(
    one_step,
    phase="policy",
    workdir=workdir,
    schedule=settings.schedule,
    total_steps=total,
    arrays=build.sharded_state(mesh, start, actors.params),
    facts={"alarms": []},
    identity=build.identity(base)
    | build.origins(init_from=config.init_from, reward=config.reward),
    iterators={"prompts": loader} | ({"ptx": text} if text else {}),
    show=(
      ("rollout/score_mean", "score"),
      *((f"eval/{name}", name) for name in config.monitors),
      ("rollout/kl_k1_sum", "kl"),
      ("rollout/len_mean", "length"),
    ),
  )
  writer.close()
  build.write_stage(
    workdir,
    "policy",
    base,
    actors.plan.policy,
    steps=int(np.asarray(arrays["train"].step)),
    init_from=config.init_from,
    merged_from=actors.merged_from,
    kl_coefficient=float(arrays["beta"]),
    alarms=facts["alarms"],
    halted=facts.get("halt"),
  )
  return build.read_stage(workdir)
