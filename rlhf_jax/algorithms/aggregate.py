"""How per-token losses become one number: four named averages.

  token-mean           sum_nt l m / sum_nt m            PPO, DAPO, REINFORCE++
  seq-mean-token-mean  mean_n (sum_t l m / sum_t m)     GRPO, GSPO
  seq-mean-token-sum   mean_n (sum_t l m)               REINFORCE, RLOO
  seq-sum-const        sum_nt l m / (sequences T_max)   Dr. GRPO

The choice decides whether long answers weigh more (METHODS 0.3; Liu et al.
2025, arXiv:2503.20783 on the length bias of the second). A sequence is a row,
or a segment of a packed row; sequences without any counted token do not count.
Every function takes a denominator of the whole batch, so that the value of a
microbatch is a contribution (see accumulate.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array

MODES = (
  "token-mean",
  "seq-mean-token-mean",
  "seq-mean-token-sum",
  "seq-sum-const",
)


def check_mode(name: str, mode: str, constant_tokens: int | None) -> None:
  """Raises ValueError unless `mode`, the value of field `name`, is usable."""
  if mode not in MODES:
    raise ValueError(f"{name}={mode!r}: must be one of {', '.join(MODES)}.")
  if mode == "seq-sum-const" and (
    constant_tokens is None or constant_tokens < 1
  ):
    raise ValueError(
      f"{name}_tokens={constant_tokens}: 'seq-sum-const' divides by a fixed "
      f"number of tokens. Set {name}_tokens to the longest response, >= 1."
    )
  if mode != "seq-sum-const" and constant_tokens is not None:
    raise ValueError(
      f"{name}_tokens={constant_tokens}: only 'seq-sum-const' reads it, not "
      f"{mode!r}. Leave it None."
    )


def _segment_totals(x: Array, segment_ids: Array | None) -> Array:
  """Returns [N, S] the sum of x over each sequence: S = 1, or L if packed."""
  if segment_ids is None:
    return jnp.sum(x, axis=-1, keepdims=True)
  return jax.vmap(
    lambda row, i: jax.ops.segment_sum(row, i, num_segments=x.shape[-1])
  )(x, _local_index(segment_ids))


def _local_index(segment_ids: Array) -> Array:
  """Returns [N, L] in [0, L): which run of equal ids a token belongs to."""
  changes = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(jnp.cumsum(changes.astype(jnp.int32), -1), ((0, 0), (1, 0)))


def _sequence_sums(x: Array, segment_ids: Array | None) -> Array:
  """Returns [N, L]: for each token, the sum of x over its sequence."""
  totals = _segment_totals(x, segment_ids)
  if segment_ids is None:
    return jnp.broadcast_to(totals, x.shape)
  return jnp.take_along_axis(totals, _local_index(segment_ids), axis=-1)


def sequence_lengths(mask: Array, segment_ids: Array | None = None) -> Array:
  """Returns [N, L]: for each token, the counted tokens of its sequence.

  Args:
    mask: [N, L], 1 on counted tokens.
    segment_ids: [N, L], equal and adjacent within a sequence, or None.
  """
  return _sequence_sums(mask, segment_ids)


def sequence_means(
  x: Array, mask: Array, segment_ids: Array | None = None
) -> Array:
  """Returns [N, L]: for each token, the mean of x over its sequence.

  Args:
    x: [N, L]; anything, even NaN, where mask is 0.
    mask: [N, L], 1 on counted tokens.
    segment_ids: [N, L], equal and adjacent within a sequence, or None.
  """
  sums = _sequence_sums(ops.neutral(x, mask) * mask, segment_ids)
  return sums / jnp.maximum(_sequence_sums(mask, segment_ids), 1.0)


def denominator(
  mask: Array,
  mode: str,
  *,
  constant_tokens: int | None = None,
  segment_ids: Array | None = None,
) -> Array:
  """Returns [] float32, what `aggregate` divides by, for a whole batch.

  Args:
    mask: [N, L], 1 on counted tokens.
    mode: one of MODES.
    constant_tokens: T_max of "seq-sum-const".
    segment_ids: [N, L] of packed rows, or None.
  """
  if mode == "token-mean":
    return jnp.sum(mask)
  sequences = jnp.sum((_segment_totals(mask, segment_ids) > 0) * 1.0)
  if mode == "seq-sum-const":
    return sequences * constant_tokens
  return sequences


def aggregate(
  x: Array,
  mask: Array,
  mode: str,
  denominator: Array,
  *,
  segment_ids: Array | None = None,
) -> Array:
  """Returns [], the contribution of these rows to the average over a batch.

  Args:
    x: [N, L] per-token quantity; anything, even NaN, where mask is 0.
    mask: [N, L], 1 on counted tokens.
    mode: one of MODES.
    denominator: [] of the whole batch, from `denominator`.
    segment_ids: [N, L] of packed rows, or None.
  """
  if mode == "seq-mean-token-mean":
    lengths = sequence_lengths(mask, segment_ids)
    x = ops.neutral(x, mask) / jnp.maximum(lengths, 1.0)
  return ops.masked_mean(x, mask, denominator)


def weights(
  mask: Array,
  mode: str,
  denominator: Array,
  *,
  segment_ids: Array | None = None,
) -> Array:
  """Returns w [N, L] with `aggregate`(x) = sum(w x): what each token counts.

  Args:
    mask, mode, denominator, segment_ids: see `aggregate`.
  """
  shares = mask / jnp.maximum(denominator, 1.0)
  if mode == "seq-mean-token-mean":
    shares /= jnp.maximum(sequence_lengths(mask, segment_ids), 1.0)
  return shares
