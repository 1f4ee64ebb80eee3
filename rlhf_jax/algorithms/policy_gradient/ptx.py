"""PPO-ptx: the loss of pre-training text, added to that of the rollout.

  L + gamma_ptx CE(text)

Ouyang et al. 2022, eq. 2 (arXiv:2203.02155), against forgetting: each minibatch
takes its own part of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import accumulate, sft
from rlhf_jax.types import Array, Metrics, PyTree, TokenBatch


def check(
  coefficient: float, batch: TokenBatch | None, apply: Any, parts: int
) -> None:
  """Raises ValueError unless coefficient, batch and apply agree.

  Args:
    coefficient: gamma_ptx.
    batch: [B, L] text, or None.
    apply: what gives its log-probabilities, or None.
    parts: minibatches times microbatches, which must divide the rows.
  """
  is_ptx = coefficient > 0.0
  if (batch is not None) != is_ptx or (is_ptx and apply is None):
    raise ValueError(
      f"ptx_coefficient={coefficient}, ptx_batch given: {batch is not None}, "
      f"ptx_apply given: {apply is not None}. PPO-ptx needs all three; plain "
      "PPO needs ptx_coefficient=0 and no ptx_batch."
    )
  if batch is not None:
    accumulate.check_divides(
      "minibatches * microbatches",
      parts,
      accumulate.row_count(batch),
    )


def add(
  grads: PyTree,
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  *,
  coefficient: float,
  microbatches: int,
  apply: Callable[..., tuple[Array, Array]],
) -> tuple[PyTree, Array, Metrics]:
  """Returns grads plus the weighted gradient of text, its loss, metrics.

  Metrics:
    ppo/ptx_loss: nats per token of pre-training text. Up is bad: forgetting.
    ppo/gradient_norm_ptx_ratio: norm of the weighted ptx gradient over that of
      the rest. Far above 1 is bad: the reward is not being learnt.

  Args:
    grads: of the rollout's loss, the tree of params.
    params: what trains.
    frozen: what does not.
    batch: [B, L] the minibatch's part of the text.
    coefficient: gamma_ptx.
    microbatches: parts of the batch.
    apply: (params, frozen, TokenBatch) -> (logprobs, entropies).
  """
  sft_config = sft.Config()

  def contribution(params, rows, frozen, counts):
    value, _ = sft.loss(*apply(params, frozen, rows), rows, sft_config, counts)
    return value, {}

  ptx_grads, ptx_loss, _ = accumulate.accumulate(
    contribution,
    params,
    batch,
    microbatches,
    frozen,
    sft.denominators(batch, sft_config),
  )
  ptx_grads = jax.tree.map(lambda g: g * coefficient, ptx_grads)
  ratio = accumulate.global_norm(ptx_grads) / jnp.maximum(
    accumulate.global_norm(grads), 1e-20
  )
  total = jax.tree.map(jnp.add, grads, ptx_grads)
  metrics = {"ppo/ptx_loss": ptx_loss, "ppo/gradient_norm_ptx_ratio": ratio}
  return total, ptx_loss, metrics
