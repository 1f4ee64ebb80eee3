"""Training on a fixed data set: what SFT, reward models and DPO share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import loop
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


def train_state(world: World, params: PyTree, optimizer_: Any) -> TrainState:
  """Returns the state of a run or a plan before its first step."""
  make = functools.partial(initial_state, optimizer_=optimizer_)
  return world.state(make, params)


def fit(
  phase: Phase,
  loader: Any,
  frozen: PyTree,
  *,
  seed: int,
  schedule: loop.Schedule,
  total_steps: int,
  identity: dict,
  show: tuple[tuple[str, str], ...],
  measure: loop.Measure | None = None,
  told: dict | None = None,
) -> PyTree:
  """Returns the trained tree; goes on from the newest checkpoint.

  Args:
    phase: with arrays {"train"} and a program "update": (state, frozen, batch,
      key) -> (state, metrics).
    loader: of this host's part of each batch.
    frozen: handed to the update.
    seed: of the key of each step.
    schedule, total_steps, identity, show: see loop.run_steps.
    measure: trained tree -> metrics of held-out rows; None for none.
    told: is filled with "steps", those that were taken, and where the run ended
      early with "halted", why.
  """
  key, update = jax.random.key(seed), phase["update"]

  def one_step(step: int, arrays: PyTree, facts: dict):
    batch = mesh_lib.shard_batch(phase.mesh, next(loader))
    state, row = update(
      arrays["train"], frozen, batch, jax.random.fold_in(key, step)
    )
    return {"train": state}, facts | {"steps": step + 1}, row

  phase.warn_of_room()
  arrays, facts = loop.run_steps(
    one_step,
    phase=phase.name,
    workdir=phase.world.workdir,
    schedule=schedule,
    total_steps=total_steps,
    arrays=phase.arrays,
    facts={},
    identity=identity,
    iterators={"data": loader},
    show=show,
    measure=None if measure is None else lambda x: measure(x["train"].params),
  )
  if told is not None:
    # The state counts those that were not refused.
    told["steps"] = int(facts.get("steps", arrays["train"].step))
  if facts.get("halt"):
    print(f"{phase.name}: ended early: {facts['halt']}")
    if told is not None:
      told["halted"] = facts["halt"]
  return arrays["train"].params
