"""Masked statistics, entropies, KL estimators: float32 throughout.

Every function is pure, takes explicit masks and reduces over the whole array
it is given, so under jit with sharded inputs the statistics are global.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array

# Nats by which two programs, such as a microbatch and a whole batch, may round
# the float32 log-probability of one token differently.
ROUNDING_NATS = 1e-4
ABSENT = -1e30  # a logit of probability 0 that keeps 0 * logit finite
LOG_RATIO_LIMIT = 20.0  # nats; exp beyond it overflows nothing and means noise


def check_same_shape(**arrays: Array) -> None:
  """Raises ValueError, naming the arrays, unless all shapes are equal."""
  shapes = {name: jnp.shape(x) for name, x in arrays.items()}
  if len(set(shapes.values())) > 1:
    listed = ", ".join(f"{name}={shape}" for name, shape in shapes.items())
    raise ValueError(
      f"shapes differ: {listed}. All of them concern the same tokens, so all "
      "must be [N, L]; see the invariants in rlhf_jax/types.py."
    )


def neutral(x: Array, mask: Array, fill: float = 0.0) -> Array:
  """Returns float32 `x` with `fill` where `mask` is 0, before any arithmetic.

  Unlike a product with the mask this keeps NaN and inf of padding out of both
  value and gradient.
  """
  return jnp.where(mask > 0, x.astype(jnp.float32), jnp.float32(fill))


def masked_sum(x: Array, mask: Array) -> Array:
  """Returns the float32 sum of x where mask is 1, over all axes."""
  return jnp.sum(neutral(x, mask) * mask)


def masked_mean(x: Array, mask: Array, denominator: Array | None = None):
  """Returns sum(x m) / max(sum m, 1), or over a given global denominator.

  Args:
    x: any shape.
    mask: same shape, 0 or 1.
    denominator: [] the count of the whole batch when x is one microbatch of
      it; the sum over microbatches is then the mean over the batch (METHODS
      N9: a mean of microbatch means is wrong for ragged lengths).
  """
  if denominator is None:
    denominator = jnp.sum(mask)
  return masked_sum(x, mask) / jnp.maximum(denominator, 1.0)


def centred(x: Array, mask: Array) -> tuple[Array, Array]:
  """Returns x minus its mean under the mask, 0 elsewhere, and the mean [].

  The mean of what is left over is taken off too: of many large values of little
  spread the float32 mean is off by more than they differ. Equal values give
  exact zeros, and themselves as the mean, also where their sum overflows.
  """
  top = jnp.max(neutral(x, mask, -jnp.inf))
  is_flat = top == jnp.min(neutral(x, mask, jnp.inf))
  mean = masked_mean(x, mask)
  mean = mean + masked_mean(neutral(x, mask) - mean, mask)
  mean = jnp.where(is_flat, top, mean)
  x = jnp.where((mask > 0) & ~is_flat, neutral(x, mask) - mean, 0.0)
  return x, mean


def masked_variance(x: Array, mask: Array) -> Array:
  """Returns the population variance (divided by n) of x where mask is 1."""
  _, mean = centred(x, mask)
  return masked_mean(jnp.square(neutral(x, mask) - mean), mask)


def whiten(x: Array, mask: Array, *, shifts_mean: bool = True) -> Array:
  """Returns x with unit population variance (and zero mean) under the mask.

  Variance is divided by n (as TensorFlow's `moments` and Ziegler et al. 2019;
  not by n - 1), epsilon 1e-8 inside the square root. Masked positions are 0.

  Args:
    x: [N, L].
    mask: [N, L].
    shifts_mean: False keeps the mean: x is only scaled, about its mean.
  """
  difference, mean = centred(x, mask)
  white = difference * jax.lax.rsqrt(masked_variance(x, mask) + 1e-8)
  if not shifts_mean:
    white = white + mean
  return jnp.where(mask > 0, white, 0.0)


def log_ratio(new_logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
  """Returns clip(new - old, +-20) where mask is 1, else 0 (ratio 1)."""
  difference = neutral(new_logprobs, mask) - neutral(old_logprobs, mask)
  return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def unless_rounding(logprobs: Array, reference_logprobs: Array) -> Array:
  """Returns logprobs, but the reference's where rounding alone may differ.

  A KL of rounding has a gradient of rounding, which Adam makes whole steps of:
  a policy that is its reference would leave it with nothing to learn. What is
  within ROUNDING_NATS of the reference counts as equal; its KL is below 5e-9
  nats.

  Args:
    logprobs: any shape; without gradient where they count as equal.
    reference_logprobs: same shape.
  """
  gap = jnp.abs(logprobs - reference_logprobs)
  reference = jax.lax.stop_gradient(reference_logprobs)
  return jnp.where(gap <= ROUNDING_NATS, reference, logprobs)


def kl_k1(logprobs: Array, reference_logprobs: Array) -> Array:
  """Returns log p - log q per token: unbiased for KL(p || q), any sign.

  Schulman 2020, "Approximating KL divergence", with samples from p.
  """
  return logprobs.astype(jnp.float32) - reference_logprobs.astype(jnp.float32)


def kl_k2(logprobs: Array, reference_logprobs: Array) -> Array:
  """Returns (log p - log q)^2 / 2 per token: biased, never negative."""
  return 0.5 * jnp.square(kl_k1(logprobs, reference_logprobs))


def kl_k3(logprobs: Array, reference_logprobs: Array) -> Array:
  """Returns e^u - 1 - u, u = log q - log p: unbiased, >= 0, heavy tail."""
  u = -kl_k1(logprobs, reference_logprobs)
  u = jnp.clip(u, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
  return jnp.expm1(u) - u


def entropy(logits: Array) -> Array:
  """Returns the entropy in nats of softmax(logits) over the last axis.

  A logit of -inf, a token that is never sampled, adds 0.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  finite = jnp.where(jnp.isneginf(log_p), 0.0, log_p)  # p log p is 0 at p = 0
  return -jnp.sum(jnp.exp(log_p) * finite, axis=-1)


def hide_rows(
  logits: Array, rows: Sequence[tuple[int, int]], value: float = ABSENT
) -> Array:
  """Returns logits [..., V] with `value` from start to end of each of `rows`.

  Args:
    logits: of all rows of an embedding.
    rows: (start, end) of those that have no token.
    value: -inf, or one that stays finite times a probability of 0.
  """
  if not rows:
    return logits
  is_empty = np.zeros(logits.shape[-1], bool)
  for start, end in rows:
    is_empty[start:end] = True
  return jnp.where(is_empty, jnp.asarray(value, logits.dtype), logits)


def soft_cap(x: Array, cap: float | None) -> Array:
  """Returns c tanh(x / c), x itself for a cap of None (Gemma 2)."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def positions_from_mask(valid_mask: Array) -> Array:
  """Returns int32 positions that padding on either side does not shift.

  Args:
    valid_mask: [..., L], 1 on real tokens.
  """
  mask = (valid_mask > 0).astype(jnp.int32)
  return jnp.cumsum(mask, axis=-1) - mask


def take_columns(x: Array, columns: Array) -> Array:
  """Returns [B, C, D] of x [B, L, D] at columns [B, C] of each row."""
  return jnp.take_along_axis(x, columns[..., None], axis=1)


def run_starts(*ids: Array) -> Array:
  """Returns [B, L] int32: the column where each run of equal ids starts.

  Args:
    *ids: [B, L] int32; a run ends where any of them changes.
  """
  columns = jnp.arange(ids[0].shape[1], dtype=jnp.int32)[None]
  is_new = columns == 0
  for x in ids:
    is_new = is_new | (x != jnp.roll(x, 1, axis=1))
  return jax.lax.cummax(jnp.where(is_new, columns, 0), axis=1)


def last_index(mask: Array) -> Array:
  """Returns [N] int32: the index of the last 1 in each row of mask [N, L]."""
  length = mask.shape[-1]
  return length - 1 - jnp.argmax(mask[..., ::-1] > 0, axis=-1).astype(jnp.int32)


def first_fit(sizes: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
  """Returns the items of each bin by number: first-fit decreasing, on the host.

  The largest item goes first, into the first bin with room for it in every
  dimension, such as tokens and targets. In one dimension it opens at most 11/9
  of the fewest possible bins, and four (Johnson 1973).

  Args:
    sizes: [N, D] int; the first dimension says which item is larger. Ties keep
      their order.
    capacity: [D] int, at least every item's.
  """
  free = np.tile(np.asarray(capacity), (len(sizes), 1))
  bins: list[list[int]] = []
  for n in np.argsort(-sizes[:, 0], kind="stable"):
    place = int(np.argmax((free >= sizes[n]).all(1)))
    if place == len(bins):
      bins.append([])
    bins[place].append(int(n))
    free[place] -= sizes[n]
  return bins
