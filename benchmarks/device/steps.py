"""The steps that are timed, on random weights, and what they need at least."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import decoding, generate, optimizer
from rlhf_jax.algorithms import sft
from rlhf_jax.models import roles, shapes, transformer
from rlhf_jax.programs import language_model, supervised, work
from rlhf_jax.types import PromptBatch, PyTree, TokenBatch


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of what is measured.

  models: by name, the largest last.
  dtype: compute dtype.
  products: widths of square products. copied: bytes that are read.
  rows: of a decoding batch. prompt, new: its tokens.
  training_rows, length: of a step's batch. repeats: steps that are timed.
  """

  models: dict[str, transformer.Config]
  dtype: str
  products: tuple[int, ...]
  copied: int
  rows: tuple[int, ...]
  prompt: int
  new: int
  training_rows: int
  length: int
  repeats: int


def sizes(platform: str, *, is_tiny: bool) -> Sizes:
  """Returns what is measured on a platform."""
  dtype = "float32" if platform == "cpu" else "bfloat16"
  how = dict(dtype=dtype, scan_layers=True)
  if is_tiny:
    small = transformer.Config(
      vocab_size=512,
      width=32,
      n_layers=2,
      n_heads=4,
      n_kv_heads=2,
      head_dim=8,
      mlp_width=64,
      **how,
    )
    models = {"small": small}
    return Sizes(models, dtype, (64,), 2**16, (2,), 8, 8, 2, 32, 2)
  names = {"small": "smollm2_135m", "1b": "llama32_1b"}
  models = {
    name: dataclasses.replace(shapes.named(shape), **how)
    for name, shape in names.items()
  }
  return Sizes(
    models,
    dtype,
    products=(4096, 8192),
    copied=2**31,
    rows=(8, 64, 256),
    prompt=128,
    new=128,
    training_rows=16,
    length=1024,
    repeats=4,
  )


def weights(model: transformer.Config) -> PyTree:
  """Returns random weights, in float32 as a run holds them."""
  make = functools.partial(transformer.init, model)
  return jax.jit(make)(jax.random.key(0))["params"]


def decode_seconds(
  params: PyTree, model: transformer.Config, rows: int, shape: Sizes
) -> float:
  """Returns seconds of one token of all rows; the prompts do not count."""
  config = generate.Config(max_new_tokens=shape.new)
  tokens = jnp.ones((rows, shape.prompt), jnp.int32)
  prompts = PromptBatch(
    tokens=tokens,
    valid_mask=jnp.ones(tokens.shape, jnp.float32),
    index=jnp.arange(rows, dtype=jnp.int32),
  )
  keys = generate.sample_keys(jax.random.key(1), prompts.index, 1)
  how, first = dict(model=model, config=config), jnp.int32(0)
  taken = []
  for _ in range(3):
    state = decoding.prefill(params, prompts, keys, first, pad_id=0, **how)
    jax.block_until_ready(state)
    begun = time.perf_counter()
    state = decoding.decode(params, state, jnp.int32(0), eos_ids=(-1,), **how)
    jax.block_until_ready(state)
    taken.append(time.perf_counter() - begun)
    assert int(state.answers.step.min()) == shape.new, "a row has ended"
  return min(taken[1:]) / shape.new


def token_bytes(model: transformer.Config, rows: int, shape: Sizes) -> float:
  """Returns bytes that one token of all rows must read.

  All weights once in the compute dtype, and of the cache the slots that hold
  a token, half of the new ones in the mean.
  """
  size = jnp.dtype(model.dtype).itemsize
  count = model.n_layers * work.layer_weights(model)
  count += model.width * model.vocab_size
  slot = 2 * model.n_layers * model.n_kv_heads * model.head_dim
  return size * (count + rows * slot * (shape.prompt + shape.new / 2))


def training(
  model: transformer.Config, rows: int, length: int
) -> tuple[Any, Any, TokenBatch]:
  """Returns a fresh state, the compiled SFT step and a batch for it."""
  role = roles.Role(model)
  transform = optimizer.make_optimizer(optimizer.Config(learning_rate=1e-5))
  update = language_model.make_update(role, sft.Config(), transform, None)

  def fresh(key):
    params = {"params": transformer.init(model, key)["params"]}
    return supervised.initial_state(params, transform)

  shape = (rows, length)
  tokens = jax.random.randint(jax.random.key(2), shape, 0, model.vocab_size)
  ones = jnp.ones(shape, jnp.float32)
  batch = TokenBatch(
    tokens=tokens, valid_mask=ones, loss_mask=ones.at[:, 0].set(0.0)
  )
  return jax.jit(fresh)(jax.random.key(0)), update, batch


def step_flops(model: transformer.Config, rows: int, length: int) -> float:
  """Returns FLOPs of forward and backward, recomputation left out."""
  tokens = rows * length
  forward = work.forward_flops(model, tokens, model.n_layers, tokens)
  forward += model.n_layers * work.attention_flops(model, rows, length, length)
  return 3.0 * forward
