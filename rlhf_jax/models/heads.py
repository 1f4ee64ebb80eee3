"""The scalar head of reward models and critics.

It reads the residual stream of any layer, normalised to unit root mean square
(without a gain: a linear map absorbs it), and gives one score for every
PREFIX of a row, so one set of weights is a reward model (read at the last
token) and a critic (read before each token): a critic that starts as its
reward model values each prefix as the reward model would (Stiennon et al.
2020; Ouyang et al. 2022, who initialise the critic so).

Pooling: "last", the current token's state; or "mean_last", the running mean
over the prefix beside it, which a frozen trunk needs because its last state
was never trained to summarise.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a ScalarHead."""

  pooling: str = "last"  # what it reads: the last token's state, or beside it
  # the running mean, which a frozen trunk needs
  outputs: int = 1  # scores of an answer, one for each objective
  hidden_units: int = 0  # > 0 adds a residual MLP whose output starts at 0

  def __post_init__(self) -> None:
    if self.pooling not in ("last", "mean_last"):
      raise UserError(
        f"head.pooling={self.pooling!r}: must be 'last' or 'mean_last'."
      )
    if self.outputs < 1 or self.hidden_units < 0:
      raise UserError(
        f"head.outputs={self.outputs}, head.hidden_units={self.hidden_units}: "
        "need outputs >= 1 and hidden_units >= 0."
      )


def unit_rms(x: Array) -> Array:
  """Returns float32 x / rms(x) over the last axis."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def pool(
  hidden: Array,
  mask: Array,
  pooling: str,
  positions: Array | None = None,
  starts: tuple[Array, Array] | None = None,
) -> Array:
  """Returns float32 features [B, L, F] of every prefix of every row.

  Args:
    hidden: [B, L, D] residual stream.
    mask: [B, L], the tokens that count in the running mean (the valid ones).
    pooling: see the module docstring; F is D or 2 D.
    positions: [B, L] int32 of packed rows: the mean then starts at the token
      whose position is 0; None for one example a row.
    starts: two [B, L] int32 of rows with branches, the columns where the
      segment and the branch of each token start; the mean is over both what
      the branches share and the token's own.
  """
  normed = unit_rms(hidden)
  if pooling == "last":
    return normed
  kept = jnp.where(mask[..., None] > 0, normed, 0.0)
  counted = jnp.concatenate([kept, mask[..., None]], axis=-1)
  total = jnp.cumsum(counted, axis=1)
  if positions is not None:
    before = jnp.pad(total, ((0, 0), (1, 0), (0, 0)))
    columns = jnp.arange(mask.shape[1])[None, :]

    def until(column: Array) -> Array:
      return jnp.take_along_axis(before, column[..., None], axis=1)

    if starts is None:
      total = total - until(columns - positions)
    else:
      segment, branch = starts
      shared = until(segment + positions - (columns - branch)) - until(segment)
      total = total - until(branch) + shared
  mean = total[..., :-1] / jnp.maximum(total[..., -1:], 1.0)
  return jnp.concatenate([mean, normed], axis=-1)


def pool_last(hidden: Array, mask: Array, pooling: str) -> Array:
  """Returns [B, F]: pooled features at the last 1 of mask [B, L]."""
  last = ops.last_index(mask)[:, None, None]
  features = pool(hidden, mask, pooling)
  return jnp.take_along_axis(features, last, axis=1)[:, 0]


def last_of(features: Array, mask: Array, place: Array) -> Array:
  """Returns [B, F]: features of packed rows at the last 1 of mask.

  Args:
    features: [R, S, F].
    mask: [B, L], 1 on at least one token of each example.
    place: [B, L] int32, the cell of R * S that holds each token.
  """
  last = ops.last_index(mask)[:, None]
  cell = jnp.take_along_axis(place, last, axis=1)[:, 0]
  return features.reshape(-1, features.shape[-1])[cell]


class ScalarHead(nn.Module):
  """w . features + b (+ a small residual MLP), float32."""

  config: Config

  @nn.compact
  def __call__(self, features: Array) -> Array:
    """Returns [..., K] scores of features [..., F]."""
    c = self.config
    features = features.astype(jnp.float32)
    width = features.shape[-1]
    score = nn.Dense(
      c.outputs,
      kernel_init=nn.initializers.normal((width + 1) ** -0.5),
      precision=jax.lax.Precision.HIGHEST,
      name="output",
    )(features)
    if c.hidden_units:
      inner = nn.tanh(nn.Dense(c.hidden_units, name="hidden")(features))
      score = score + nn.Dense(
        c.outputs,
        kernel_init=nn.initializers.zeros,
        use_bias=False,
        name="residual",
      )(inner)
    return score


def init(config: Config, width: int, key: Array) -> dict:
  """Returns head parameters for a trunk of the given width."""
  features = width * (2 if config.pooling == "mean_last" else 1)
  return ScalarHead(config).init(key, jnp.zeros((1, features)))["params"]
