"""Rotary positions: which angle each pair of numbers of a head turns by.

  angle_t,j = t f_j,   f_j = theta^(-2 j / r),   j = 0 .. r / 2 - 1

of Su et al. (2021, arXiv:2104.09864); r numbers of a head turn, the others
stay. Models with a longer context than they were first trained on scale the
frequencies, and some of them cosine and sine too:

  linear   f_j / s (Chen et al. 2023, arXiv:2306.15595)
  llama3   slow ones / s, fast ones as they are, between both a blend
           (Llama Team 2024, arXiv:2407.21783)
  yarn     the same by the turns that a pair makes in the first context, and
           cosine and sine times 0.1 ln(s) + 1 (Peng et al. 2023,
           arXiv:2309.00071)
  factors  f_j / s_j, a factor for each (Ding et al. 2024, arXiv:2402.13753)

Layers may differ: some do not turn at all (f = 0), some have a theta of their
own. `Turns` holds cosine and sine of each kind of layer, once for all layers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How frequencies differ from theta^(-2 j / r); see the module."""

  kind: str = "none"  # none, linear, llama3, yarn or factors
  factor: float = 1.0  # s
  first_length: float = 0.0  # tokens of the context before it was made longer
  low: float = 1.0  # llama3: turns in it of pairs that are scaled as a whole;
  # yarn: the same, rounded to whole pairs
  high: float = 4.0  # turns in it of pairs that stay
  is_rounded: bool = True  # yarn: the border pairs are whole numbers
  factors: tuple[float, ...] = ()  # s_j
  magnitude: float = 1.0  # times cosine and sine


@flax.struct.dataclass
class Turns:
  """Cosine and sine of some positions, [K, B, 1, T, r / 2] float32."""

  cos: Array
  sin: Array

  def take(self, columns: Array) -> Turns:
    """Returns those of some columns [B, C] int32."""
    at = columns[None, :, None, :, None]
    return Turns(
      jnp.take_along_axis(self.cos, at, axis=3),
      jnp.take_along_axis(self.sin, at, axis=3),
    )

  def of(self, kind: int | Array) -> tuple[Array, Array]:
    """Returns both of one of the K kinds of layers."""
    if self.cos.shape[0] == 1:
      return self.cos[0], self.sin[0]
    return self.cos[kind], self.sin[kind]


def frequencies(
  theta: float, size: int, scaling: Scaling = Scaling()
) -> np.ndarray:
  """Returns f, [size / 2] float64, in radians a token.

  Args:
    theta: base.
    size: r, even.
    scaling: of the model.
  """
  plain = theta ** (-np.arange(0, size, 2) / size)
  if scaling.kind == "none":
    return plain
  if scaling.kind == "factors":
    return plain / np.asarray(scaling.factors)
  scaled = plain / scaling.factor
  if scaling.kind == "linear":
    return scaled
  turns = scaling.first_length * plain / (2 * math.pi)
  if scaling.kind == "llama3":
    kept = (turns - scaling.low) / (scaling.high - scaling.low)
  else:
    kept = 1 - _ramp(theta, size, scaling)
  kept = np.clip(kept, 0.0, 1.0)
  return (1 - kept) * scaled + kept * plain


def _ramp(theta: float, size: int, scaling: Scaling) -> np.ndarray:
  """Returns how far each pair is between the last kept and first scaled."""

  def pair_of(turns: float) -> float:
    length = scaling.first_length / (turns * 2 * math.pi)
    return size * math.log(length) / (2 * math.log(theta))

  first, last = pair_of(scaling.high), pair_of(scaling.low)
  if scaling.is_rounded:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  last = last + 0.001 if first == last else last
  return (np.arange(size // 2) - first) / (last - first)


def tables(config: Any) -> tuple[np.ndarray, tuple[int, ...]]:
  """Returns the frequencies of each kind of layer, and the kind of each layer.

  Args:
    config: transformer.Config.

  Returns:
    [K, r / 2] float64, and an index below K a layer.
  """
  size = config.rotary_size
  usual = frequencies(config.rope_theta, size, config.rope_scaling)
  rows = {"usual": usual}
  kinds = []
  for layer in range(config.n_layers):
    kind = "usual"
    if layer in config.still_layers:
      kind, rows["still"] = "still", np.zeros_like(usual)
    elif layer in config.local_layers and config.local_rope_theta is not None:
      kind = "local"
      rows["local"] = frequencies(config.local_rope_theta, size)
    kinds.append(kind)
  used = [name for name in rows if name in kinds]
  table = np.stack([rows[name] for name in used])
  return table, tuple(used.index(kind) for kind in kinds)


def turns(config: Any, positions: Array) -> Turns:
  """Returns cosine and sine of all kinds of layers.

  Args:
    config: transformer.Config.
    positions: [B, T] int32.
  """
  table, _ = tables(config)
  angle = (
    positions.astype(jnp.float32)[None, :, None, :, None]
    * jnp.asarray(table, jnp.float32)[:, None, None, None, :]
  )
  magnitude = config.rope_scaling.magnitude
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if magnitude == 1.0:
    return Turns(cos, sin)
  return Turns(cos * magnitude, sin * magnitude)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Returns x with pairs of its numbers turned.

  Args:
    x: [B, heads, T, d]; of its first r numbers the two halves are the pairs
      (the layout of Hugging Face checkpoints), the others stay.
    cos, sin: [B, 1, T, r / 2] float32.
  """
  half = cos.shape[-1]
  still = x[..., 2 * half :]
  a, b = jnp.split(x[..., : 2 * half].astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  turned = turned.astype(x.dtype)
  if not still.shape[-1]:
    return turned
  return jnp.concatenate([turned, still], -1)
