"""Supervised fine-tuning: the cross-entropy of demonstrated answers.

  L = - sum_nt m log p(token_nt | tokens_n<t) / sum_nt m

m = loss_mask: 1 on answer tokens and their end token, aligned with the token
it concerns (types.py, invariant 1), so nothing is shifted here. The default
average weighs every token alike, as is usual (Ouyang et al. 2022, section 3.5,
arXiv:2203.02155); "seq-mean-token-mean" weighs every example alike, packed or
not.

Left out: label smoothing and dropout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import aggregate
from rlhf_jax.algorithms.accumulate import accumulate, apply_gradients
from rlhf_jax.types import Array, Metrics, PyTree, TokenBatch, TrainState


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of supervised fine-tuning."""

  microbatches: int = 1  # parts of a batch; one part's activations at a time
  aggregation: str = "token-mean"  # how token losses are averaged: each token,
  # or each example, weighs alike; METHODS 1

  def __post_init__(self) -> None:
    if self.microbatches < 1:
      raise ValueError(
        f"microbatches={self.microbatches}: must be >= 1. Set 1 for no split."
      )
    if self.aggregation not in aggregate.MODES[:2]:
      raise ValueError(
        f"aggregation={self.aggregation!r}: must be one of "
        f"{', '.join(aggregate.MODES[:2])}."
      )


def denominators(batch: TokenBatch, config: Config) -> Metrics:
  """Returns the counts of a whole batch that `loss` divides by."""
  return {
    "loss": aggregate.denominator(
      batch.loss_mask, config.aggregation, segment_ids=batch.segment_ids
    ),
    "targets": jnp.sum(batch.loss_mask),
    "tokens": jnp.sum(batch.valid_mask),
  }


def loss(
  logprobs: Array,
  entropies: Array,
  batch: TokenBatch,
  config: Config,
  denominators: Metrics,
) -> tuple[Array, Metrics]:
  """Returns the cross-entropy in nats, as a contribution to the batch's.

  Metrics:
    sft/loss: nats per target (or per example, see aggregation). Up is bad.
    sft/token_loss: nats per target whatever the aggregation. Up is bad.
    sft/entropy: of the prediction, nats per target. Towards 0 is over-fitting.
    sft/supervised_share: targets among real tokens. Towards 0, most compute is
      spent on prompts.

  Args:
    logprobs: [B, L] float32, of the tokens.
    entropies: [B, L] float32.
    batch: these rows.
    config: settings.
    denominators: of the whole batch.
  """
  mask = batch.loss_mask
  ops.check_same_shape(logprobs=logprobs, entropies=entropies, loss_mask=mask)
  value = aggregate.aggregate(
    -logprobs,
    mask,
    config.aggregation,
    denominators["loss"],
    segment_ids=batch.segment_ids,
  )
  targets = denominators["targets"]
  metrics = {
    "sft/loss": value,
    "sft/token_loss": ops.masked_mean(-logprobs, mask, targets),
    "sft/entropy": ops.masked_mean(entropies, mask, targets),
    "sft/supervised_share": ops.masked_mean(mask, mask, denominators["tokens"]),
  }
  return value, metrics


def update(
  state: TrainState,
  frozen: PyTree,
  batch: TokenBatch,
  rng: Array,
  *,
  config: Config,
  apply: Callable[..., tuple[Array, Array, Array]],
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on one batch.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train. `rng` is unused (there is no dropout): all updates share a signature.

  Metrics: those of `loss`, and
    sft/perplexity: exp(sft/token_loss). Up is bad.
    sft/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: [B, L].
    rng: unused.
    config: settings.
    apply: (params, frozen, batch, weights [B, L]) -> (sum of weights times
      log-probabilities [], logprobs [B, L], entropies [B, L]), float32,
      aligned by invariant 1. The gradient is that of the sum: its weights are
      known in the forward pass, which can form it (rlhf_jax/likelihood.py).
    optimizer: an optax.GradientTransformation.

  Raises:
    ValueError: microbatches does not divide B.
  """
  del rng

  def contribution(params, microbatch, frozen, counts):
    weights = aggregate.weights(
      microbatch.loss_mask,
      config.aggregation,
      counts["loss"],
      segment_ids=microbatch.segment_ids,
    )
    total, logprobs, entropies = apply(params, frozen, microbatch, weights)
    logprobs, entropies = jax.lax.stop_gradient((logprobs, entropies))
    _, metrics = loss(logprobs, entropies, microbatch, config, counts)
    return -total, metrics

  grads, value, metrics = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    denominators(batch, config),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics |= {
    "sft/perplexity": jnp.exp(metrics["sft/token_loss"]),
    "sft/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
