"""What an update of LoRA factors computes, against theory.

Forward through all layers, backward through activations of the layers that
have factors: no gradient of a frozen matrix, and nothing below them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from rlhf_jax.algorithms import sft
from rlhf_jax.models import layers, roles, transformer
from rlhf_jax.planning import hlo
from rlhf_jax.programs import language_model, supervised, work
from rlhf_jax.types import TokenBatch

ROWS, LENGTH, TARGETS, RANK = 4, 32, 24, 8
MODEL = transformer.Config(
  vocab_size=512,
  width=128,
  n_layers=4,
  n_heads=4,
  n_kv_heads=2,
  head_dim=32,
  mlp_width=256,
  lora_rank=RANK,
  lora_scale=2.0,
)


def compiled(role):
  """Returns the compiled SFT step of a role, for abstract arrays."""

  def variables(key):
    made = transformer.init(role.model, key)
    return made | {"lora": roles.fresh_lora(role, key)}

  made = jax.eval_shape(variables, jax.random.key(0))
  params, frozen = roles.split(role, made)
  transform = optax.sgd(0.1)
  state = jax.eval_shape(
    functools.partial(supervised.initial_state, optimizer_=transform), params
  )
  step = language_model.make_update(role, sft.Config(), transform, TARGETS)
  mask = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32)
  batch = TokenBatch(jax.ShapeDtypeStruct(mask.shape, jnp.int32), mask, mask)
  return step.lower(state, frozen, batch, jax.random.key(0)).compile()


def theory(role):
  """Returns FLOPs of the products, each written out."""
  model, tokens = role.model, ROWS * LENGTH
  depth, trained = model.n_layers, model.n_layers - role.first_layer
  matrices = 2 * tokens * work.layer_weights(model)
  attention = work.attention_flops(model, ROWS, LENGTH, LENGTH)
  heads, keys = (
    model.n_heads * model.head_dim,
    model.n_kv_heads * model.head_dim,
  )
  width, inner = model.width, model.mlp_width
  ends = 2 * (width + heads) + 2 * (width + keys) + 3 * (width + inner)
  factors = 2 * tokens * RANK * ends
  entering = 2 * tokens * width * (heads + 2 * keys)  # q, k, v of the first
  entering += 2 * tokens * 3 * RANK * width
  logits = 2 * ROWS * TARGETS * model.width * model.vocab_size
  forward = depth * (matrices + attention) + trained * factors
  backward = trained * (matrices + 2 * (attention + factors)) - entering
  # The last layer has no queries and no MLP of columns that are not read.
  left = ROWS * (LENGTH - TARGETS)
  unread = 2 * 2 * left * (work.layer_weights(model) - 2 * width * keys)
  unread += 3 * work.attention_flops(model, ROWS, LENGTH - TARGETS, LENGTH)
  unread += 3 * 2 * left * RANK * (2 * (width + heads) + 3 * (width + inner))
  return forward + backward - unread + 2 * logits


def flops(role):
  return hlo.count(compiled(role).as_text(), 1, 1).flops


def test_an_update_of_factors_pays_for_no_frozen_matrix():
  role = roles.Role(MODEL, "lora")
  assert flops(role) == pytest.approx(theory(role), rel=1e-3)


def test_frozen_layers_below_the_factors_are_not_recomputed():
  """Of 4 layers 2 have factors; a layer's last product is not needed again."""
  role = roles.Role(dataclasses.replace(MODEL, remat=True), "lora", 2)
  layer = 2 * ROWS * LENGTH * work.layer_weights(MODEL)
  layer += work.attention_flops(MODEL, ROWS, LENGTH, LENGTH)
  assert 1.0 * layer < flops(role) - theory(role) < 2.0 * layer


def test_the_scale_is_put_on_the_few_columns_between_the_factors():
  """On x A B it would write every gradient a second time, scaled."""
  dense = layers.Dense(features=64, lora_rank=4, lora_scale=2.0)
  x = jnp.ones((16, 32))
  variables = dense.init(jax.random.key(0), x)

  def total(factors):
    return jnp.sum(dense.apply(variables | {"lora": factors}, x))

  step = jax.make_jaxpr(jax.grad(total))(variables["lora"])
  scaled = [e.outvars[0].aval for e in step.eqns if e.primitive.name == "mul"]
  assert {x.shape for x in scaled} == {(16, 4)}
