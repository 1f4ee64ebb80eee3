"""Fine-tuning on rows of text: what SFT and rejection sampling train with."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import likelihood
from rlhf_jax.algorithms import sft
from rlhf_jax.data import batches, layout
from rlhf_jax.data.dataset import Row
from rlhf_jax.data.layout import Shape
from rlhf_jax.models import outputs, roles, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.programs import abstract, build, supervised
from rlhf_jax.programs.program import Phase, Program
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.runs.loop import Measure, Schedule
from rlhf_jax.types import Array, PyTree, TokenBatch, TrainState


def logprobs(
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  *,
  role: roles.Role,
  targets: int | None = None,
) -> tuple[Array, Array]:
  """Returns log-probabilities and entropies [B, L] of a batch's targets.

  Args:
    params: trainable tree.
    frozen: the rest.
    batch: [B, L].
    role: the policy's.
    targets: of a row at most; None for no bound.
  """
  return outputs.logprobs(
    role,
    trees.merge(params, frozen),
    Rows.of(batch),
    batch.loss_mask,
    targets=targets,
    is_unembedding_frozen=not roles.trains_unembedding(role),
  )


def weighted_logprobs(
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  weights: Array,
  *,
  role: roles.Role,
  targets: int | None = None,
) -> tuple[Array, Array, Array]:
  """Returns sum(weights * log-probabilities), and both [B, L] of `logprobs`.

  The `apply` of SFT. Only the sum has a gradient, which the forward pass
  forms.

  Args:
    params, frozen, batch, role, targets: see `logprobs`.
    weights: [B, L]; what stands off the batch's loss_mask is not read.
  """
  if not roles.trains_unembedding(role):
    log_p, entropies = logprobs(
      params, frozen, batch, role=role, targets=targets
    )
    return jnp.sum(weights * log_p), log_p, entropies
  found = outputs.targets_of(
    role,
    trees.merge(params, frozen),
    Rows.of(batch),
    batch.loss_mask,
    targets=targets,
  )
  total, log_p, entropies = likelihood.weighted_logprobs(
    found.hidden,
    found.unembedding,
    found.tokens,
    found.of(weights),
    **found.how,
  )
  return total, found.spread(log_p), found.spread(entropies)


def make_update(
  role: roles.Role,
  loss: sft.Config,
  transform: Any,
  targets: int | None,
  *,
  mesh: Any = None,
  donates: bool = True,
) -> Any:
  """Returns the compiled step: (state, frozen, TokenBatch, key) -> state, row.

  Args:
    role: what trains.
    loss: settings of the loss.
    transform: an optax.GradientTransformation.
    targets: most targets of a row, or None.
    mesh: where it runs; None for where JAX computes by default.
    donates: whether the new state takes the memory of the old one.
  """
  update = functools.partial(
    sft.update,
    config=loss,
    apply=functools.partial(weighted_logprobs, role=role, targets=targets),
    optimizer=transform,
  )
  return jax.jit(
    update,
    donate_argnums=0 if donates else (),
    compiler_options=build.compiler_options(role, mesh),
  )


def wire(
  world: World,
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  *,
  loss: sft.Config,
  transform: Any,
  rows: int,
  shape: Shape,
  calls: float | None,
) -> tuple[TrainState, Program]:
  """Returns the state before the first step, and the update.

  Args:
    world: where it runs, or is planned.
    role: what trains.
    params, frozen: its variables, split.
    loss: settings of the loss.
    transform: an optax.GradientTransformation.
    rows: of a batch, as many as it has examples unless they share rows.
    shape: of its rows.
    calls: updates in a run, None where only the data tell.
  """
  rows = shape.counts[0] if shape.counts else rows
  state = supervised.train_state(world, params, transform)

  def arguments(flow: dict) -> tuple[tuple, dict]:
    del flow
    batch = abstract.token_batch(
      world.mesh, rows, shape.length, shape.is_packed
    )
    return (state, frozen, batch, abstract.key(world.mesh)), {}

  update = Program(
    name="update",
    function=make_update(role, loss, transform, shape.targets, mesh=world.mesh),
    arguments=arguments,
    rows=rows,
    work=lambda: Passes(world.mesh).training(
      role,
      abstract.bytes_of(state.params),
      rows,
      shape.length,
      shape.targets,
      parts=loss.microbatches,
    ),
    donates=0,
    calls=calls,
  )
  return state, update


def fit(
  phase: Phase,
  rows: list[Row],
  frozen: PyTree,
  *,
  shape: Shape,
  schedule: Schedule,
  total_steps: int,
  seed: int,
  identity: dict,
  measure: Measure | None = None,
  told: dict | None = None,
) -> PyTree:
  """Returns the trained tree; goes on where it was.

  Args:
    phase: wired.
    rows: packed or not.
    frozen: what does not train.
    shape: of the rows of a batch.
    schedule: how long.
    total_steps: of the whole run.
    seed: of the order of rows.
    identity: fields that a checkpoint must agree with.
    measure, told: see supervised.fit.
  """
  pad_id, size = phase.base.tokenizer.pad_id, schedule.batch_size
  if shape.counts:
    collate = functools.partial(layout.collate, shape=shape, pad_id=pad_id)
  else:
    collate = functools.partial(
      batches.collate_tokens, length=shape.length, pad_id=pad_id
    )
  if "segment_ids" not in rows[0]:
    print(f"{phase.name}: {layout.describe(rows, size, shape)}")
  loader = build.make_loader(
    phase.mesh,
    rows,
    size,
    seed=seed,
    collate=collate,
    shares_rows=bool(shape.counts),
  )
  return supervised.fit(
    phase,
    loader,
    frozen,
    seed=seed,
    schedule=schedule,
    total_steps=total_steps,
    identity=identity,
    show=(("sft/loss", "loss"), ("validation/loss", "validation")),
    measure=measure,
    told=told,
  )
