"""Policy optimisation against a reward model, by any policy-gradient method.

    samples = generate(policy)                 # jitted, log-probs from sampler
    rollout = judge(samples)                   # reference, reward, values
    rollout = advantages(shape(rollout))       # KL in the reward; the method's
    state   = update(state, rollout)           # epochs x minibatches

Roles `full` (four trees) or `lora` (one frozen base; the reference is the
base with the factors the policy started from). For the first
`value.pretrain_steps` rollouts only the critic learns. config.algorithm.name
chooses the method; those without a critic have no value tree at all. Sampling
and judging, DAPO's resampling too, are in rollouts.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, metrics
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.data import batches
from rlhf_jax.models import trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import (
  build,
  inputs,
  loop,
  methods,
  rollouts,
  verify,
)
from rlhf_jax.pipelines.config import (
  Model,
  section,
)
from rlhf_jax.pipelines.policy_step import (
  Settings,
  initial_arrays,
  learn,
  make_programs,
  make_transforms,
  read_settings,
  row_targets,
)
from rlhf_jax.pipelines.watch import shown, text_metrics, watch
from rlhf_jax.types import PyTree


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


def run(config: Any, workdir: Path) -> dict:
  """Optimises a policy; returns stage.json. A finished run is not repeated."""
  settings = read_settings(config)
  methods.check_judges(config, settings.method)
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
    has_critic=settings.method.has_critic,
  )
  loader, count = rollouts.prompt_loader(
    settings.prompts,
    settings.generate,
    settings.schedule.batch_size,
    base,
    config.seed,
    mesh,
  )
  text = ptx_loader(config, settings, base, mesh)
  pretrain = settings.value.pretrain_steps
  total = pretrain + settings.schedule.total_steps(count)
  transforms = make_transforms(config, settings, total)
  programs = make_programs(
    settings, actors.plan, actors.frozen, base, transforms, mesh
  )
  key = jax.random.key(config.seed)
  timer = metrics.Timer()
  source = rollouts.Source(
    loader=loader,
    programs=programs,
    actors=actors,
    verifier=verify.load(config, settings.prompts, base.tokenizer),
    name=config.verifier.name,
    mesh=mesh,
    packing=settings.packing,
    timer=timer,
  )
  draw = rollouts.drawer(
    source, settings.algorithm, settings.shaping.missing_eos == "mask"
  )
  writer = metrics.MetricsWriter(
    workdir, tensorboard=False, enabled=distributed.is_first()
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    step_key = jax.random.fold_in(key, step)
    sample_key, update_key = jax.random.split(step_key)
    is_pretraining = step < pretrain
    state = arrays["train"]
    value = (arrays["critic"] if is_pretraining else state).params
    value = value if is_pretraining else value.get("value", {})
    critic = trees.merge(value, actors.frozen.get("value", {}))
    judged, drawn = draw(state.params["policy"], critic, sample_key)
    rollout, scores = judged.rollout, judged.scores
    samples = rollouts.samples_of(rollout)
    with timer("score"):
      gap = {}
      if programs.recompute is not None:
        rollout, gap = programs.recompute(state.params, actors.frozen, rollout)
      rollout, moments, row = jax.block_until_ready(
        programs.prepare(
          rollout,
          arrays["moments"],
          arrays["beta"],
          judged.layout,
          judged.greedy,
        )
      )
      row |= gap | drawn
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
        samples.tokens.shape[0],
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
