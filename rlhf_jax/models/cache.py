"""The key-value cache: one entry a layer, its slots a ring that rows share.

All rows are written at one slot; where a row stands in its own tokens is not
seen here. Position is turned into keys before they are written, so a row may
begin at any slot and go on at slot 0 after the last.
"""

from __future__ import annotations

import functools
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


def _row_axis(cache: Any) -> int:
  """Returns where rows are: behind the layers where those are scanned."""
  return 1 if isinstance(cache, LayerCache) else 0


def _slot_axis(cache: Any) -> int:
  """Returns where slots are: behind rows and heads."""
  return _row_axis(cache) + 2


def take_rows(cache: Any, rows: Array) -> Any:
  """Returns the cache of the given rows [M] int32 (compaction)."""
  axis = _row_axis(cache)
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), cache)


def put_rows(cache: Any, new: Any, rows: Array) -> Any:
  """Returns the cache with the rows of `new` at places `rows` [M] int32."""
  at = (slice(None),) * _row_axis(cache) + (rows,)
  return jax.tree.map(lambda x, y: x.at[at].set(y), cache, new)


def cache_slots(cache: Any) -> int:
  """Returns the tokens that a row of a cache has room for."""
  one = cache if isinstance(cache, LayerCache) else cache[0]
  return one.key.shape[-2]


def take_slots(cache: Any, slots: Array) -> Any:
  """Returns the cache whose slot s is slot slots[s] of this one."""
  axis = _slot_axis(cache)
  take = functools.partial(jnp.take, indices=slots, axis=axis, mode="clip")
  return jax.tree.map(take, cache)


def repeat_rows(x: Array, times: int, axis: int = 0) -> Array:
  """Returns x with each row `times` times, one after the other.

  Rows that a mesh holds in contiguous shards stay on their device.
  """
  if times == 1:
    return x
  wide = jnp.expand_dims(x, axis + 1)
  shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
  merged = (*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])
  return jnp.broadcast_to(wide, shape).reshape(merged)


def repeat_cache(cache: Any, times: int) -> Any:
  """Returns the cache with each row `times` times."""
  axis = _row_axis(cache)
  return jax.tree.map(lambda x: repeat_rows(x, times, axis), cache)
