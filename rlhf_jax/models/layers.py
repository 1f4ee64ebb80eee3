"""What a decoder is put together from: linear maps and norms."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import products
from rlhf_jax.models import quantised
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.types import Array


class Dense(nn.Module):
  """y = x W (+ b) (+ s x A B when LoRA factors are given; Hu et al. 2021)."""

  features: int
  use_bias: bool = False
  dtype: str = "float32"
  lora_rank: int = 0
  lora_scale: float = 1.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    leading = x.shape[:-1]
    x = x.reshape(-1, width)
    init = nn.initializers.normal(width**-0.5)
    if self._is_quantised("kernel"):
      kernel = self.get_variable("params", "kernel")
    else:
      kernel = self.param("kernel", init, (width, self.features))
    whole = functools.partial(self._whole, leading=leading)
    y = self._product(x, kernel, leading)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    if self.lora_rank and self.is_initializing():
      down, up = (width, self.lora_rank), (self.lora_rank, self.features)
      self.variable(
        "lora", "lora_a", lambda: init(self.make_rng("params"), down)
      )
      self.variable("lora", "lora_b", lambda: jnp.zeros(up))
    elif (where := self._place_of_factors()) is not None:
      a = whole("lora_a", self.get_variable(where, "lora_a"))
      b = whole("lora_b", self.get_variable(where, "lora_b"))
      y = y + products.product(self.lora_scale * products.product(x, a), b)
    return y.reshape(*leading, self.features)

  def _place_of_factors(self) -> str | None:
    """Returns the collection with factors; None where there are none.

    A sampler that does not merge them has them in "params" (lora.beside).
    """
    kinds = ("lora", "params")
    return next((k for k in kinds if self.has_variable(k, "lora_a")), None)

  def _is_quantised(self, name: str) -> bool:
    """Says whether a weight is there, and of few bits."""
    if not self.has_variable("params", name):
      return False
    weight = self.get_variable("params", name)
    return isinstance(weight, quantised.Quantised)

  def _product(
    self, x: Array, kernel: Array, leading: tuple[int, ...]
  ) -> Array:
    """Returns x W; for single tokens the weight stays as it is."""
    is_alone = leading[-1] == 1 or not mesh_lib.is_split()
    path = "/".join((*self.path, "kernel"))
    if isinstance(kernel, quantised.Quantised):
      return quantised.product(x, kernel if is_alone else kernel.whole(path))
    kernel = kernel.astype(self.dtype)
    if is_alone:
      return products.product(x, kernel)
    return rules.matmul(path, x, kernel, rows=leading[0])

  def _whole(self, name: str, weight: Array, leading: tuple[int, ...]) -> Array:
    """Returns a weight in the compute dtype, gathered but for single tokens."""
    weight = weight.astype(self.dtype)
    if leading[-1] == 1 or not mesh_lib.is_split():
      return weight
    return rules.gather("/".join((*self.path, name)), weight)


class Norm(nn.Module):
  """Root-mean-square or layer normalisation, computed in float32."""

  kind: str
  epsilon: float
  offset: float = 0.0  # added to the gain

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.constant(1.0 - self.offset)
    scale = self.param("scale", init, (x.shape[-1],))
    scale = scale.astype(jnp.float32) + self.offset
    y = x.astype(jnp.float32)
    if self.kind == "layer":
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(
      jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon
    )
    y = y * scale.reshape((1,) * (y.ndim - 1) + (-1,))
    if self.kind == "layer":
      bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
      y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(x.dtype)
