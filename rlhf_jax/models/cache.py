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
  """Keys and values of one layer.

  key, value: [B, K, S, d], compute dtype or int8.
  key_scale, value_scale: [B, K, S] float32, what int8 numbers of a token and
    head are multiplied by; None otherwise.
  """

  key: Array
  value: Array
  key_scale: Array | None = None
  value_scale: Array | None = None

  def write(self, key: Array, value: Array, slot: Array) -> LayerCache:
    """Returns the cache with [B, K, T, d] written at slots slot..slot+T-1."""
    new = LayerCache(key=key, value=value)
    if self.key_scale is not None:
      (key, key_scale), (value, value_scale) = quantise(key), quantise(value)
      new = LayerCache(key, value, key_scale, value_scale)
    return jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice(
        x, y, (0, 0, slot, 0)[: x.ndim]
      ),
      self,
      new,
    )


def quantise(x: Array) -> tuple[Array, Array]:
  """Returns int8 numbers and their scale [...] float32, of x [..., d].

  The largest of d numbers becomes 127, symmetric around 0; error at most half
  a scale.
  """
  largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1)
  scale = jnp.where(largest > 0.0, largest, 1.0) / 127.0
  whole = jnp.round(x.astype(jnp.float32) / scale[..., None])
  return whole.astype(jnp.int8), scale


def make_cache(
  model: Any, batch: int, slots: int, dtype: str | None = None
) -> Any:
  """Returns an empty cache of `batch` rows of at most `slots` tokens.

  Args:
    model: transformer.Config. With scan_layers the result is one LayerCache
      with a leading layer axis, else a list of one LayerCache a layer.
    batch: rows.
    slots: tokens of a row, prompt and response.
    dtype: "int8", or None for the compute dtype.
  """
  shape = (batch, model.n_kv_heads, slots, model.head_dim)
  if model.scan_layers:
    shape = (model.n_layers, *shape)

  def layer() -> LayerCache:
    if dtype is None:
      zeros = jnp.zeros(shape, model.dtype)
      return LayerCache(key=zeros, value=zeros)
    zeros, ones = jnp.zeros(shape, dtype), jnp.ones(shape[:-1], jnp.float32)
    return LayerCache(zeros, zeros, ones, ones)

  return (
    layer() if model.scan_layers else [layer() for _ in range(model.n_layers)]
  )


def token_bytes(model: Any, dtype: str | None = None) -> int:
  """Returns the bytes of one token of a row, all layers; see `make_cache`."""
  size = jnp.dtype(model.dtype).itemsize
  head = model.head_dim * size if dtype is None else model.head_dim + 4
  return 2 * model.n_layers * model.n_kv_heads * head


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
