"""Supervised fine-tuning: demonstrations in, a policy that imitates them out.

One file of data, one loop. The trained policy, or its LoRA factors, is the
start of reward models and the reference of PPO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, metrics, optimizer
from rlhf_jax.algorithms import sft
from rlhf_jax.data import batches
from rlhf_jax.models import roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import build, inputs, stages, supervised
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  Trainable,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.types import Array, PyTree, TokenBatch

SECTIONS = frozenset(
  "pipeline seed model trainable data validation loss optimizer schedule "
  "mesh samples sample_prompts generate".split()
)


def apply(
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  *,
  role: roles.Role,
  targets: int | None = None,
) -> tuple[Array, Array]:
  """Returns log-probabilities and entropies [B, L] of a batch's targets.

  `targets` bounds the targets of a row; None for no bound.
  """
  return roles.logprobs(
    role,
    trees.merge(params, frozen),
    roles.Rows.of(batch),
    batch.loss_mask,
    targets=targets,
    frozen_unembedding=not roles.trains_unembedding(role),
  )


def start_variables(base: build.Base, role: roles.Role, key: Array) -> PyTree:
  """Returns the variables of an untrained policy on a base model."""
  variables = {"params": base.params}
  if role.trainable == "lora":
    variables["lora"] = roles.fresh_lora(role, key)
  return variables


def make_update(
  role: roles.Role, loss: sft.Config, optimizer_: Any, targets: int | None
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, TokenBatch, key) -> state, row.

  Args:
    role: what trains.
    loss: settings of the loss.
    optimizer_: an optax.GradientTransformation.
    targets: most targets of a row, or None.
  """
  update = functools.partial(
    sft.update,
    config=loss,
    apply=functools.partial(apply, role=role, targets=targets),
    optimizer=optimizer_,
  )
  return jax.jit(update, donate_argnums=0)


def fit(
  rows: list[dict[str, np.ndarray]],
  params: PyTree,
  frozen: PyTree,
  *,
  role: roles.Role,
  loss: sft.Config,
  schedule: Schedule,
  optimizer_values: Any,
  seed: int,
  pad_id: int,
  mesh: jax.sharding.Mesh,
  workdir: Path,
  identity: dict,
  phase: str = "sft",
  targets: int | None = None,
) -> tuple[PyTree, int]:
  """Returns the trained tree and the number of steps; goes on where it was.

  Args:
    rows: {"tokens", "loss_mask"} each, packed or not.
    params: trainable tree.
    frozen: the rest.
    role: what trains.
    loss: settings of the loss.
    schedule: how long.
    optimizer_values: the section `optimizer`.
    seed: of the order of rows.
    pad_id: fills tokens.
    mesh: where it runs.
    workdir: holds checkpoints and metrics.
    identity: fields that a checkpoint must agree with.
    phase: name in logs.
    targets: most targets of a row; None for what the rows have.
  """
  width = batches.bucket_length(max(len(row["tokens"]) for row in rows))
  if targets is None:
    targets = int(max(np.sum(row["loss_mask"]) for row in rows))
  total = schedule.total_steps(len(rows))
  loader = build.make_loader(
    mesh,
    rows,
    schedule.batch_size,
    seed=seed,
    collate=functools.partial(
      batches.collate_tokens, length=width, pad_id=pad_id
    ),
  )
  tx = optimizer.make_optimizer(
    optimizer_section(optimizer_values, "optimizer", total)
  )
  params = supervised.fit(
    make_update(role, loss, tx, targets),
    loader,
    params,
    frozen,
    optimizer_=tx,
    mesh=mesh,
    seed=seed,
    phase=phase,
    workdir=workdir,
    schedule=schedule,
    total_steps=total,
    identity=identity,
    show=(("sft/loss", "loss"),),
  )
  return params, total


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Trains, validates, samples; returns the numbers of stage.json.

  A finished run is not repeated: its stage.json is returned.
  """
  check_sections(config, SECTIONS, "")
  schedule = section(Schedule, config.schedule, "schedule")
  data = section(Data, config.data, "data")
  loss = section(sft.Config, config.loss, "loss")
  trainable = section(Trainable, config.trainable, "trainable")
  if trainable.mode == "head":
    raise ConfigError("config.trainable.mode='head': a policy has no head.")
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = stages.finished(workdir, "sft", base)
  if info is not None:
    return info
  role = build.make_role(base, trainable)
  key = jax.random.key(config.seed)

  rows, dropped = inputs.demonstrations(data, base.tokenizer)
  build.report_dropped("sft", data.source, len(rows), dropped)
  examples = len(rows)
  build.check_context(base, max(len(r["tokens"]) for r in rows), "data")
  if data.pack:
    rows, fill = batches.pack_examples(rows, data.max_length)
    print(f"sft: packed into {len(rows)} rows, {fill:.0%} filled")
  variables = start_variables(base, role, jax.random.fold_in(key, 1))
  trainable_tree, frozen = roles.split(role, variables)
  params, total = fit(
    rows,
    trainable_tree,
    frozen,
    role=role,
    loss=loss,
    schedule=schedule,
    optimizer_values=config.optimizer,
    seed=config.seed,
    pad_id=base.tokenizer.pad_id,
    mesh=mesh,
    workdir=workdir,
    identity=stages.identity(base),
  )
  facts = {"steps": total, "examples": examples}
  if config.validation.source:
    facts["validation_loss"] = _validate(
      config, base, role, params, frozen, mesh, schedule.batch_size
    )
  if config.samples:
    facts["samples"] = _sample(
      config, workdir, base, role, params, frozen, mesh
    )
  stages.write_stage(workdir, "sft", base, role, **facts)
  return stages.read_stage(workdir)


def _validate(config, base, role, params, frozen, mesh, batch_size) -> float:
  """Returns the mean cross-entropy in nats a target on held-out rows."""
  data = section(Data, config.validation, "validation")
  rows, _ = inputs.demonstrations(data, base.tokenizer)
  build.check_context(base, max(len(r["tokens"]) for r in rows), "validation")
  width = batches.bucket_length(max(len(r["tokens"]) for r in rows))
  forward = jax.jit(functools.partial(apply, role=role))
  total, count = 0.0, 0.0
  for start in range(0, len(rows), batch_size):
    part = rows[start : start + batch_size]
    filled = part + part[:1] * (batch_size - len(part))
    batch = batches.collate_tokens(
      filled, length=width, pad_id=base.tokenizer.pad_id
    )
    batch.loss_mask[len(part) :] = 0.0
    logprobs, _ = forward(params, frozen, mesh_lib.spread_batch(mesh, batch))
    found = distributed.fetch(logprobs)
    total -= float(np.sum(found, dtype=np.float64))
    count += float(np.sum(batch.loss_mask))
  print(f"sft: validation loss {total / count:.4f} nats a token")
  return total / count


def _sample(config, workdir, base, role, params, frozen, mesh) -> str:
  """Samples the trained policy, for reading and to normalise rewards on."""
  settings = section(generate.Config, config.generate, "generate")
  data = section(Data, config.sample_prompts, "sample_prompts")
  ids, _ = inputs.prompts(
    data, base.tokenizer, data.max_length - settings.max_new_tokens
  )
  count = config.samples
  chosen = [ids[i % len(ids)] for i in range(count)]
  width = max(len(row) for row in ids)  # as in PPO: one compilation for both
  prompts = batches.collate_prompts(chosen, base.tokenizer.pad_id, width)
  samples = generate.generate(
    roles.sampling_params(role, params, frozen),
    mesh_lib.spread_batch(mesh, prompts),
    jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1),
    model=role.model,
    config=settings,
    eos_ids=(base.tokenizer.eos_id,),
    pad_id=base.tokenizer.pad_id,
  )
  samples = distributed.fetch(samples)
  if distributed.is_first():
    np.savez(workdir / "samples.npz", **vars(samples))
  texts = build.sample_texts(base.tokenizer, samples)
  with metrics.MetricsWriter(workdir, enabled=distributed.is_first()) as writer:
    rows = [{"prompt": p, "response": r} for p, r in texts]
    writer.write_samples(0, rows, "sft")
  return "samples.npz"
