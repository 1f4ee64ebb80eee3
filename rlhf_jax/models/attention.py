"""Softmax attention, by whichever program is fast on the platform.

  einsum  plain; the fastest on CPU, and the one the others are checked against
  splash  blockwise on TPU (jax.experimental.pallas); no [L, L] scores in memory
  cudnn   blockwise on GPU (jax.nn.dot_product_attention); bfloat16 only

  o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s over the s that t may read.

All take queries [B, H, T, d] and grouped keys and values [B, K, S, d]; query
head h reads key head h // (H / K). "auto" in a config means: splash on TPU,
cudnn on GPU in bfloat16, else einsum. Whatever the kind, one token at a time
(decoding) and rows shorter than a block of splash go through einsum: there the
scores are small and the blockwise programs have nothing to save.

Splash (splash.py) knows no mask but causal order and segments, so it is given
segments (padding is a segment of its own) and no branches (data/branches.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models.splash import BLOCK, splash
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array

KINDS = ("einsum", "splash", "cudnn")
BRANCHING = ("einsum", "cudnn")  # read any mask, and so branches of a segment
MASKED = -1e30  # finite, so that a fully masked row yields no NaN


@flax.struct.dataclass
class Segments:
  """A mask as segments: t reads s where s <= t and both ids are equal.

  ids: [B, T] int32; -1 on padding.
  window: tokens back that t reads, its own included; None for all.
  """

  ids: Array
  window: int | None = flax.struct.field(pytree_node=False, default=None)


Mask = Array | Segments  # [B, T, S] bool, or segments


@flax.struct.dataclass
class Masks:
  """Of a model some of whose layers read a window only."""

  full: Mask
  near: Mask


def resolve(kind: str, platform: str, dtype: str) -> str:
  """Returns the kind that a config's `attention` means on a platform.

  Args:
    kind: "auto" or one of KINDS.
    platform: "cpu", "gpu" or "tpu".
    dtype: compute dtype.

  Raises:
    ValueError: a kind that the platform or the dtype does not have.
  """
  if kind == "auto":
    if platform == "tpu":
      return "splash"
    return "cudnn" if (platform, dtype) == ("gpu", "bfloat16") else "einsum"
  if kind not in KINDS:
    raise UserError(f"attention={kind!r}: must be 'auto' or one of {KINDS}.")
  home = {"splash": "tpu", "cudnn": "gpu"}.get(kind, platform)
  if home != platform:
    raise UserError(
      f"attention={kind!r} runs on {home} and this is {platform}. Set "
      "attention='auto'."
    )
  if kind == "cudnn" and dtype != "bfloat16":
    raise UserError(
      f"attention='cudnn' with dtype={dtype!r}: cuDNN's kernel takes 16-bit "
      "numbers. Set dtype='bfloat16' or attention='einsum'."
    )
  return kind


def causal_mask(
  valid_mask: Array,
  segment_ids: Array | None = None,
  branch_ids: Array | None = None,
) -> Array:
  """Returns [B, T, T] bool: token t may read token s.

  Args:
    valid_mask: [B, T], 0 on padding.
    segment_ids: [B, T] int32 for packed rows: only the same segment is read.
    branch_ids: [B, T] int32 within segments: of them only branch 0, which all
      share, and the same branch are read.
  """
  length = valid_mask.shape[-1]
  order = jnp.arange(length)
  mask = (order[:, None] >= order[None, :])[None]
  mask = mask & (valid_mask > 0)[:, None, :]
  if segment_ids is not None:
    mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
  if branch_ids is not None:
    key = branch_ids[:, None, :]
    mask = mask & ((key == 0) | (branch_ids[:, :, None] == key))
  return mask


def make_mask(
  kind: str,
  valid_mask: Array,
  segment_ids: Array | None = None,
  branch_ids: Array | None = None,
) -> Mask:
  """Returns the causal mask of whole rows in the form that a kind reads.

  Args:
    kind: one of KINDS.
    valid_mask: [B, T], 0 on padding.
    segment_ids: [B, T] int32 for packed rows.
    branch_ids: [B, T] int32, see `causal_mask`.

  Raises:
    ValueError: branches, of a kind that knows segments only.
  """
  if branch_ids is not None and kind not in BRANCHING:
    raise ValueError(
      f"branch_ids with attention={kind!r}: it reads whole segments. Lay the "
      f"answers out apart, or use one of {BRANCHING}."
    )
  if kind != "splash" or valid_mask.shape[-1] < BLOCK:
    return causal_mask(valid_mask, segment_ids, branch_ids)
  ids = jnp.zeros(valid_mask.shape, jnp.int32)
  if segment_ids is not None:
    ids = segment_ids.astype(jnp.int32)
  return Segments(jnp.where(valid_mask > 0, ids, -1))


def make_masks(
  config: Any,
  valid_mask: Array,
  positions: Array,
  segment_ids: Array | None = None,
  branch_ids: Array | None = None,
) -> Mask | Masks:
  """Returns what the layers of a model read in whole rows.

  Args:
    config: transformer.Config.
    valid_mask, segment_ids, branch_ids: see `make_mask`.
    positions: [B, T] int32, of each token in its own text.
  """
  full = make_mask(config.attention, valid_mask, segment_ids, branch_ids)
  if isinstance(full, Segments):
    if not config.local_layers:
      return full
    return Masks(full, full.replace(window=config.window))
  distance = positions[:, :, None] - positions[:, None, :]
  return with_window(config, full, distance)


def with_window(config: Any, full: Array, distance: Array) -> Array | Masks:
  """Returns a mask, and that of local layers where they read less.

  Args:
    config: transformer.Config.
    full: [B, T, S] bool.
    distance: [B, T, S], how many tokens back a key is.
  """
  size = full.shape[-1]
  if not config.local_layers or config.window is None or size <= config.window:
    return full
  return Masks(full, full & (distance < config.window))


def of_layer(
  mask: Mask | Masks,
  is_local: bool | Array,
  attend: Callable[[Mask], Array],
) -> Array:
  """Returns what a layer attends to.

  Args:
    mask: of the model.
    is_local: whether the layer reads a window; an array in a scan over layers.
    attend: of one mask.
  """
  if not isinstance(mask, Masks):
    return attend(mask)
  if isinstance(is_local, bool):
    return attend(mask.near if is_local else mask.full)
  if isinstance(mask.full, Segments):
    return jax.lax.cond(
      is_local, lambda: attend(mask.near), lambda: attend(mask.full)
    )
  return attend(jnp.where(is_local, mask.near, mask.full))


def is_of_rows(mask: Mask | Masks, length: int) -> bool:
  """Says whether `length` tokens read themselves, not a longer cache."""
  mask = mask.full if isinstance(mask, Masks) else mask
  return isinstance(mask, Segments) or mask.shape[-1] == length


def attend(
  kind: str,
  query: Array,
  key: Array,
  value: Array,
  mask: Mask,
  key_scale: Array | None = None,
  value_scale: Array | None = None,
  cap: float | None = None,
) -> Array:
  """Returns [B, H, T, d], every query's mixture of the values it may read.

  Args:
    kind: one of KINDS.
    query: [B, H, T, d].
    key, value: [B, K, S, d], H a multiple of K.
    mask: [B, T, S] bool; Segments, where S = T, mean splash.
    key_scale, value_scale: [B, K, S] float32 of an int8 cache, or None.
    cap: c in c tanh(score / c), but of "cudnn"; None for none.
  """
  if isinstance(mask, Segments):
    return splash(query, key, value, mask.ids, window=mask.window, cap=cap)
  if kind == "cudnn" and query.shape[2] > 1 and key_scale is None:
    return cudnn(query, key, value, mask)
  return einsum(
    query,
    key,
    value,
    mask,
    key_scale,
    value_scale,
    cap,
    is_wide=kind == "einsum",
  )


def einsum(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  key_scale: Array | None = None,
  value_scale: Array | None = None,
  cap: float | None = None,
  *,
  is_wide: bool = False,
) -> Array:
  """The plain program; scores and softmax in float32.

  The scales of an int8 cache multiply scores and weights, of which there are
  fewer numbers than of keys and values. `is_wide` multiplies queries and keys
  in float32: a CPU that computes in bfloat16 has no batched product of them
  with float32 sums in jaxlib 0.7.2.
  """
  batch, heads, length, width = query.shape
  grouped = query.reshape(batch, key.shape[1], -1, length, width)
  factors = jnp.float32 if is_wide else query.dtype
  scores = jnp.einsum(
    "bkgtd,bksd->bkgts",
    grouped.astype(factors),
    key.astype(factors),
    preferred_element_type=jnp.float32,
  )
  scores = scores * width**-0.5
  if key_scale is not None:
    scores = scores * key_scale[:, :, None, None, :]
  scores = ops.soft_cap(scores, cap)
  scores = jnp.where(mask[:, None, None], scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1)
  if value_scale is not None:
    weights = weights * value_scale[:, :, None, None, :]
  weights, value = weights.astype(query.dtype), value.astype(query.dtype)
  mixed = jnp.einsum("bkgts,bksd->bkgtd", weights, value)
  return mixed.reshape(batch, heads, length, width)


def cudnn(query: Array, key: Array, value: Array, mask: Array) -> Array:
  """cuDNN's kernel; fully masked queries return what means nothing."""

  def tokens_first(x: Array) -> Array:
    return x.swapaxes(1, 2)

  mixed = jax.nn.dot_product_attention(
    tokens_first(query),
    tokens_first(key),
    tokens_first(value),
    mask=mask[:, None],
    implementation="cudnn",
  )
  return tokens_first(mixed)
