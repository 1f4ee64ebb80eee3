"""The key-value cache: one entry a layer, all rows written at one slot."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax.types import Array


@flax.struct.dataclass
class LayerCache:
  """Keys and values of one layer: [B, K, S, d], compute dtype."""

  key: Array
  value: Array

  def write(self, key: Array, value: Array, slot: Array) -> LayerCache:
    """Returns the cache with [B, K, T, d] written at slots slot..slot+T-1."""
    at = (0, 0, slot, 0)
    return LayerCache(
      key=jax.lax.dynamic_update_slice(self.key, key, at),
      value=jax.lax.dynamic_update_slice(self.value, value, at),
    )


def make_cache(
  n_layers: int,
  batch: int,
  n_kv_heads: int,
  slots: int,
  head_dim: int,
  dtype: str,
) -> list[LayerCache]:
  """Returns an empty cache for `batch` rows of at most `slots` tokens."""
  shape = (batch, n_kv_heads, slots, head_dim)
  return [
    LayerCache(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype))
    for _ in range(n_layers)
  ]


def take_rows(cache: list[LayerCache], rows: Array) -> list[LayerCache]:
  """Returns the cache of the given rows [M] int32 (compaction)."""
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), cache)
