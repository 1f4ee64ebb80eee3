"""The residual blocks of a decoder: attention, and a network for each token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention, rotary
from rlhf_jax.models.architecture import Config
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.layers import Dense, Norm
from rlhf_jax.models.recompute import recomputed
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import Array

ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


class Kind(NamedTuple):
  """How a layer differs from others: of all layers, [n_layers] arrays.

  turns: index into rotary.Turns.
  is_local: whether it reads a window only.
  """

  turns: int | Array
  is_local: bool | Array


def kinds(config: Config) -> list[Kind]:
  """Returns the kind of each layer."""
  turned = (0,) * config.n_layers
  if config.positions == "rope":
    _, turned = rotary.tables(config)
  return [
    Kind(index, layer in config.local_layers)
    for layer, index in enumerate(turned)
  ]


def _norm(config: Config, name: str) -> Norm:
  return Norm(config.norm, config.norm_epsilon, config.norm_offset, name=name)


class Attention(nn.Module):
  """Grouped-query attention, with or without a cache."""

  config: Config
  lora_rank: int

  @nn.compact
  def __call__(
    self,
    x: Array,
    turns: rotary.Turns | None,
    kind: Kind,
    mask: attention.Mask | attention.Masks,
    cache: LayerCache | None,
    slot: Array | None,
    asking: tuple[Array, rotary.Turns | None] | None = None,
  ) -> tuple[Array, LayerCache | None]:
    """Returns the mixture for x, or for `asking`: some of x, and its turns."""
    c = self.config
    asked, asked_turns = (x, turns) if asking is None else asking
    dense = functools.partial(
      Dense, dtype=c.dtype, lora_rank=self.lora_rank, lora_scale=c.lora_scale
    )

    def heads(name: str, n: int, x: Array, norm: str = "") -> Array:
      y = dense(n * c.head_dim, use_bias=c.attention_bias, name=name)(x)
      if norm and c.qk_norm == "projection":
        y = _norm(c, norm)(y)
      y = y.reshape(*y.shape[:2], n, c.head_dim)
      if norm and c.qk_norm == "head":
        y = _norm(c, norm)(y)
      return y.swapaxes(1, 2)

    query = heads("q_proj", c.n_heads, asked, "q_norm")
    key = heads("k_proj", c.n_kv_heads, x, "k_norm")
    value = heads("v_proj", c.n_kv_heads, x)
    if turns is not None:
      query = rotary.rotate(query, *asked_turns.of(kind.turns))
      key = rotary.rotate(key, *turns.of(kind.turns))
    if c.query_scale is not None:
      query = query * jnp.asarray(c.query_scale * c.head_dim**0.5, query.dtype)
    scales = (None, None)
    if cache is not None:
      cache = cache.write(key, value, slot)
      if not attention.is_of_rows(mask, key.shape[2]):
        key, value = cache.key, cache.value
        scales = (cache.key_scale, cache.value_scale)
    mixed = attention.of_layer(
      mask,
      kind.is_local,
      lambda mask: attention.attend(
        c.attention, query, key, value, mask, *scales, c.attention_cap
      ),
    )
    mixed = mixed.swapaxes(1, 2).reshape(*asked.shape[:2], -1)
    return dense(c.width, use_bias=c.output_bias, name="o_proj")(mixed), cache


class Mlp(nn.Module):
  """Gated or plain two-layer network."""

  config: Config
  lora_rank: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    dense = functools.partial(
      Dense,
      use_bias=c.mlp_bias,
      dtype=c.dtype,
      lora_rank=self.lora_rank,
      lora_scale=c.lora_scale,
    )
    activate = ACTIVATIONS[c.activation]
    up = dense(c.mlp_width, name="up_proj")(x)
    if c.gated_mlp:
      up = activate(dense(c.mlp_width, name="gate_proj")(x)) * up
    else:
      up = activate(up)
    return dense(c.width, name="down_proj")(up)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x); norms as the config says."""

  config: Config
  lora_rank: int = 0

  @nn.compact
  def __call__(self, x, turns, kind, mask, cache=None, slot=None, reads=None):
    """Returns the stream, at columns `reads` [B, C] or everywhere."""
    c = self.config

    def before(name: str) -> Callable[[Array], Array]:
      return (
        (lambda x: x) if c.norm_place == "after" else _norm(c, f"{name}_norm")
      )

    def after(name: str, x: Array) -> Array:
      if c.norm_place == "before":
        return x
      return _norm(c, f"{name}_post_norm")(x)

    norm, asking = before("attention"), None
    normed = norm(x)
    if reads is not None:
      x = ops.take_columns(x, reads)
      asking = norm(x), None if turns is None else turns.take(reads)
      mask = jax.tree.map(lambda m: ops.take_columns(m, reads), mask)
    mixed, cache = Attention(c, self.lora_rank, name="attention")(
      normed, turns, kind, mask, cache, slot, asking
    )
    mixed = after("attention", mixed)
    if not c.is_parallel:
      x = mesh_lib.constrain_stream(x + mixed)
    y = Mlp(c, self.lora_rank, name="mlp")(before("mlp")(x))
    x = x + after("mlp", y)
    if c.is_parallel:
      x = x + mixed
    return mesh_lib.constrain_stream(x), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_block(
  config: Config,
  lora_rank: int,
  kind: Kind,
  variables: dict,
  x: Array,
  turns: rotary.Turns | None,
  *arguments,
):
  """Returns what a Block returns.

  Layers of one shape are traced, differentiated and lowered once for all, in
  whatever program they stand; compilers put their bodies back in place.

  Args:
    config, lora_rank: of the Block.
    kind: of this layer.
    variables: of this layer.
    x, turns, *arguments: of its call, but for the kind.
  """

  def run(variables: dict, x: Array, turns: rotary.Turns | None, *arguments):
    block = Block(config, lora_rank, parent=None)
    return block.apply(variables, x, turns, kind, *arguments)

  if config.remat:
    run = recomputed(run)
  return run(variables, x, turns, *arguments)
