"""A critic on the policy's trunk: one pass gives what two losses need.

Against gradients of each loss alone, by a plain function over whole logits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms import accumulate
from rlhf_jax.algorithms.policy_gradient import packing, ppo, update
from rlhf_jax.models import (
  heads,
  outputs,
  policy_value,
  roles,
  transformer,
  trees,
)
from rlhf_jax.models.rows import Rows
from rlhf_jax.programs import work
from rlhf_jax.types import FINISH_EOS, Rollout, TrainState

MODEL = transformer.Config(
  vocab_size=19,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=16,
)
N, L, NEW, TEMPERATURE = 4, 9, 5, 0.7
CONFIG = ppo.Config(value_coefficient=0.7, value_clip=0.3)
NETWORK = transformer.Transformer(MODEL)


def noise(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rollout():
  """Returns four answers of 1 to 4 tokens, padded on both sides."""
  valid, mask = np.zeros((2, N, L), np.float32)
  for n, (start, new) in enumerate(((0, 4), (1, 2), (2, 1), (0, 3))):
    valid[n, start : 4 + new] = 1.0
    mask[n, 4 : 4 + new] = 1.0
  tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (N, L))
  fields = {
    name: jnp.asarray(noise(seed, N, L) * mask)
    for seed, name in enumerate(("advantages", "returns", "values"))
  }
  return Rollout(
    tokens=jnp.asarray(tokens),
    valid_mask=jnp.asarray(valid),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=jnp.asarray((0.2 * noise(5, N, L) - 3.0) * mask),
    reference_logprobs=jnp.asarray(mask),
    finish_reason=jnp.full((N,), FINISH_EOS),
    score=jnp.zeros((N,)),
    **fields,
  )


def cast(mode):
  """Returns (policy, value, trainable, frozen) with a head that is not 0."""
  model, first = MODEL, 0
  if mode == "lora":
    model, first = dataclasses.replace(MODEL, lora_rank=2), 1
  policy = roles.Role(model, trainable=mode, first_layer=first)
  value = dataclasses.replace(policy, head=heads.Config())
  variables = {"params": transformer.init(MODEL, jax.random.key(0))["params"]}
  if mode == "lora":
    factors = roles.fresh_lora(policy, jax.random.key(1))
    variables["lora"] = jax.tree.map(
      lambda x: x + 0.1 * noise(x.size, *x.shape), factors
    )
  trains, frozen = roles.split(policy, variables)
  head = {"kernel": jnp.asarray(noise(9, MODEL.width, 1)), "bias": jnp.ones(1)}
  params = {"policy": trains, "value": {"head": {"output": head}}}
  return policy, value, params, {"policy": frozen, "value": {}}


def plain_losses(params, frozen, data, policy):
  """Returns both losses of PPO, each of a forward pass without any trick."""
  variables = trees.merge(params["policy"], frozen["policy"])
  network, mask = policy.network, data.response_mask
  positions = ops.positions_from_mask(data.valid_mask)
  logits = network.apply(variables, data.tokens, data.valid_mask)
  before = jax.nn.log_softmax(logits / TEMPERATURE)[:, :-1]
  log_p = jnp.take_along_axis(before, data.tokens[:, 1:, None], 2)[..., 0]
  log_p = jnp.pad(log_p, ((0, 0), (1, 0)))
  rho = jnp.exp(log_p - data.behaviour_logprobs)
  gain = data.advantages
  losses = jnp.maximum(-gain * rho, -gain * jnp.clip(rho, 0.8, 1.2))
  x = network.apply(variables, data.tokens, positions, method="embed")
  seen = Rows.of(data).mask(policy.model)
  x, _, _ = network.apply(variables, x, positions, seen, method="run_layers")
  x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
  head = params["value"]["head"]["output"]
  values = (x @ head["kernel"])[:, :-1, 0] + head["bias"][0]
  values = jnp.pad(values, ((0, 0), (1, 0)))
  moved = data.values + jnp.clip(values - data.values, -0.3, 0.3)
  errors = [(v - data.returns) ** 2 for v in (values, moved)]
  value_losses = 0.5 * jnp.maximum(*errors)
  return [
    jnp.sum(jnp.where(mask > 0, x, 0.0)) / jnp.sum(mask)
    for x in (losses, value_losses)
  ]


def gradient(data, actors, stops_gradient=False, microbatches=1):
  """Returns the loss and gradient of one forward and one backward pass."""
  policy, value, params, frozen = actors
  apply = functools.partial(
    policy_value.shared_trunk,
    policy=policy,
    value=value,
    temperature=TEMPERATURE,
    targets=2 * NEW,
    is_unembedding_frozen=False,
    stops_gradient=stops_gradient,
  )

  def contribution(params, rows, frozen, counts):
    return ppo.loss(*apply(params, frozen, rows), rows, CONFIG, counts)

  grads, loss, _ = accumulate.accumulate(
    contribution,
    params,
    data,
    microbatches,
    frozen,
    ppo.denominators(data, CONFIG),
  )
  return loss, grads


def assert_close(found, expected):
  """Equal to 1e-5 of the largest entry of each leaf."""
  found = trees.flatten(found)
  for path, leaf in trees.flatten(expected).items():
    size = np.abs(leaf).max()
    assert size > 1e-4, path
    np.testing.assert_allclose(
      found[path] / size, leaf / size, atol=1e-5, err_msg=path
    )


@pytest.fixture(scope="module", params=["full", "lora"])
def expected(request):
  """Returns (actors, policy loss and gradient, value loss and gradient)."""
  actors = cast(request.param)
  policy, _, params, frozen = actors

  def one(which):
    return jax.jit(
      jax.value_and_grad(
        lambda p: plain_losses(p, frozen, rollout(), policy)[which]
      )
    )(params)

  return actors, one(0), one(1)


@pytest.mark.parametrize("is_packed", [False, True])
def test_one_backward_pass_is_the_sum_of_two_gradients(expected, is_packed):
  """Also where answers share rows, and those are two microbatches."""
  actors, (policy_loss, policy_grads), (value_loss, value_grads) = expected
  data = rollout()
  if is_packed:
    layout = packing.plan(data, packing.Shape(16, 10, 4, 1))
    assert layout.cell.shape[0] == 2
    data = packing.pack_rollout(data, layout)
  parts = 2 if is_packed else 1
  data = data.replace(score=None, finish_reason=None)
  loss, grads = jax.jit(
    functools.partial(gradient, actors=actors, microbatches=parts)
  )(data)
  np.testing.assert_allclose(loss, policy_loss + 0.7 * value_loss, rtol=1e-5)
  both = jax.tree.map(lambda p, v: p + 0.7 * v, policy_grads, value_grads)
  assert_close(grads, both)


def test_a_stopped_gradient_of_the_values_trains_the_head_alone(expected):
  actors, (policy_loss, policy_grads), (value_loss, value_grads) = expected
  data = rollout().replace(score=None, finish_reason=None)
  loss, grads = jax.jit(
    functools.partial(gradient, actors=actors, stops_gradient=True)
  )(data)
  np.testing.assert_allclose(loss, policy_loss + 0.7 * value_loss, rtol=1e-5)
  assert_close(grads["policy"], policy_grads["policy"])
  of_head = jax.tree.map(lambda v: 0.7 * v, value_grads["value"])
  assert_close(grads["value"], of_head)


def test_values_are_those_of_the_critic_that_the_judge_reads(expected):
  """Whole variables in the role of the critic give the same values."""
  actors, *_ = expected
  policy, value, params, frozen = actors
  data = rollout()
  merged = trees.merge(params["policy"], frozen["policy"])

  @jax.jit
  def values(data):
    _, _, found = policy_value.shared_trunk(
      params,
      frozen,
      data,
      policy=policy,
      value=value,
      temperature=TEMPERATURE,
      targets=NEW,
      is_unembedding_frozen=True,
      stops_gradient=False,
    )
    whole = trees.merge(params["value"], merged)
    return found, outputs.values(value, whole, Rows.of(data))

  found, alone = (x * data.response_mask for x in values(data))
  assert float(jnp.std(found)) > 0.1
  np.testing.assert_allclose(found, alone, atol=1e-6)


def flops(is_shared):
  """Returns FLOPs of a compiled update of full weights."""
  policy, value, params, frozen = cast("full")
  apply = functools.partial(policy_value.shared_trunk, stops_gradient=False)
  if not is_shared:
    params["value"] = params["value"] | params["policy"]
    apply = policy_value.policy_and_value
    trains, rest = roles.split(value, params["value"])
    params["value"], frozen = trains, frozen | {"value": rest}
  optimizer = optax.sgd(1e-3)
  zero = jnp.int32(0)
  state = TrainState(zero, params, optimizer.init(params), zero)
  run = functools.partial(
    update.update,
    algorithm=ppo,
    algorithm_config=CONFIG,
    config=update.Config(epochs=1, minibatches=1),
    apply=functools.partial(
      apply,
      policy=policy,
      value=value,
      temperature=TEMPERATURE,
      targets=NEW,
      is_unembedding_frozen=False,
    ),
    optimizer=optimizer,
  )
  lowered = jax.jit(run).lower(state, frozen, rollout(), jax.random.key(0))
  return lowered.compile().cost_analysis()["flops"]


def test_an_update_costs_one_pass_through_one_trunk():
  """By the compiler's count; the formula says what a second trunk adds."""
  trunk = work.forward_flops(MODEL, N * L, MODEL.n_layers, 0)
  trunk += MODEL.n_layers * work.attention_flops(MODEL, N, L, L)
  logits = work.forward_flops(MODEL, 0, 0, N * NEW)
  expected = (trunk + logits) / (2 * trunk + logits)
  found = flops(True) / flops(False)
  assert found < 1.05 * expected
