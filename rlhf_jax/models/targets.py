"""The states that predict a row's targets, gathered before the unembedding.

Logits exist for targets only: of each row the columns of its targets come
first, in order, up to the most that a row has; the rest is filler.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Columns:
  """Where the targets of rows stand, and what predicts them."""

  targets: Array  # [B, C] of the rows
  sources: Array  # [B, C], the columns whose states predict them
  mask: Array  # [B, L]

  @staticmethod
  def of(mask: Array, count: int | None, before: Array | None) -> Columns:
    """Finds them.

    Args:
      mask: [B, L], 1 on targets; never on the first token of a row.
      count: at most how many targets a row has; None for L.
      before: [B, L] int32, the column whose state predicts each token; None
        for the column before it.
    """
    count = mask.shape[1] if count is None else min(count, mask.shape[1])
    targets = jnp.argsort(mask <= 0, axis=1, stable=True)[:, :count]
    if before is None:
      sources = jnp.maximum(targets - 1, 0)
    else:
      sources = jnp.take_along_axis(before, targets, axis=1)
    return Columns(targets, sources, mask)

  def spread(self, flat: Array) -> Array:
    """Returns [B, L] float32 of [B * C], 0 where no target is."""
    row = jnp.arange(len(self.targets))[:, None]
    full = jnp.zeros(self.mask.shape, jnp.float32)
    full = full.at[row, self.targets].set(flat.reshape(self.targets.shape))
    return ops.neutral(full, self.mask)


@dataclasses.dataclass(frozen=True)
class Targets:
  """What `likelihood.token_logprobs` reads, and the way back to rows."""

  hidden: Array  # [B * C, D], normed
  unembedding: Array  # [D, V]
  tokens: Array  # [B * C] int32
  columns: Columns
  how: dict  # keywords of likelihood.token_logprobs

  def of(self, x: Array) -> Array:
    """Returns [B * C] of x [B, L], 0 where no target is."""
    x = ops.neutral(x, self.columns.mask)
    return jnp.take_along_axis(x, self.columns.targets, axis=1).reshape(-1)

  def spread(self, flat: Array) -> Array:
    """Returns [B, L] float32 of [B * C], 0 where no target is."""
    return self.columns.spread(flat)


def gather(
  network: transformer.Transformer,
  params: PyTree,
  x: Array,
  tokens: Array,
  columns: Columns,
) -> Targets:
  """Returns the targets of rows.

  Args:
    network: the Linen module.
    params: its base parameters.
    x: [B, C, D] the stream that left the last layer, at columns.sources.
    tokens: [B, L].
    columns: of the targets.
  """
  wanted = jnp.take_along_axis(tokens, columns.targets, axis=1)
  weights = {"params": params}
  x = network.apply(weights, x, method="normed")
  return Targets(
    hidden=x.reshape(-1, x.shape[-1]),
    unembedding=network.apply(weights, method="unembedding"),
    tokens=wanted.reshape(-1),
    columns=columns,
    how={
      "soft_cap": network.config.logit_cap,
      "empty_rows": network.config.empty_rows,
      "ways": mesh_lib.row_ways(),
    },
  )
