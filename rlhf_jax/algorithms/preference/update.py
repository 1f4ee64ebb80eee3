"""Log-probabilities -> loss -> one optimizer step, for every method.

  loss = sum_b w_b l_b / sum_b w_b

The method gives l_b, a loss for each prompt; the mean over the whole batch is
taken here, so it is the same for any number of microbatches. A method with a
`baseline` (kto.py) gets its mean over the whole batch first, from the last
candidate, in a pass without gradient; the first candidate trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.accumulate import (
  accumulate,
  apply_gradients,
  check_divides,
  split_rows,
)
from rlhf_jax.algorithms.preference.pairs import Counted
from rlhf_jax.types import Array, Metrics, PreferenceBatch, PyTree, TrainState

_ROWS = "/rows"  # of a metric: how many rows its sum is over
_PER_CANDIDATE = (
  "tokens",
  "valid_mask",
  "loss_mask",
  "reference_logprobs",
  "features",
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of an update, whatever the method."""

  microbatches: int = 1  # parts of a batch; one part's activations at a time

  def __post_init__(self) -> None:
    if self.microbatches < 1:
      raise ValueError(
        f"microbatches={self.microbatches}: must be >= 1. Set 1 for no split."
      )


def candidates(
  batch: PreferenceBatch, start: int, stop: int
) -> PreferenceBatch:
  """Returns the batch with candidates start to stop only."""
  fields = {name: getattr(batch, name) for name in _PER_CANDIDATE}
  return batch.replace(
    **{
      name: None if x is None else x[:, start:stop]
      for name, x in fields.items()
    }
  )


def with_baseline(
  params: PyTree,
  frozen: PyTree,
  batch: PreferenceBatch,
  *,
  algorithm: ModuleType,
  apply: Callable[..., Array],
  microbatches: int = 1,
) -> PreferenceBatch:
  """Returns what a method trains on: all candidates, or one and its baseline.

  Args:
    params: trainable tree.
    frozen: the rest.
    batch: [B, K, L]; K = 2 for a method with a baseline.
    algorithm: the method.
    apply: (params, frozen, batch) -> log-probabilities [B, K, L].
    microbatches: how many parts; divides B.

  Raises:
    ValueError: the method needs mismatched candidates and K is not 2.
  """
  if not hasattr(algorithm, "baseline"):
    return batch
  if batch.tokens.shape[1] != 2:
    raise ValueError(
      f"tokens have K={batch.tokens.shape[1]} candidates: this method reads 2, "
      "the judged answer and a mismatched one."
    )

  def one(total: Array, part: PreferenceBatch) -> tuple[Array, None]:
    logprobs = _logprobs(apply, params, frozen, part)
    found = algorithm.baseline(logprobs, part)
    return total + _weighted_sum(found, part.weight), None

  parts = split_rows(candidates(batch, 1, 2), microbatches)
  total, _ = jax.lax.scan(one, jnp.float32(0.0), parts)
  mean = jax.lax.stop_gradient(total) / _at_least(jnp.sum(batch.weight))
  return candidates(batch, 0, 1).replace(
    baseline=jnp.broadcast_to(mean, batch.weight.shape)
  )


def _at_least(count: Array) -> Array:
  return jnp.maximum(count, 1e-8)


def _weighted_sum(x: Array, weight: Array) -> Array:
  """Returns sum x w; rows without weight may hold anything."""
  return jnp.sum(jnp.where(weight > 0, x * weight, 0.0))


def _logprobs(apply, params, frozen, batch: PreferenceBatch) -> Array:
  """Returns [B, K, L] log-probabilities, 0 in rows without weight."""
  logprobs = apply(params, frozen, batch)
  return jnp.where(batch.weight[:, None, None] > 0, logprobs, 0.0)


def totals(losses: Array, metrics: Counted, batch: PreferenceBatch) -> Metrics:
  """Returns sums over rows, and rows, of the loss and of each metric.

  Args:
    losses: [B].
    metrics: name -> (x [B], rows [B]).
    batch: whose weights count.
  """
  found = {"preference/loss": (losses, jnp.ones_like(losses))} | metrics
  sums = {}
  for name, (x, rows) in found.items():
    sums[name] = _weighted_sum(jnp.where(rows > 0, x * rows, 0.0), batch.weight)
    sums[name + _ROWS] = _weighted_sum(rows, batch.weight)
  return sums


def means(sums: Metrics) -> Metrics:
  """Returns the metrics of sums from `totals`; 0 where no row counts."""
  return {
    name: x / _at_least(sums[name + _ROWS])
    for name, x in sums.items()
    if not name.endswith(_ROWS)
  }


def measure(
  params: PyTree,
  frozen: PyTree,
  batch: PreferenceBatch,
  *,
  algorithm: ModuleType,
  algorithm_config: Any,
  apply: Callable[..., Array],
) -> Metrics:
  """Returns the sums of `totals` for held-out rows, to be added up.

  Args:
    params: trainable tree.
    frozen: the rest.
    batch: [B, K, L]; weight 0 on padding rows.
    algorithm: the method.
    algorithm_config: its settings.
    apply: (params, frozen, batch) -> log-probabilities [B, K, L].
  """
  batch = with_baseline(params, frozen, batch, algorithm=algorithm, apply=apply)
  logprobs = _logprobs(apply, params, frozen, batch)
  return totals(*algorithm.loss(logprobs, batch, algorithm_config), batch)


def update(
  state: TrainState,
  frozen: PyTree,
  batch: PreferenceBatch,
  rng: Array,
  *,
  algorithm: ModuleType,
  algorithm_config: Any,
  config: Config,
  apply: Callable[..., Array],
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on one batch of preferences.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train. `rng` is unused (there is no dropout): all updates share a signature.

  Metrics: those of the method, and
    preference/loss: mean over the batch. Up is bad.
    preference/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: [B, K, L], with reference_logprobs where the method reads them.
    rng: unused.
    algorithm: a module of registry.ALGORITHMS.
    algorithm_config: its Config.
    config: settings of the update.
    apply: (params, frozen, batch) -> log-probabilities [B, K, L] float32,
      aligned by invariant 1.
    optimizer: an optax.GradientTransformation.

  Raises:
    ValueError: microbatches does not divide B, or K does not fit the method.
  """
  del rng
  check_divides("microbatches", config.microbatches, batch.label.shape[0])
  batch = with_baseline(
    state.params,
    frozen,
    batch,
    algorithm=algorithm,
    apply=apply,
    microbatches=config.microbatches,
  )

  def contribution(params, microbatch, frozen, weight):
    logprobs = _logprobs(apply, params, frozen, microbatch)
    losses, metrics = algorithm.loss(logprobs, microbatch, algorithm_config)
    sums = totals(losses, metrics, microbatch)
    return sums["preference/loss"] / weight, sums

  grads, value, sums = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    _at_least(jnp.sum(batch.weight)),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics = means(sums) | {
    "preference/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
