"""One decoder-only transformer; every model family is a setting of its config.

Pre-norm residual blocks with grouped-query attention, as in Llama (Touvron et
al. 2023, arXiv:2302.13971); settings turn it into its relatives (learned
positions, layer norm, biases, a plain MLP). The module is split where RLHF
needs it split: `embed`, `run_layers` from any layer to any other, `unembed`.
So frozen lower layers run once per rollout, a reward head reads a middle
layer, and the sampler keeps a cache, all through the same code.

Axes: B batch, L = T tokens, S cache slots, D width, H heads, K key heads,
G = H / K, d head width. Heads before tokens in the cache ([B, K, S, d]): on
CPU this order is several times faster than [B, S, K, d].

Left out: mixture of experts, sliding windows, dropout (RLHF needs the same
numbers in every forward pass, so there is none).
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.layers import Dense, Norm, rotate
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array

ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Architecture. Two configs that differ only below the line share weights."""

  vocab_size: int
  width: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  mlp_width: int
  norm: str = "rms"  # "rms" or "layer" (with bias)
  norm_epsilon: float = 1e-5
  positions: str = "rope"  # "rope" or "learned"
  rope_theta: float = 10_000.0
  max_length: int = 2048  # tokens of context
  activation: str = "silu"
  gated_mlp: bool = True
  attention_bias: bool = False  # on q, k, v
  tie_embeddings: bool = True
  # --- how it runs ---
  empty_rows: tuple[tuple[int, int], ...] = ()  # (start, end) of rows of the
  # embedding that have no token: never sampled, and of probability 0
  dtype: str = "float32"  # compute dtype; weights are stored in float32
  attention: str = "einsum"  # the program, see attention.py
  scan_layers: bool = False  # one compiled block for deep models on TPU
  remat: bool = False  # recompute blocks in the backward pass
  lora_rank: int = 0  # factors created by init; 0 for none
  lora_scale: float = 1.0  # multiplies A B
  lora_first_layer: int = 0  # layers below carry no factors

  def __post_init__(self) -> None:
    choices = {
      "norm": ("rms", "layer"),
      "positions": ("rope", "learned"),
      "activation": tuple(ACTIVATIONS),
      "dtype": ("float32", "bfloat16"),
      "attention": attention.KINDS,
    }
    for field, allowed in choices.items():
      if getattr(self, field) not in allowed:
        raise UserError(
          f"{field}={getattr(self, field)!r}: must be one of {allowed}."
        )
    if self.n_heads % self.n_kv_heads:
      raise UserError(
        f"n_heads={self.n_heads} is not a multiple of n_kv_heads="
        f"{self.n_kv_heads}: every key head serves the same number of queries."
      )
    if self.positions == "rope" and self.head_dim % 2:
      raise UserError(
        f"head_dim={self.head_dim}: rotary positions turn pairs of numbers, so "
        "it must be even."
      )
    if self.scan_layers and 0 < self.lora_first_layer:
      raise UserError(
        f"lora_first_layer={self.lora_first_layer} with scan_layers: scanned "
        "layers share one program. Set lora_first_layer=0 or "
        "scan_layers=False."
      )


class Attention(nn.Module):
  """Grouped-query attention, with or without a cache."""

  config: Config
  lora_rank: int

  @nn.compact
  def __call__(
    self,
    x: Array,
    positions: Array,
    mask: attention.Mask,
    cache: LayerCache | None,
    slot: Array | None,
    asking: tuple[Array, Array] | None = None,
  ) -> tuple[Array, LayerCache | None]:
    """Returns the mixture for x, or for `asking`: some of x, and positions."""
    c = self.config
    asked, asked_at = (x, positions) if asking is None else asking
    dense = functools.partial(
      Dense, dtype=c.dtype, lora_rank=self.lora_rank, lora_scale=c.lora_scale
    )

    def heads(name: str, n: int, x: Array) -> Array:
      y = dense(n * c.head_dim, use_bias=c.attention_bias, name=name)(x)
      return y.reshape(*y.shape[:2], n, c.head_dim).swapaxes(1, 2)

    query = heads("q_proj", c.n_heads, asked)
    key = heads("k_proj", c.n_kv_heads, x)
    value = heads("v_proj", c.n_kv_heads, x)
    if c.positions == "rope":
      query = rotate(query, asked_at, c.rope_theta)
      key = rotate(key, positions, c.rope_theta)
    if cache is not None:
      cache = cache.write(key, value, slot)
      if not isinstance(mask, attention.Segments):  # which are of whole rows
        key, value = cache.key, cache.value
    mixed = attention.attend(c.attention, query, key, value, mask)
    mixed = mixed.swapaxes(1, 2).reshape(*asked.shape[:2], -1)
    return dense(c.width, name="o_proj")(mixed), cache


class Mlp(nn.Module):
  """Gated or plain two-layer network."""

  config: Config
  lora_rank: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    dense = functools.partial(
      Dense, dtype=c.dtype, lora_rank=self.lora_rank, lora_scale=c.lora_scale
    )
    activate = ACTIVATIONS[c.activation]
    up = dense(c.mlp_width, name="up_proj")(x)
    if c.gated_mlp:
      up = activate(dense(c.mlp_width, name="gate_proj")(x)) * up
    else:
      up = activate(up)
    return dense(c.width, name="down_proj")(up)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  config: Config
  lora_rank: int = 0

  @nn.compact
  def __call__(self, x, positions, mask, cache=None, slot=None, reads=None):
    """Returns the stream, at columns `reads` [B, C] or everywhere."""
    c = self.config
    norm = functools.partial(Norm, c.norm, c.norm_epsilon)
    attention_norm, asking = norm(name="attention_norm"), None
    normed = attention_norm(x)
    if reads is not None:
      x = ops.take_columns(x, reads)
      where = jnp.take_along_axis(positions, reads, axis=1)
      asking = attention_norm(x), where
      mask = ops.take_columns(mask, reads)
    mixed, cache = Attention(c, self.lora_rank, name="attention")(
      normed, positions, mask, cache, slot, asking
    )
    x = mesh_lib.constrain_stream(x + mixed)
    x = x + Mlp(c, self.lora_rank, name="mlp")(norm(name="mlp_norm")(x))
    return mesh_lib.constrain_stream(x), cache


class Transformer(nn.Module):
  """The decoder. Parameters: embedding, layer_i (or layers), final_norm."""

  config: Config

  def setup(self) -> None:
    c = self.config
    self.embedding = nn.Embed(
      c.vocab_size, c.width, embedding_init=nn.initializers.normal(0.02)
    )
    if c.positions == "learned":
      self.position_embedding = nn.Embed(
        c.max_length, c.width, embedding_init=nn.initializers.normal(0.02)
      )
    block = Block
    if c.remat:
      block = nn.remat(Block, prevent_cse=not c.scan_layers)
    if c.scan_layers:
      self.layers = nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
        length=c.n_layers,
      )(c, c.lora_rank)
    else:
      self.layer = [
        block(c, c.lora_rank if i >= c.lora_first_layer else 0)
        for i in range(c.n_layers)
      ]
    self.final_norm = Norm(c.norm, c.norm_epsilon)
    if not c.tie_embeddings:
      self.lm_head = Dense(c.vocab_size, dtype="float32")

  def embed(self, tokens: Array, positions: Array) -> Array:
    """Returns the residual stream [B, T, D] that enters layer 0."""
    table = self.embedding.embedding
    if tokens.shape[1] > 1 and mesh_lib.is_split():
      table = rules.gather("embedding/embedding", table, is_table=True)
    x = jnp.take(table, tokens, axis=0)
    if self.config.positions == "learned":
      x = x + self.position_embedding(positions)
    return mesh_lib.constrain_stream(x.astype(self.config.dtype))

  def run_layers(
    self,
    x: Array,
    positions: Array,
    mask: attention.Mask,
    *,
    start: int = 0,
    stop: int | None = None,
    taps: tuple[int, ...] = (),
    cache: list[LayerCache] | None = None,
    slot: Array | None = None,
    reads: Array | None = None,
  ) -> tuple[Array, dict[int, Array], list[LayerCache] | None]:
    """Runs layers start..stop - 1 over the residual stream.

    Args:
      x: [B, T, D], the stream that enters layer `start`.
      positions: [B, T] int32.
      mask: from attention.make_mask; or [B, T, S] bool with a cache of S
        slots (segments: T new rows in an empty cache, read by themselves).
      start, stop: layer range; stop None means all.
      taps: layers whose INCOMING stream is returned as well.
      cache: one LayerCache a layer (all layers), or None.
      slot: [] int32, where the cache is written.
      reads: [B, C] int32, the columns whose last stream is wanted, or None.
        Layer stop - 1 then computes keys and values of all columns and the
        rest of these alone, where layers are apart and attention is plain.

    Returns:
      The stream [B, T or C, D] that leaves layer stop - 1, {layer: stream
      entering it}, and the written cache.
    """
    c = self.config
    stop = c.n_layers if stop is None else stop
    tapped: dict[int, Array] = {}
    if c.scan_layers:
      if (start, stop) != (0, c.n_layers) or set(taps) - {stop}:
        raise UserError(
          f"layers {start}..{stop} of {c.n_layers}, taps {taps}: scanned "
          "layers run as a whole. Set scan_layers=False to train or read a "
          "part of the layers."
        )
      x, cache = self.layers(x, positions, mask, cache, slot)
      tapped = {layer: x for layer in taps}
      return x if reads is None else ops.take_columns(x, reads), tapped, cache
    written = None if cache is None else list(cache)
    is_part = reads is not None and reads.shape[1] < x.shape[1]
    is_part &= c.attention == "einsum" and start < stop and stop not in taps
    for i in range(start, stop):
      if i in taps:
        tapped[i] = x
      layer_cache = None if cache is None else cache[i]
      asked = reads if is_part and i == stop - 1 else None
      x, layer_cache = self.layer[i](
        x, positions, mask, layer_cache, slot, asked
      )
      if written is not None:
        written[i] = layer_cache
    if stop in taps:
      tapped[stop] = x
    if reads is not None and not is_part:
      x = ops.take_columns(x, reads)
    return x, tapped, written

  def normed(self, x: Array) -> Array:
    """Returns final_norm(x), what the unembedding reads."""
    return self.final_norm(x)

  def unembedding(self, *, is_whole: bool = True) -> Array:
    """Returns [D, V] in the compute dtype: the tied embedding, or a head.

    Args:
      is_whole: gathered over "fsdp" (rules.py), for whole rows.
    """
    if self.config.tie_embeddings:
      path, weight = "embedding/embedding", self.embedding.embedding
    else:
      path = "lm_head/kernel"
      weight = self.lm_head.variables["params"]["kernel"]
    weight = weight.astype(self.config.dtype)
    if is_whole and mesh_lib.is_split():
      weight = rules.gather(path, weight)
    return weight.T if self.config.tie_embeddings else weight

  def unembed(self, x: Array) -> Array:
    """Returns float32 logits [..., V] of a stream that left the last layer."""
    x = self.normed(x).astype(self.config.dtype)
    if self.is_initializing() and not self.config.tie_embeddings:
      self.lm_head(x)  # creates the kernel
    return jnp.matmul(
      x,
      self.unembedding(is_whole=x.ndim > 2),
      preferred_element_type=jnp.float32,
    )

  def __call__(
    self, tokens: Array, valid_mask: Array, positions: Array | None = None
  ) -> Array:
    """Returns logits [B, T, V]; position t predicts token t + 1."""
    if positions is None:
      positions = ops.positions_from_mask(valid_mask)
    x = self.embed(tokens, positions)
    mask = attention.make_mask(self.config.attention, valid_mask)
    x, _, _ = self.run_layers(x, positions, mask)
    return self.unembed(x)


def init(config: Config, key: Array) -> dict:
  """Returns {"params": ..., "lora": ... if lora_rank} drawn from `key`."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(key, tokens, jnp.ones((1, 2)))
