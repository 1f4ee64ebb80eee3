"""Process reward models: a probability that each step of an answer is right.

  L = mean over judged steps of -y log s(z) - (1 - y) log s(-z)

z is the head's number at the last token of a step, s the logistic function, y
the label of the step: 1 right, 0 wrong, or anything between (the share of
continuations from there that end well). Nothing else of a row is trained on.
Lightman et al. 2023 (arXiv:2305.20050); Uesato et al. 2022 (arXiv:2211.14275);
Wang et al. 2024, soft and hard labels (Math-Shepherd, arXiv:2312.08935).

Where a step ends follows from the tokens: at the one that completes the
delimiter, whatever else it holds, and at the last one of the answer, if the
step says anything: several delimiters in a row end one step, and an end token
behind one ends none. Rows and samples are read by this rule, `step_ends`.

The score of an answer is of the probabilities p of its steps: the last, the
least (min), all right (product) or the mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.accumulate import accumulate, apply_gradients
from rlhf_jax.types import Array, Metrics, PyTree, StepBatch, TrainState

SCORES = ("last", "min", "product", "mean")


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the loss on steps."""

  microbatches: int = 1  # parts of a batch; one part's activations at a time
  label_smoothing: float = 0.0  # epsilon: label y becomes y(1-e) + (1-y)e

  def __post_init__(self) -> None:
    if self.microbatches < 1:
      raise ValueError(
        f"microbatches={self.microbatches}: must be >= 1. Set 1 for no split."
      )
    if not 0.0 <= self.label_smoothing < 0.5:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 0.5); at 0.5 "
        "labels say nothing."
      )


def step_ends(tokens: Array, mask: Array, table: Array) -> Array:
  """Returns [N, L] float32, 1 on the last token of each step.

  Args:
    tokens: [N, L] int32.
    mask: [N, L], 1 on the tokens of the answer that are read, side by side.
    table: [S, V] int32 of data/steps.py: the next state, plus S where a token
      completes the delimiter, plus 2 S where it says anything else.
  """
  states = table.shape[0]
  read = mask > 0
  columns = jnp.arange(tokens.shape[1])[None, :]
  is_last = (columns == ops.last_index(mask)[:, None]) & read

  def one(carry: tuple[Array, Array], column: tuple[Array, Array, Array]):
    state, is_said = carry
    token, is_read, is_last = column
    found = table[state, token]
    is_said = is_read & (is_said | (found >= 2 * states))
    found = found % (2 * states)
    state = jnp.where(is_read, found % states, 0)
    is_end = is_said & ((found >= states) | is_last)
    return (state, is_said & ~is_end), is_end

  rows = tokens.shape[:1]
  start = (jnp.zeros(rows, table.dtype), jnp.zeros(rows, bool))
  _, found = jax.lax.scan(one, start, (tokens.T, read.T, is_last.T))
  return found.T.astype(jnp.float32)


def answer_score(logits: Array, ends: Array, how: str) -> Array:
  """Returns [N] in [0, 1]: the score of answers; 0 of one without a step.

  Args:
    logits: [N, L] float32; anything where ends is 0.
    ends: [N, L], 1 where a step ends.
    how: one of SCORES.

  Raises:
    ValueError: another `how`.
  """
  logits = ops.neutral(logits, ends)
  count = jnp.sum(ends, -1)
  p = jax.nn.sigmoid(logits)
  if how == "last":
    last = ops.last_index(ends)[:, None]
    found = jnp.take_along_axis(p, last, axis=1)[:, 0]
  elif how == "min":
    found = jnp.min(jnp.where(ends > 0, p, 1.0), -1)
  elif how == "product":
    found = jnp.exp(jnp.sum(jax.nn.log_sigmoid(logits) * ends, -1))
  elif how == "mean":
    found = jnp.sum(p * ends, -1) / jnp.maximum(count, 1.0)
  else:
    raise ValueError(f"score={how!r}: must be one of {', '.join(SCORES)}.")
  return jnp.where(count > 0, found, 0.0)


def step_loss(
  logits: Array, labels: Array, *, label_smoothing: float = 0.0
) -> Array:
  """Returns the binary cross-entropy in nats, of the shape of logits.

  Args:
    logits: float32.
    labels: in [0, 1].
    label_smoothing: epsilon, the assumed share of labels that are wrong.
  """
  target = labels * (1.0 - label_smoothing) + (1.0 - labels) * label_smoothing
  return -target * jax.nn.log_sigmoid(logits) - (
    1.0 - target
  ) * jax.nn.log_sigmoid(-logits)


def denominators(batch: StepBatch) -> Metrics:
  """Returns the counts of a whole batch that `loss` divides by."""
  return {"steps": jnp.sum(batch.step_mask)}


def loss(
  logits: Array, batch: StepBatch, config: Config, denominators: Metrics
) -> tuple[Array, Metrics]:
  """Returns the cross-entropy of steps, as a contribution to the batch's.

  Metrics:
    process/loss: nats a step. Up is bad; log 2 is chance.
    process/accuracy: share of steps on the side of 1/2 that their label is
      on. Down is bad; process/right is what always saying "right" gets.
    process/right: mean label. No bad direction.
    process/probability: mean of what is predicted. Far from process/right is
      bad.

  Args:
    logits: of the shape of batch.step_mask, float32.
    batch: these rows.
    config: settings.
    denominators: of the whole batch.
  """
  mask = batch.step_mask
  ops.check_same_shape(logits=logits, labels=batch.labels, step_mask=mask)
  labels = ops.neutral(batch.labels, mask)
  logits = ops.neutral(logits, mask)
  steps = jnp.maximum(denominators["steps"], 1.0)
  losses = step_loss(logits, labels, label_smoothing=config.label_smoothing)
  value = ops.masked_mean(losses, mask, steps)
  is_hit = (logits > 0) == (labels > 0.5)
  return value, {
    "process/loss": value,
    "process/accuracy": ops.masked_mean(is_hit * 1.0, mask, steps),
    "process/right": ops.masked_mean(labels, mask, steps),
    "process/probability": ops.masked_mean(jax.nn.sigmoid(logits), mask, steps),
  }


def update(
  state: TrainState,
  frozen: PyTree,
  batch: StepBatch,
  rng: Array,
  *,
  config: Config,
  apply: Callable[..., Array],
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on one batch of answers with judged steps.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train. `rng` is unused (there is no dropout): all updates share a signature.

  Metrics: those of `loss`, and
    process/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: rows.
    rng: unused.
    config: settings.
    apply: (params, frozen, batch) -> logits of the shape of batch.step_mask.
    optimizer: an optax.GradientTransformation.

  Raises:
    ValueError: microbatches does not divide the rows.
  """
  del rng

  def contribution(params, microbatch, frozen, counts):
    return loss(apply(params, frozen, microbatch), microbatch, config, counts)

  grads, value, metrics = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    denominators(batch),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics |= {
    "process/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
