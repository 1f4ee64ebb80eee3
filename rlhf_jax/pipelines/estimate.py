"""How long a run should take: FLOPs of each phase over a measured rate.

Counted: matrix products of the layers and of the unembedding. The rate is
measured at start by one matrix product; `EFFICIENCY` is what the phases reach
of it (attention, sampling, padding, compilation are the rest). It is a
forecast for the reader, and nothing depends on it.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from rlhf_jax.models import roles, transformer

EFFICIENCY = 0.5


def matmul_rate() -> float:
  """Returns FLOP/s of a float32 matrix product on the default device."""
  size = 1024
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  begun, count = time.perf_counter(), 0
  while time.perf_counter() - begun < 0.2:
    product(x).block_until_ready()
    count += 1
  return count * 2.0 * size**3 / (time.perf_counter() - begun)


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


def training_flops(role: roles.Role, tokens: float, logits: float) -> float:
  """Returns FLOPs of one forward and backward pass above the entrance.

  Full training costs a gradient for weights and one for activations, LoRA
  nearly only the latter.
  """
  passes = 3.0 if role.trainable == "full" else 2.0
  return passes * forward_flops(
    role.model, tokens, role.stop - role.entrance, logits
  )


def seconds(flops: float, rate: float) -> float:
  """Returns the forecast for so many FLOPs at a measured rate."""
  return flops / (rate * EFFICIENCY)
