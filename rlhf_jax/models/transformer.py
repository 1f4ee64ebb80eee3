"""One decoder-only transformer; every model family is a setting of its config.

Residual blocks with grouped-query attention, as in Llama (Touvron et al. 2023,
arXiv:2302.13971); settings turn it into its relatives: learned positions,
layer norm, norms behind or around attention and MLP, biases, a plain MLP, soft
caps. How positions turn is in rotary.py. The module is split where RLHF
needs it split: `embed`, `run_layers` from any layer to any other, `unembed`.
So frozen lower layers run once per rollout, a reward head reads a middle
layer, and the sampler keeps a cache, all through the same code.

Axes: B batch, L = T tokens, S cache slots, D width, H heads, K key heads,
G = H / K, d head width. Heads before tokens in the cache ([B, K, S, d]): on
CPU this order is several times faster than [B, S, K, d].

Left out: mixture of experts, sliding windows (a context is at most the window),
dropout (RLHF needs the same numbers in every forward pass, so there is none).
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention, rotary
from rlhf_jax.models.cache import LayerCache
from rlhf_jax.models.layers import Dense, Norm
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
  norm_offset: float = 0.0  # added to every gain of a norm (Gemma: 1)
  norm_place: str = "before"  # attention and MLP, "after" or "around" them
  is_parallel: bool = False  # attention and MLP read the same stream
  positions: str = "rope"  # "rope" or "learned"
  rope_theta: float = 10_000.0
  rotary_dim: int | None = None  # numbers of a head that turn; None for all
  rope_scaling: rotary.Scaling = rotary.Scaling()
  still_layers: tuple[int, ...] = ()  # whose heads do not turn
  local_layers: tuple[int, ...] = ()  # with a theta of their own
  local_rope_theta: float | None = None
  max_length: int = 2048  # tokens of context
  activation: str = "silu"
  gated_mlp: bool = True
  attention_bias: bool = False  # on q, k, v
  output_bias: bool = False  # on the way out of attention
  mlp_bias: bool = False
  qk_norm: str = "none"  # of queries and keys: each "head", or the "projection"
  query_scale: float | None = None  # of scores; None for head_dim**-0.5
  attention_cap: float | None = None  # c in c tanh(score / c)
  logit_cap: float | None = None  # the same of logits
  embedding_scale: float = 1.0  # of what enters layer 0
  tie_embeddings: bool = True
  family: str = "llama"  # whose names the weights have in files
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
      "norm_place": ("before", "after", "around"),
      "qk_norm": ("none", "head", "projection"),
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
    if self.positions == "rope" and self.rotary_size % 2:
      name = "head_dim" if self.rotary_dim is None else "rotary_dim"
      raise UserError(
        f"{name}={self.rotary_size}: rotary positions turn pairs of numbers, "
        "so it must be even."
      )
    if self.attention_cap is not None and self.attention != "einsum":
      raise UserError(
        f"attention={self.attention!r} with attention_cap="
        f"{self.attention_cap}: scores are capped by the plain program only. "
        "Set attention='einsum'."
      )
    if self.scan_layers and 0 < self.lora_first_layer:
      raise UserError(
        f"lora_first_layer={self.lora_first_layer} with scan_layers: scanned "
        "layers share one program. Set lora_first_layer=0 or "
        "scan_layers=False."
      )

  @property
  def rotary_size(self) -> int:
    """Numbers of a head that turn."""
    return self.head_dim if self.rotary_dim is None else self.rotary_dim


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
    kind: int | Array,
    mask: attention.Mask,
    cache: LayerCache | None,
    slot: Array | None,
  ) -> tuple[Array, LayerCache | None]:
    c = self.config
    dense = functools.partial(
      Dense, dtype=c.dtype, lora_rank=self.lora_rank, lora_scale=c.lora_scale
    )

    def heads(name: str, n: int, norm: str = "") -> Array:
      y = dense(n * c.head_dim, use_bias=c.attention_bias, name=name)(x)
      if norm and c.qk_norm == "projection":
        y = _norm(c, norm)(y)
      y = y.reshape(*y.shape[:2], n, c.head_dim)
      if norm and c.qk_norm == "head":
        y = _norm(c, norm)(y)
      return y.swapaxes(1, 2)

    query = heads("q_proj", c.n_heads, "q_norm")
    key = heads("k_proj", c.n_kv_heads, "k_norm")
    value = heads("v_proj", c.n_kv_heads)
    if turns is not None:
      angles = turns.of(kind)
      query, key = rotary.rotate(query, *angles), rotary.rotate(key, *angles)
    if c.query_scale is not None:
      query = query * jnp.asarray(c.query_scale * c.head_dim**0.5, query.dtype)
    scales = (None, None)
    if cache is not None:
      cache = cache.write(key, value, slot)
      if not attention.is_of_rows(mask, key.shape[2]):
        key, value = cache.key, cache.value
        scales = (cache.key_scale, cache.value_scale)
    mixed = attention.attend(
      c.attention, query, key, value, mask, *scales, c.attention_cap
    )
    mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1)
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
  def __call__(self, x, turns, kind, mask, cache=None, slot=None):
    c = self.config

    def before(name: str, x: Array) -> Array:
      return x if c.norm_place == "after" else _norm(c, f"{name}_norm")(x)

    def after(name: str, x: Array) -> Array:
      if c.norm_place == "before":
        return x
      return _norm(c, f"{name}_post_norm")(x)

    mixed, cache = Attention(c, self.lora_rank, name="attention")(
      before("attention", x), turns, kind, mask, cache, slot
    )
    mixed = after("attention", mixed)
    if not c.is_parallel:
      x = mesh_lib.constrain_stream(x + mixed)
    y = Mlp(c, self.lora_rank, name="mlp")(before("mlp", x))
    x = x + after("mlp", y)
    if c.is_parallel:
      x = x + mixed
    return mesh_lib.constrain_stream(x), cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_block(config: Config, lora_rank: int, variables: dict, *arguments):
  """Returns what a Block returns.

  Layers of one shape are traced, differentiated and lowered once for all, in
  whatever program they stand; compilers put their bodies back in place.

  Args:
    config, lora_rank: of the Block.
    variables: of this layer.
    *arguments: of its call.
  """
  run = Block(config, lora_rank, parent=None).apply
  if config.remat:
    run = jax.checkpoint(run)
  return run(variables, *arguments)


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
    table = self.embedding.embedding
    if tokens.shape[1] > 1 and mesh_lib.is_split():
      table = rules.gather("embedding/embedding", table, is_table=True)
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
  ) -> tuple[Array, dict[int, Array], list[LayerCache] | None]:
    """Runs layers start..stop - 1 over the residual stream.

    Args:
      x: [B, T, D], the stream that enters layer `start`.
      positions: [B, T] int32.
      mask: from attention.make_mask; or [B, T, S] bool with a cache of S
        slots. With a cache, a mask of the T new tokens alone means that it is
        empty: they are written and read by themselves.
      start, stop: layer range; stop None means all.
      taps: layers whose INCOMING stream is returned as well.
      cache: one LayerCache a layer (all layers), or None.
      slot: [] int32, where the cache is written.

    Returns:
      The stream that leaves layer stop - 1, {layer: stream entering it}, and
      the written cache.
    """
    c = self.config
    stop = c.n_layers if stop is None else stop
    tapped: dict[int, Array] = {}
    turns, kinds = None, (0,) * c.n_layers
    if c.positions == "rope":
      turns = rotary.turns(c, positions)
      _, kinds = rotary.tables(c)
    if c.scan_layers:
      if (start, stop) != (0, c.n_layers) or set(taps) - {stop}:
        raise UserError(
          f"layers {start}..{stop} of {c.n_layers}, taps {taps}: scanned "
          "layers run as a whole. Set scan_layers=False to train or read a "
          "part of the layers."
        )
      x, cache = self.layers(x, turns, jnp.asarray(kinds), mask, cache, slot)
      return x, {layer: x for layer in taps}, cache
    written = None if cache is None else list(cache)
    for i in range(start, stop):
      if i in taps:
        tapped[i] = x
      layer_cache = None if cache is None else cache[i]
      run = self.layer[i]
      if not self.is_initializing():
        run = functools.partial(_run_block, c, run.lora_rank, run.variables)
      x, layer_cache = run(x, turns, kinds[i], mask, layer_cache, slot)
      if written is not None:
        written[i] = layer_cache
    if stop in taps:
      tapped[stop] = x
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
    logits = jnp.matmul(
      x,
      self.unembedding(is_whole=x.ndim > 2),
      preferred_element_type=jnp.float32,
    )
    return ops.soft_cap(logits, self.config.logit_cap)

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
