"""One decoder-only transformer; every model family is a setting of its config.

Residual blocks with grouped-query attention, as in Llama (Touvron et al. 2023,
arXiv:2302.13971); settings turn it into its relatives: learned positions,
layer norm, norms behind or around attention and MLP, biases, a plain MLP, soft
caps, windows (architecture.py, blocks.py). How positions turn is in rotary.py.
The module is split where RLHF needs it split: `embed`, `run_layers` from any
layer to any other, `unembed`. So frozen lower layers run once per rollout, a
reward head reads a middle layer, and the sampler keeps a cache, all through the
same code.

Axes: B batch, L = T tokens, S cache slots, D width, H heads, K key heads,
G = H / K, d head width. Heads before tokens in the cache ([B, K, S, d]): on
CPU this order is several times faster than [B, S, K, d].

Left out: mixture of experts, dropout (RLHF needs the same numbers in every
forward pass, so there is none).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention, quantised, rotary
from rlhf_jax.models.architecture import Config
from rlhf_jax.models.blocks import Block, Kind, kinds, run_block
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.layers import Dense, Norm
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array


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
    if c.scan_layers:
      self.layers = nn.scan(
        nn.remat(Block, prevent_cse=False) if c.remat else Block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, nn.broadcast, 0, nn.broadcast),
        length=c.n_layers,
      )(c, c.lora_rank)
    else:
      self.layer = [
        Block(c, c.lora_rank if i >= c.lora_first_layer else 0)
        for i in range(c.n_layers)
      ]
    self.final_norm = Norm(c.norm, c.norm_epsilon, c.norm_offset)
    if not c.tie_embeddings:
      self.lm_head = Dense(c.vocab_size, dtype="float32")

  def embed(self, tokens: Array, positions: Array) -> Array:
    """Returns the residual stream [B, T, D] that enters layer 0."""
    table, path = self.embedding.embedding, "embedding/embedding"
    is_split = tokens.shape[1] > 1 and mesh_lib.is_split()
    if isinstance(table, quantised.Quantised):
      x = quantised.rows(table.whole(path) if is_split else table, tokens)
    else:
      if is_split:
        table = rules.gather(path, table, is_table=True)
      x = jnp.take(table, tokens, axis=0)
    if self.config.positions == "learned":
      x = x + self.position_embedding(positions)
    x = x.astype(self.config.dtype)
    if self.config.embedding_scale != 1.0:
      x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
    return mesh_lib.constrain_stream(x)

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
      mask: from attention.make_masks; or [B, T, S] bool with a cache of S
        slots. With a cache, a mask of the T new tokens alone means that it is
        empty: they are written and read by themselves.
      start, stop: layer range; stop None means all.
      taps: layers whose INCOMING stream is returned as well.
      cache: one LayerCache a layer (all layers), or None.
      slot: [] int32, where the cache is written.
      reads: [B, C] int32, the columns whose last stream is wanted, or None.
        Layer stop - 1 then computes keys and values of all columns and the
        rest of these alone, where layers are apart, attention is plain and
        numbers are float32. Below that a forward pass and one with gradients
        would round otherwise, and the first ratio of an update not be 1.

    Returns:
      The stream [B, T or C, D] that leaves layer stop - 1, {layer: stream
      entering it}, and the written cache.
    """
    c = self.config
    stop = c.n_layers if stop is None else stop
    tapped: dict[int, Array] = {}
    turns, of_layers = None, kinds(c)
    if c.positions == "rope":
      turns = rotary.turns(c, positions)
    if c.scan_layers:
      if (start, stop) != (0, c.n_layers) or set(taps) - {stop}:
        raise UserError(
          f"layers {start}..{stop} of {c.n_layers}, taps {taps}: scanned "
          "layers run as a whole. Set scan_layers=False to train or read a "
          "part of the layers."
        )
      stacked = Kind(*(jnp.asarray(x) for x in zip(*of_layers, strict=True)))
      x, cache = self.layers(x, turns, stacked, mask, cache, slot)
      tapped = {layer: x for layer in taps}
      return x if reads is None else ops.take_columns(x, reads), tapped, cache
    written = None if cache is None else list(cache)
    is_part = reads is not None and reads.shape[1] < x.shape[1]
    is_part &= c.attention == "einsum" and c.dtype == "float32"
    is_part &= start < stop and stop not in taps
    for i in range(start, stop):
      if i in taps:
        tapped[i] = x
      layer_cache = None if cache is None else cache[i]
      asked = reads if is_part and i == stop - 1 else None
      block, more = self.layer[i], (mask, layer_cache, slot, asked)
      run = functools.partial(block, x, turns, of_layers[i])
      if not self.is_initializing():
        run = functools.partial(
          run_block,
          c,
          block.lora_rank,
          of_layers[i],
          block.variables,
          x,
          turns,
        )
      x, layer_cache = run(*more)
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

  def unembedding(
    self, *, is_whole: bool = True, after: Array | None = None
  ) -> Array:
    """Returns [D, V] in the compute dtype: the tied embedding, or a head.

    Args:
      is_whole: gathered over "fsdp" (rules.py), for whole rows.
      after: see quantised.widen.
    """
    if self.config.tie_embeddings:
      path, weight = "embedding/embedding", self.embedding.embedding
    else:
      path = "lm_head/kernel"
      weight = self.lm_head.variables["params"]["kernel"]
    is_whole &= mesh_lib.is_split()
    if isinstance(weight, quantised.Quantised):
      weight = weight.whole(path) if is_whole else weight
      weight = quantised.widen(weight, self.config.dtype, after)
    else:
      weight = weight.astype(self.config.dtype)
      weight = rules.gather(path, weight) if is_whole else weight
    return weight.T if self.config.tie_embeddings else weight

  def unembed(self, x: Array) -> Array:
    """Returns float32 logits [..., V] of a stream that left the last layer."""
    x = self.normed(x).astype(self.config.dtype)
    if self.is_initializing() and not self.config.tie_embeddings:
      self.lm_head(x)  # creates the kernel
    logits = jnp.matmul(
      x.reshape(-1, x.shape[-1]),  # see attention.einsum on bfloat16
      self.unembedding(is_whole=x.ndim > 2, after=x),
      preferred_element_type=jnp.float32,
    ).reshape(*x.shape[:-1], -1)
    return ops.soft_cap(logits, self.config.logit_cap)

  def __call__(
    self, tokens: Array, valid_mask: Array, positions: Array | None = None
  ) -> Array:
    """Returns logits [B, T, V]; position t predicts token t + 1."""
    if positions is None:
      positions = ops.positions_from_mask(valid_mask)
    x = self.embed(tokens, positions)
    mask = attention.make_masks(self.config, valid_mask, positions)
    x, _, _ = self.run_layers(x, positions, mask)
    return self.unembed(x)


def init(config: Config, key: Array) -> dict:
  """Returns {"params": ..., "lora": ... if lora_rank} drawn from `key`."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(key, tokens, jnp.ones((1, 2)))
