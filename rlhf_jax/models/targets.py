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
class Targets:
  """What `likelihood.token_logprobs` reads, and the way back to rows."""

  hidden: Array  # [B * C, D], normed
  unembedding: Array  # [D, V]
  tokens: Array  # [B * C] int32
  columns: Array  # [B, C] of the rows
  mask: Array  # [B, L]
  how: dict  # keywords of likelihood.token_logprobs

  def of(self, x: Array) -> Array:
    """Returns [B * C] of x [B, L], 0 where no target is."""
    x = ops.neutral(x, self.mask)
    return jnp.take_along_axis(x, self.columns, axis=1).reshape(-1)

  def spread(self, flat: Array) -> Array:
    """Returns [B, L] float32 of [B * C], 0 where no target is."""
    row = jnp.arange(len(self.columns))[:, None]
    full = jnp.zeros(self.mask.shape, jnp.float32)
    full = full.at[row, self.columns].set(flat.reshape(self.columns.shape))
    return ops.neutral(full, self.mask)


def gather(
  network: transformer.Transformer,
  params: PyTree,
  x: Array,
  tokens: Array,
  mask: Array,
  count: int | None,
  before: Array | None = None,
) -> Targets:
  """Returns the targets of rows.

  Args:
    network: the Linen module.
    params: its base parameters.
    x: [B, L, D] the stream that left the last layer.
    tokens: [B, L].
    mask: [B, L], 1 on targets; never on the first token of a row.
    count: at most how many targets a row has; None for L.
    before: [B, L] int32, the column whose state predicts each token; None for
      the column before it.
  """
  length, width = x.shape[1:]
  count = length if count is None else min(count, length)
  columns = jnp.argsort(mask <= 0, axis=1, stable=True)[:, :count]
  wanted = jnp.take_along_axis(tokens, columns, axis=1)
  if before is None:
    source = jnp.maximum(columns - 1, 0)
  else:
    source = jnp.take_along_axis(before, columns, axis=1)
  x = jnp.take_along_axis(x, source[..., None], axis=1)
  weights = {"params": params}
  x = network.apply(weights, x, method="normed")
  return Targets(
    hidden=x.reshape(-1, width),
    unembedding=network.apply(weights, method="unembedding"),
    tokens=wanted.reshape(-1),
    columns=columns,
    mask=mask,
    how={
      "soft_cap": network.config.logit_cap,
      "empty_rows": network.config.empty_rows,
      "ways": mesh_lib.row_ways(),
    },
  )
