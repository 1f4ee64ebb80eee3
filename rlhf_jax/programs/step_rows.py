"""Answers with judged steps, as a process reward model reads them.

Batches, the update, and the pooled features of a frozen trunk at the ends of
steps, which are computed once when only a head trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.algorithms import process
from rlhf_jax.data import layout, statistics
from rlhf_jax.models import heads, outputs, roles, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import abstract, build, features
from rlhf_jax.programs.program import Phase
from rlhf_jax.types import Array, PyTree, StepBatch, TokenBatch


def apply(
  params: PyTree, frozen: PyTree, batch: StepBatch, *, role: roles.Role
) -> Array:
  """Returns logits of the shape of batch.step_mask."""
  variables = trees.merge(params, frozen)
  if batch.features is not None:
    found = heads.ScalarHead(role.head).apply(
      {"params": variables["head"]}, batch.features
    )
    return found[..., 0]
  return outputs.prefix_scores(role, variables, Rows.of(batch))[..., 0]


def make_update(
  role: roles.Role,
  loss: process.Config,
  transform: Any,
  *,
  mesh: Any = None,
  donates: bool = True,
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, StepBatch, key) -> ...

  Args:
    role: what trains.
    loss: settings of the loss.
    transform: an optax.GradientTransformation.
    mesh: where it runs; None for where JAX computes by default.
    donates: whether the new state takes the memory of the old one.
  """
  update = functools.partial(
    process.update,
    config=loss,
    apply=functools.partial(apply, role=role),
    optimizer=transform,
  )
  return jax.jit(
    update,
    donate_argnums=0 if donates else (),
    compiler_options=build.compiler_options(role, mesh),
  )


def abstract_batch(
  mesh: Any, rows: int, shape: layout.Shape, width: int
) -> StepBatch:
  """Returns a batch without data.

  Args:
    mesh: where.
    rows: of it.
    shape: of the rows.
    width: F of the features, 0 where the trunk trains.
  """
  text = abstract.token_batch(mesh, rows, shape.length, shape.is_packed)
  if not width:
    return StepBatch(
      tokens=text.tokens,
      valid_mask=text.valid_mask,
      step_mask=text.loss_mask,
      labels=text.loss_mask,
      segment_ids=text.segment_ids,
      positions=text.positions,
    )
  nothing = abstract.token_batch(mesh, rows, 1, False)
  steps = abstract.spread(mesh, (rows, shape.targets), jnp.float32)
  return StepBatch(
    tokens=nothing.tokens,
    valid_mask=nothing.valid_mask,
    step_mask=steps,
    labels=steps,
    features=abstract.spread(mesh, (rows, shape.targets, width), jnp.float32),
  )


def collate_features(
  numbers: Sequence[int],
  *,
  rows: Sequence[dict[str, np.ndarray]],
  found: Sequence[np.ndarray],
  most: int,
) -> StepBatch:
  """Returns the batch of the answers with these numbers, their features known.

  Args:
    numbers: of answers.
    rows: of all answers.
    found: [E, F] of each, at its judged steps.
    most: judged steps of an answer at most.
  """
  count, width = len(numbers), found[0].shape[1]
  mask = np.zeros((count, most), np.float32)
  labels = np.zeros((count, most), np.float32)
  read = np.zeros((count, most, width), np.float32)
  for line, number in enumerate(numbers):
    judged = rows[number]["loss_mask"] > 0
    size = int(judged.sum())
    mask[line, :size] = 1.0
    labels[line, :size] = rows[number]["labels"][judged]
    read[line, :size] = found[number]
  nothing = np.zeros((count, 1), np.int32)
  return StepBatch(
    tokens=nothing,
    valid_mask=np.ones((count, 1), np.float32),
    step_mask=mask,
    labels=labels,
    features=read,
  )


def row_features(
  phase: Phase, trunk: PyTree, rows: Sequence[dict[str, np.ndarray]]
) -> list[np.ndarray]:
  """Returns [E, F] pooled features of each row, at its targets.

  Args:
    phase: with a program "features".
    trunk: the frozen weights.
    rows: token rows.
  """

  def forward(batch: TokenBatch, cells: Array) -> Array:
    return phase["features"](trunk, batch, cells)

  return _at_targets(phase, rows, features.FEATURE_ROWS, forward)


def row_logits(
  phase: Phase,
  params: PyTree,
  frozen: PyTree,
  rows: Sequence[dict[str, np.ndarray]],
  found: Sequence[np.ndarray] | None,
  size: int,
) -> list[np.ndarray]:
  """Returns [E] logits of each row, at its targets.

  Args:
    phase: wired.
    params, frozen: of its role.
    rows: token rows.
    found: their features, None where the trunk trains.
    size: rows read at a time.
  """
  if found is not None:
    head = heads.ScalarHead(phase.role.head)
    every = jax.jit(head.apply)(
      {"params": params["head"]}, np.concatenate(found)
    )
    borders = np.cumsum([len(x) for x in found])[:-1]
    return np.split(distributed.fetch(every)[:, 0], borders)
  forward = _logits_at(phase.role)
  return [
    x[:, 0]
    for x in _at_targets(
      phase, rows, size, functools.partial(forward, params, frozen)
    )
  ]


@functools.lru_cache(maxsize=16)
def _logits_at(role: roles.Role) -> Callable[..., Array]:
  """Returns the compiled (params, frozen, TokenBatch, cells) -> [K, 1]."""

  @jax.jit
  def forward(params: PyTree, frozen: PyTree, batch: TokenBatch, cells: Array):
    variables = trees.merge(params, frozen)
    found = outputs.prefix_scores(role, variables, Rows.of(batch))
    return found[..., :1].reshape(-1, 1)[cells]

  return forward


def _at_targets(
  phase: Phase,
  rows: Sequence[dict[str, np.ndarray]],
  size: int,
  forward: Callable[[TokenBatch, Array], Array],
) -> list[np.ndarray]:
  """Returns [E, F] of each row, what `forward` gives at its targets.

  Rows share what is read.

  Args:
    phase: of the run.
    rows: token rows, each with a target.
    size: rows read at a time.
    forward: (batch, cells [K] of B * L) -> [K, F].
  """
  shape, ways = layout.whole(rows), phase.world.ways
  size = max(size // ways, 1) * ways
  pad, result = phase.base.tokenizer.pad_id, [np.zeros((0, 0))] * len(rows)
  most = size * int(statistics.sizes_of(rows)[:, 1].max())
  most = max(most, size * shape.targets)
  for chosen, batch in layout.in_order(rows, shape, size, pad):
    cells = np.arange(batch.tokens.size, dtype=np.int32)
    cells = cells.reshape(batch.tokens.shape)
    parts = list(layout.by_example(chosen, batch, cells))
    wanted = np.concatenate([own for _, own in parts])
    padded = np.pad(wanted, (0, most - len(wanted)))
    batch, padded = mesh_lib.spread_batch(phase.mesh, (batch, padded))
    found = distributed.fetch(forward(batch, padded))
    borders = np.cumsum([len(own) for _, own in parts])[:-1]
    for (number, _), own in zip(
      parts, np.split(found[: len(wanted)], borders), strict=True
    ):
      result[number] = own
  return result
