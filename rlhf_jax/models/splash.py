"""Splash attention: blockwise, causal and within segments, on TPU (Pallas).

It is not partitioned by the compiler: under several devices it runs in
`jax.shard_map` over the mesh that is current (parallel/mesh.py), rows over
"data" and "fsdp", heads over "tensor".
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhf_jax.types import Array

BLOCK = 128  # rows are padded to a multiple of it
MAX_BLOCK = 512
ROWS = ("data", "fsdp")  # mesh axes that split the batch
HEADS = "tensor"  # mesh axis that splits the heads


def splash(
  query: Array,
  key: Array,
  value: Array,
  ids: Array,
  *,
  window: int | None = None,
  cap: float | None = None,
  is_interpreted: bool = False,
) -> Array:
  """Blockwise causal attention within segments (Pallas, TPU).

  Args:
    query: [B, H, T, d].
    key, value: [B, K, T, d].
    ids: [B, T] int32, segments.
    window: tokens back that are read, its own included; None for all.
    cap: see `attend`.
    is_interpreted: run the kernel's program step by step, on any platform; for
      tests.

  Returns:
    [B, H, T, d]; queries of padding return what means nothing.
  """
  length, width = query.shape[2:]
  pad = -length % BLOCK
  rows = ((0, 0), (0, 0), (0, pad), (0, 0))
  query = (query * width**-0.5).astype(query.dtype)
  arrays = [jnp.pad(x, rows) for x in (query, key, value)]
  ids = jnp.pad(ids, ((0, 0), (0, pad)), constant_values=-1)
  run = functools.partial(
    _splash_rows, window=window, cap=cap, is_interpreted=is_interpreted
  )
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    run, arrays = _on_mesh(run, mesh, arrays)
  return run(*arrays, ids)[:, :, :length]


def _splash_rows(
  query: Array,
  key: Array,
  value: Array,
  ids: Array,
  *,
  window: int | None,
  cap: float | None,
  is_interpreted: bool,
) -> Array:
  """Runs the kernel over the rows of one device."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  heads, length = query.shape[1:3]
  block = next(size for size in (MAX_BLOCK, 256, BLOCK) if length % size == 0)
  sizes = kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = masks.CausalMask((length, length))
  if window is not None:
    mask = masks.LocalMask((length, length), (window - 1, 0), 0)
  run = kernel.make_splash_mha(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    attn_logits_soft_cap=cap,
    head_shards=1,
    q_seq_shards=1,
    interpret=is_interpreted,
  )

  def one(q: Array, k: Array, v: Array, row: Array) -> Array:
    return run(q, k, v, kernel.SegmentIds(row, row))

  return jax.vmap(one)(query, key, value, ids)


def _on_mesh(run, mesh, arrays: list[Array]):
  """Returns the kernel over all devices, and arrays whose heads divide."""
  query, key, value = arrays
  ways = math.prod(mesh.shape.get(axis, 1) for axis in ROWS)
  tensor = mesh.shape.get(HEADS, 1)
  rows = ROWS if query.shape[0] % ways == 0 else None
  heads = HEADS if query.shape[1] % tensor == 0 else None
  if heads is not None and key.shape[1] % tensor:
    times = query.shape[1] // key.shape[1]  # each device needs its own copies
    key, value = (jnp.repeat(x, times, axis=1) for x in (key, value))
  split = PartitionSpec(rows, heads)
  run = jax.shard_map(
    run,
    in_specs=(split, split, split, PartitionSpec(rows)),
    out_specs=split,
    check_vma=False,
  )
  return run, [query, key, value]
