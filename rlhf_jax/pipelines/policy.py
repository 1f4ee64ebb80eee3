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

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, metrics
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.data import batches
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import (
  build,
  inputs,
  loop,
  methods,
  rollouts,
  stages,
  verify,
)
from rlhf_jax.pipelines.config import (
  Model,
  section,
)
from rlhf_jax.pipelines.policy_step import (
  Programs,
  Settings,
  initial_arrays,
  learn,
  make_programs,
  make_transforms,
  read_settings,
  row_targets,
)
from rlhf_jax.pipelines.watch import shown, text_metrics, watch
from rlhf_jax.types import Array, PyTree, Rollout


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


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of policy training: (step, arrays, facts) -> the same, row.

  draw: see rollouts.drawer.
  text: iterator of text mixed into the updates (PPO-ptx), or None.
  key: every step's keys are folded out of it.
  monitors: names of further scores that are logged.
  """

  settings: Settings
  programs: Programs
  actors: actors_lib.Actors
  draw: Callable[..., tuple[rollouts.Judged, dict]]
  text: Any
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  key: Array
  timer: metrics.Timer
  monitors: tuple[str, ...]
  writer: metrics.MetricsWriter

  def __call__(
    self, step: int, arrays: PyTree, facts: dict
  ) -> tuple[PyTree, dict, dict]:
    """Returns the arrays and facts after a step, and its row of metrics."""
    keys = jax.random.split(jax.random.fold_in(self.key, step))
    is_pretraining = step < self.settings.value.pretrain_steps
    judged, drawn = self._sample(arrays, keys[0], is_pretraining)
    rollout, moments, row = self._prepare(arrays, judged)
    arrays, found = self._learn(arrays, rollout, keys[1], step)
    beta = arrays["beta"]
    if not is_pretraining:
      beta = shaping.update_kl_coefficient(
        beta,
        row["rollout/kl_k1_sum"],
        judged.rollout.tokens.shape[0],
        self.settings.shaping,
      )
    arrays = arrays | {"moments": moments, "beta": beta}
    row = jax.device_get(row | drawn | found)
    row = {name: float(value) for name, value in row.items()}
    row |= self._describe(step, judged)
    return arrays, watch(facts, row, step, self.settings.shaping), row

  def _sample(
    self, arrays: PyTree, key: Array, is_pretraining: bool
  ) -> tuple[rollouts.Judged, dict]:
    policy = arrays["train"].params
    value = arrays["critic"].params if is_pretraining else policy.get("value")
    frozen = self.actors.frozen.get("value", {})
    critic = trees.merge({} if value is None else value, frozen)
    return self.draw(policy["policy"], critic, key)

  def _prepare(
    self, arrays: PyTree, judged: rollouts.Judged
  ) -> tuple[Rollout, shaping.Moments, dict]:
    """Returns the rollout with rewards and advantages, moments, metrics."""
    rollout, gap = judged.rollout, {}
    with self.timer("score"):
      if self.programs.recompute is not None:
        rollout, gap = self.programs.recompute(
          arrays["train"].params, self.actors.frozen, rollout
        )
      rollout, moments, row = jax.block_until_ready(
        self.programs.prepare(
          rollout,
          arrays["moments"],
          arrays["beta"],
          judged.layout,
          judged.greedy,
        )
      )
    return rollout, moments, row | gap

  def _learn(
    self, arrays: PyTree, rollout: Rollout, key: Array, step: int
  ) -> tuple[PyTree, dict]:
    pretrain = self.settings.value.pretrain_steps
    extra = ()
    with self.timer("update"):
      if self.text is not None and step >= pretrain:
        extra = (mesh_lib.shard_batch(self.mesh, next(self.text)),)
      return jax.block_until_ready(
        learn(
          self.programs,
          arrays,
          self.actors.frozen,
          rollout,
          key,
          extra,
          is_pretraining=step < pretrain,
          is_last_pretraining=step + 1 == pretrain,
        )
      )

  def _describe(self, step: int, judged: rollouts.Judged) -> dict:
    """Returns metrics of texts, times and monitors; writes some samples."""
    row = {
      f"eval/{name}": float(jnp.mean(judged.scores[name]))
      for name in self.monitors
    }
    row |= verify.component_means(judged.scores)
    row |= self.timer.pop()
    samples = distributed.fetch(rollouts.samples_of(judged.rollout))
    row |= text_metrics(self.tokenizer, samples)
    sampled = float(np.sum(samples.response_mask))
    row["rollout/tok_per_s"] = sampled / row["sys/t_rollout"]
    texts = shown(self.tokenizer, samples, judged.scores)
    self.writer.write_samples(step + 1, texts, "policy")
    return row


def _make_step(
  config: Any,
  settings: Settings,
  base: build.Base,
  actors: actors_lib.Actors,
  programs: Programs,
  loader: Any,
  text: Any,
  mesh: jax.sharding.Mesh,
  writer: metrics.MetricsWriter,
) -> Step:
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
  return Step(
    settings=settings,
    programs=programs,
    actors=actors,
    draw=rollouts.drawer(
      source, settings.algorithm, settings.shaping.missing_eos == "mask"
    ),
    text=text,
    tokenizer=base.tokenizer,
    mesh=mesh,
    key=jax.random.key(config.seed),
    timer=timer,
    monitors=tuple(config.monitors),
    writer=writer,
  )


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Optimises a policy; returns stage.json. A finished run is not repeated."""
  settings = read_settings(config)
  methods.check_judges(config, settings.method)
  mesh = build.make_mesh(config)
  actors_lib.check_sampling(settings.generate, mesh.size)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = stages.finished(workdir, "policy", base)
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
  start = functools.partial(
    initial_arrays,
    transforms=transforms,
    beta=settings.shaping.kl_coefficient,
    has_pretraining=pretrain > 0,
  )
  writer = metrics.MetricsWriter(
    workdir, tensorboard=False, enabled=distributed.is_first()
  )
  arrays, facts = loop.run_steps(
    _make_step(
      config, settings, base, actors, programs, loader, text, mesh, writer
    ),
    phase="policy",
    workdir=workdir,
    schedule=settings.schedule,
    total_steps=total,
    arrays=build.sharded_state(mesh, start, actors.params),
    facts={"alarms": []},
    identity=stages.identity(base)
    | stages.origins(init_from=config.init_from, reward=config.reward),
    iterators={"prompts": loader} | ({"ptx": text} if text else {}),
    show=(
      ("rollout/score_mean", "score"),
      *((f"eval/{name}", name) for name in config.monitors),
      ("rollout/kl_k1_sum", "kl"),
      ("rollout/len_mean", "length"),
    ),
  )
  writer.close()
  stages.write_stage(
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
  return stages.read_stage(workdir)
