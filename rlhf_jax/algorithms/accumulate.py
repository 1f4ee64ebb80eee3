"""Gradients over microbatches, and one optimizer step that refuses NaN.

  grads = sum over microbatches of d loss_j / d params,   loss = sum_j loss_j

The denominators of the loss (token counts, weights) are those of the WHOLE
batch and are passed in, so the sum over microbatches is the loss of the batch
for any split. A mean of microbatch means would weight ragged rows by the
accident of who shares a microbatch with whom (METHODS N9; Hugging Face,
"Gradient accumulation fix", 2024).

Metrics follow the same rule: each is a contribution to a sum, except those
named *_max, which are combined by the maximum.

Left out: gradient clipping and schedules, which belong to the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array, Metrics, PyTree, TrainState


@flax.struct.dataclass
class StepReport:
  """What one call of `apply_gradients` did.

  gradient_norm: [] float32, global L2 norm before any clipping.
  applied: [] bool, False when the update was refused as not finite.
  """

  gradient_norm: Array
  applied: Array


def row_count(batch: PyTree) -> int:
  """Returns the size of the leading axis, which all leaves must share.

  Raises:
    ValueError: some leaves have another leading size.
  """
  sizes = {
    jax.tree_util.keystr(path): leaf.shape[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
  }
  if len(set(sizes.values())) != 1:
    raise ValueError(
      f"leading axes differ: {sizes}. Every field of a batch is indexed by "
      "row here; fields that are per sample must be dropped before."
    )
  return next(iter(sizes.values()))


def check_divides(name: str, parts: int, rows: int) -> None:
  """Raises ValueError unless `rows` splits into `parts` equal parts."""
  if parts < 1 or rows % parts:
    raise ValueError(
      f"{name}={parts}: {rows} rows do not split into {parts} equal parts. "
      f"Choose {name} that divides the number of rows."
    )


def split_rows(batch: PyTree, parts: int) -> PyTree:
  """Returns the batch with leaves [parts, rows / parts, ...].

  Part j has rows j, j + parts, j + 2 parts, ...: rows that a mesh holds in
  contiguous shards stay on their device, and each part spreads over the mesh.

  Args:
    batch: leaves [rows, ...].
    parts: divides rows.
  """

  def split(x: Array) -> Array:
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def combine_metrics(metrics: Metrics) -> Metrics:
  """Returns each [microbatches] metric as one scalar (module docstring)."""
  return {
    name: jnp.max(x) if name.endswith("_max") else jnp.sum(x)
    for name, x in metrics.items()
  }


def accumulate(
  loss: Callable[..., tuple[Array, Metrics]],
  params: PyTree,
  batch: PyTree,
  microbatches: int,
  *args: Any,
) -> tuple[PyTree, Array, Metrics]:
  """Returns (grads, loss, metrics) of a batch, one microbatch at a time.

  Args:
    loss: (params, microbatch, *args) -> (contribution [], metrics); with the
      batch's denominators among `args`, contributions sum to the batch loss.
    params: differentiated tree.
    batch: leaves [rows, ...].
    microbatches: how many parts; activations of one part live at a time.
    *args: handed to `loss` unsplit, e.g. denominators and frozen weights.

  Returns:
    grads in the dtype of params (summed in float32), loss [], metrics.

  Raises:
    ValueError: microbatches does not divide the rows.
  """
  gradient = jax.value_and_grad(loss, has_aux=True)
  if microbatches == 1:
    (value, metrics), grads = gradient(params, batch, *args)
    return grads, value, metrics
  check_divides("microbatches", microbatches, row_count(batch))

  def one(total: PyTree, microbatch: PyTree):
    (value, metrics), grads = gradient(params, microbatch, *args)
    total = jax.tree.map(lambda s, g: s + g.astype(jnp.float32), total, grads)
    return total, (value, metrics)

  zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
  total, (values, metrics) = jax.lax.scan(
    one, zeros, split_rows(batch, microbatches)
  )
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), total, params)
  return grads, jnp.sum(values), combine_metrics(metrics)


def global_norm(tree: PyTree) -> Array:
  """Returns the float32 L2 norm of all leaves together, 0 for no leaves."""
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares, jnp.float32(0.0)))


def _guarded(
  state: TrainState, grads: PyTree, optimizer: Any, applied: Array
) -> TrainState:
  """Returns the state after a step that is taken, or as it was.

  A branch, and no choice between two trees: the moments are then written
  where they lie, while a choice keeps the old ones for the new weights, which
  are computed from them.
  """

  def step(state: TrainState) -> TrainState:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(
      lambda p, u: (p + u).astype(p.dtype), state.params, updates
    )
    return state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      skipped=jnp.zeros_like(state.skipped),
    )

  return jax.lax.cond(applied, step, lambda state: state, state)


def apply_gradients(
  state: TrainState, grads: PyTree, optimizer: Any, is_finite: Array
) -> tuple[TrainState, StepReport]:
  """Takes one optimizer step, unless the loss or a gradient is not finite.

  A refused step leaves params, opt_state and `step` as they were and adds 1 to
  `skipped`; a step that is taken sets `skipped` to 0 (METHODS N14: the loop
  aborts after several in a row).

  Args:
    state: before the step.
    grads: same tree as state.params.
    optimizer: an optax.GradientTransformation.
    is_finite: [] bool, whether the loss was finite.
  """
  gradient_norm = global_norm(grads)
  applied = jnp.logical_and(is_finite, jnp.isfinite(gradient_norm))
  state = _guarded(state, grads, optimizer, applied)
  refused = 1 - applied.astype(state.skipped.dtype)
  state = state.replace(skipped=state.skipped + refused)
  return state, StepReport(gradient_norm=gradient_norm, applied=applied)


def take_step(
  state: TrainState,
  grads: PyTree,
  loss: Array,
  optimizer: Any,
  tokens: Array,
  norm_name: str,
) -> tuple[TrainState, Metrics]:
  """Takes one guarded step inside a scan, or none where there are no tokens.

  A minibatch without a response token (filler rows of packing, or masked
  answers alone) is passed over: momentum and weight decay would move the
  weights for nothing.

  Metrics: `norm_name`, the norm of all gradients before clipping, 0 for a step
  that was passed over; and two flags that a scan over steps uses up:
  "executed", [] bool, False where it was passed over, and "applied", [] bool,
  False also where it was refused as not finite.

  Args:
    state: before the step.
    grads: same tree as state.params.
    loss: [] of the minibatch; not finite refuses the step.
    optimizer: an optax.GradientTransformation.
    tokens: [] response tokens of the minibatch; 0 passes it over.
    norm_name: area/name of the norm's metric.
  """
  executed = jnp.asarray(tokens > 0)
  norm = global_norm(grads)
  is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  state = _guarded(state, grads, optimizer, executed & is_finite)
  refused = (executed & ~is_finite).astype(state.skipped.dtype)
  return state.replace(skipped=state.skipped + refused), {
    norm_name: jnp.where(executed, norm, 0.0),
    "executed": executed,
    "applied": executed & is_finite,
  }
