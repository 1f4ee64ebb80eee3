"""The key-value cache: one entry a layer, all rows written at one slot."""

from __future__ import annotations

from typing import Any

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


def make_cache(model: Any, batch: int, slots: int) -> Any:
  """Returns an empty cache of `batch` rows of at most `slots` tokens.

  Args:
    model: transformer.Config. With scan_layers the result is one LayerCache
      with a leading layer axis, else a list of one LayerCache a layer.
    batch: rows.
    slots: tokens of a row, prompt and response.
  """
  shape = (batch, model.n_kv_heads, slots, model.head_dim)
  if model.scan_layers:
    zeros = jnp.zeros((model.n_layers, *shape), model.dtype)
    return LayerCache(key=zeros, value=zeros)
  return [
    LayerCache(
      key=jnp.zeros(shape, model.dtype), value=jnp.zeros(shape, model.dtype)
    )
    for _ in range(model.n_layers)
  ]


def take_rows(cache: list[LayerCache], rows: Array) -> list[LayerCache]:
  """Returns the unscanned cache of the given rows [M] int32 (compaction)."""
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), cache)
