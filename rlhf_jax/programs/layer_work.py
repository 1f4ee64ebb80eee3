"""FLOPs and bytes of a decoder's layers, by formula: what work.py adds up."""

from __future__ import annotations

import jax.numpy as jnp

from rlhf_jax.models import roles, transformer

FLOAT = 4  # bytes: weights, gradients and moments are float32
FEW = {"int8": 1.25, "int4": 0.6}  # bytes of a weight by models/quantised.py


def layer_weights(model: transformer.Config) -> int:
  """Returns the number of matrix weights of one layer."""
  attention = (
    model.width * model.head_dim * 2 * (model.n_heads + model.n_kv_heads)
  )
  return attention + model.width * model.mlp_width * (
    3 if model.gated_mlp else 2
  )


def forward_flops(
  model: transformer.Config, tokens: float, layers: int, logits: float
) -> float:
  """Returns FLOPs of `layers` layers on `tokens` and of `logits` rows."""
  return 2.0 * (
    tokens * layers * layer_weights(model)
    + logits * model.width * model.vocab_size
  )


def attention_flops(
  model: transformer.Config, rows: float, queries: float, keys: float
) -> float:
  """Returns FLOPs of one layer's scores and weighted sum."""
  return 4.0 * rows * queries * keys * model.n_heads * model.head_dim


def unread_flops(
  model: transformer.Config, rows: float, length: int, reads: int
) -> float:
  """Returns FLOPs of a last layer that are left out (models/transformer.py).

  Args:
    model: architecture.
    rows: of the batch.
    length: tokens of a row.
    reads: of them, those whose state is read.
  """
  is_plain = model.attention == "einsum" and model.dtype == "float32"
  if model.scan_layers or not is_plain or reads >= length:
    return 0.0
  keys = 2 * model.width * model.head_dim * model.n_kv_heads
  left = rows * (length - reads)
  return 2.0 * left * (layer_weights(model) - keys) + attention_flops(
    model, rows, length - reads, length
  )


def layer_bytes(
  model: transformer.Config, rows: float, queries: int, keys: int, tensor: int
) -> float:
  """Returns the bytes of every array that one layer makes, on one chip.

  Args:
    model: architecture.
    rows: on this chip.
    queries, keys: tokens.
    tensor: ways that heads and feed-forward width are split.
  """
  size = jnp.dtype(model.dtype).itemsize
  heads = (2 * model.n_heads + 2 * model.n_kv_heads) * model.head_dim
  inner = (3 if model.gated_mlp else 2) * model.mlp_width
  tokens = rows * queries * size
  is_blockwise = model.attention != "einsum" and queries > 1
  scores = rows * model.n_heads * queries * keys * (FLOAT + size)
  scores = 0.0 if is_blockwise else scores
  return tokens * (4 * model.width + (heads + inner) / tensor) + scores / tensor


def reads_last(role: roles.Role) -> bool:
  """Says whether a critic reads no token but those before the targets."""
  return role.head is not None and role.head.pooling == "last"
