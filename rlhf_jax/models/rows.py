"""The rows of tokens that a forward pass reads, and what follows from them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention, heads, transformer
from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Rows:
  """Tokens with derived positions; packed where there are segment_ids.

  branch_ids: of packed rows whose segments branch (types.TokenBatch).
  """

  tokens: Array  # [B, L]
  valid_mask: Array  # [B, L]
  positions: Array  # [B, L]
  segment_ids: Array | None = None
  branch_ids: Array | None = None

  @staticmethod
  def of(batch) -> Rows:
    """Builds it from any of the structs of types.py."""
    positions = getattr(batch, "positions", None)
    if positions is None:
      positions = ops.positions_from_mask(batch.valid_mask)
    segments = getattr(batch, "segment_ids", None)
    branches = getattr(batch, "branch_ids", None)
    return Rows(batch.tokens, batch.valid_mask, positions, segments, branches)

  def mask(self, model: transformer.Config) -> attention.Mask | attention.Masks:
    """Returns the causal mask in the form that the model's attention reads."""
    return attention.make_masks(
      model,
      self.valid_mask,
      self.positions,
      self.segment_ids,
      self.branch_ids,
    )

  def before(self) -> Array | None:
    """Returns [B, L] int32, the column whose state predicts each token.

    Of the first token of a branch it is the last one that all branches share.
    None without branches: the column before.
    """
    if self.branch_ids is None:
      return None
    segment, branch = self._starts()
    columns = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None]
    is_first = (columns == branch) & (branch > segment)
    shared = segment + self.positions - 1
    return jnp.maximum(jnp.where(is_first, shared, columns - 1), 0)

  def pooled(self, x: Array, kind: str) -> Array:
    """Returns float32 features [B, L, F] of every prefix, see heads.pool.

    Args:
      x: [B, L, D] residual stream.
      kind: of pooling.
    """
    positions = None if self.segment_ids is None else self.positions
    starts = None if self.branch_ids is None else self._starts()
    return heads.pool(x, self.valid_mask, kind, positions, starts)

  def _starts(self) -> tuple[Array, Array]:
    """Returns where the segment and the branch of each token start."""
    return (
      ops.run_starts(self.segment_ids),
      ops.run_starts(self.segment_ids, self.branch_ids),
    )
