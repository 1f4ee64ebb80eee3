"""Training on a fixed data set: what SFT, reward models and DPO share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import build, loop
from rlhf_jax.pipelines.config import Schedule
from rlhf_jax.types import PyTree, TrainState


def initial_state(params: PyTree, optimizer_: Any) -> TrainState:
  """Returns a TrainState at step 0; params are copied, for donation."""
  params = jax.tree.map(jnp.copy, params)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer_.init(params),
    skipped=jnp.int32(0),
  )


def fit(
  update: Callable[..., Any],
  loader: Any,
  params: PyTree,
  frozen: PyTree,
  *,
  optimizer_: Any,
  mesh: jax.sharding.Mesh,
  seed: int,
  phase: str,
  workdir: Path,
  schedule: Schedule,
  total_steps: int,
  identity: dict,
  show: tuple[tuple[str, str], ...],
) -> PyTree:
  """Returns the trained tree; goes on from the newest checkpoint.

  Args:
    update: compiled (state, frozen, batch, key) -> (state, metrics).
    loader: of this host's part of each batch.
    params: trainable tree.
    frozen: handed to `update`.
    optimizer_: an optax.GradientTransformation.
    mesh: where it runs.
    seed: of the key of each step.
    phase, workdir, schedule, total_steps, identity, show: see loop.run_steps.
  """
  key = jax.random.key(seed)

  def one_step(step: int, arrays: PyTree, facts: dict):
    batch = mesh_lib.shard_batch(mesh, next(loader))
    state, row = update(
      arrays["train"], frozen, batch, jax.random.fold_in(key, step)
    )
    return {"train": state}, facts, row

  initial = functools.partial(initial_state, optimizer_=optimizer_)
  arrays, _ = loop.run_steps(
    one_step,
    phase=phase,
    workdir=workdir,
    schedule=schedule,
    total_steps=total_steps,
    arrays={"train": build.sharded_state(mesh, initial, params)},
    facts={},
    identity=identity,
    iterators={"data": loader},
    show=show,
  )
  return arrays["train"].params
