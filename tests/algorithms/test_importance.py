"""Truncated importance weights, by hand and where reuse must not bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  importance,
  rloo,
  shaping,
  update,
)
from rlhf_jax.types import Rollout, TrainState
from tests import plain

V = 3


def make(mask, behaviour):
  mask = jnp.asarray(mask, jnp.float32)
  return Rollout(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    response_mask=mask,
    behaviour_logprobs=jnp.asarray(behaviour, jnp.float32),
    finish_reason=jnp.zeros(len(mask), jnp.int32),
    reference_logprobs=jnp.zeros(mask.shape),
    score=jnp.zeros(len(mask)),
  )


def test_an_answer_has_the_product_of_its_tokens_ratios():
  """Ratios 2 x 3 and 0.5, then padding; cut at 4."""
  mask = [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
  rollout = make(mask, np.log([[9.0, 2.0, 3.0], [9.0, 0.5, 9.0]]))
  old = jnp.zeros((2, 3))
  config = importance.Config(cap=4.0, level="sequence")
  found, row = importance.weigh(rollout, old, config)
  np.testing.assert_allclose(
    found.importance_weights, [[0, 4, 4], [0, 0.5, 0]], rtol=1e-5
  )
  np.testing.assert_allclose(row["rollout/sampler_capped"], 0.5)
  np.testing.assert_allclose(row["rollout/sampler_weight_mean"], 2.25)
  effective = 4.5**2 / (2 * (4.0**2 + 0.5**2))
  np.testing.assert_allclose(row["rollout/sampler_effective"], effective)
  token, row = importance.weigh(rollout, old, importance.Config(cap=4.0))
  np.testing.assert_allclose(
    token.importance_weights, [[0, 2, 3], [0, 0.5, 0]], rtol=1e-5
  )
  effective = 5.5**2 / (3 * (4.0 + 9.0 + 0.25))
  np.testing.assert_allclose(
    row["rollout/sampler_effective"], effective, rtol=1e-5
  )


def test_the_level_is_one_of_two():
  with pytest.raises(ValueError, match="level='answer'"):
    importance.Config(level="answer")


def all_answers():
  """Every answer of two tokens once: exact under a uniform sampler."""
  pairs = np.stack(np.meshgrid(*[np.arange(V)] * 2, indexing="ij"), -1)
  return pairs.reshape(-1, 2)


def logprobs_of(params, tokens):
  """Of p(a) p(b | a), tokens [N, 3] after one of the prompt."""
  first = jax.nn.log_softmax(params["first"])[tokens[:, 1]]
  then = jax.nn.log_softmax(params["then"])[tokens[:, 1], tokens[:, 2]]
  return jnp.stack([jnp.zeros_like(first), first, then], axis=1)


def test_weights_of_answers_give_the_gradient_of_the_policy_itself():
  """sum_y p(y) A(y) grad log p(y), from uniform samples; tokens' do not."""
  rng = np.random.default_rng(0)
  params = {
    "first": jnp.asarray(rng.normal(size=V), jnp.float32),
    "then": jnp.asarray(rng.normal(size=(V, V)), jnp.float32),
  }
  answers = all_answers()
  tokens = jnp.asarray(np.pad(answers, ((0, 0), (1, 0))))
  advantage = jnp.asarray(rng.normal(size=len(answers)), jnp.float32)
  mask = jnp.asarray(np.tile([0.0, 1.0, 1.0], (len(answers), 1)))
  now = logprobs_of(params, tokens) * mask
  rollout = make(mask, now)
  uniform = mask * float(-np.log(V))

  def gradient(level, cap):
    config = importance.Config(cap=cap, level=level)
    found, _ = importance.weigh(rollout, uniform, config)
    weights = found.importance_weights
    weights = mask if weights is None else weights

    def loss(p):
      each = logprobs_of(p, tokens) * weights * mask * advantage[:, None]
      return jnp.sum(each) / len(answers)

    return jax.tree.leaves(jax.grad(loss)(params))

  def exact(p):
    total = jnp.sum(logprobs_of(p, tokens) * mask, axis=1)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(total)) * advantage * total)

  expected = jax.tree.leaves(jax.grad(exact)(params))
  sizes = {}
  for level, cap in (("sequence", 1e6), ("token", 1e6), ("token", None)):
    found = gradient(level, cap)
    sizes[level, cap] = max(
      float(np.max(np.abs(a - b))) for a, b in zip(found, expected, strict=True)
    )
  assert sizes["sequence", 1e6] < 1e-6
  assert sizes["token", 1e6] > 0.02 and sizes["token", None] > 0.02


ARMS, GROUP = 8, 4
RLOO = rloo.Config(
  group_size=GROUP, kl_loss="k2", kl_loss_coefficient=1.0, objective="ppo"
)
SHAPE = shaping.Config(clip=None, kl_coefficient=0.0, kl_controller="fixed")


def apply(params, frozen, rollout):
  del frozen
  logits = jnp.broadcast_to(params["policy"], (*rollout.tokens.shape, ARMS))
  logprobs = plain.logprobs_of_logits(logits, rollout.tokens)
  return logprobs, ops.entropy(logits), None


def stored(key, reference, reward, count):
  """A rollout of the reference, which the policy never samples again."""
  arm = jax.random.categorical(key, reference, shape=(count, 1))
  tokens = jnp.pad(arm, ((0, 0), (1, 0)))
  mask = jnp.ones((count, 2)).at[:, 0].set(0.0)
  logprobs = jax.nn.log_softmax(reference)[tokens] * mask
  return make(mask, logprobs).replace(
    tokens=tokens, reference_logprobs=logprobs, score=reward[arm[:, 0]]
  )


@functools.partial(jax.jit, static_argnames=("cap", "steps"))
def learn(reference, reward, key, *, cap, steps=600):
  """Returns logits after steps on 16 stored rollouts, drawn again and again."""
  optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))
  params = {"policy": reference}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  keys = jax.random.split(jax.random.key(1), 16)
  store = jax.vmap(lambda k: stored(k, reference, reward, 2048))(keys)

  def one(state, key):
    number = jax.random.randint(key, (), 0, 16)
    rollout = jax.tree.map(lambda x: x[number], store)
    sampled = rollout.behaviour_logprobs
    now, _, _ = apply(state.params, {}, rollout)
    rollout = rollout.replace(behaviour_logprobs=now * rollout.response_mask)
    config = importance.Config(cap=cap, level="sequence")
    rollout, row = importance.weigh(rollout, sampled, config)
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), jnp.float32(0.0), SHAPE
    )
    rollout = rloo.advantages(rollout, RLOO)
    state, _ = update.update(
      state,
      {},
      rollout,
      key,
      algorithm=rloo,
      algorithm_config=RLOO,
      config=update.Config(epochs=1, minibatches=1),
      apply=apply,
      optimizer=optimizer,
    )
    return state, row.get("rollout/sampler_effective", jnp.float32(1.0))

  state, effective = jax.lax.scan(one, state, jax.random.split(key, steps))
  return state.params["policy"], effective


def test_old_rollouts_reach_the_optimum_with_weights_and_miss_it_without():
  """p_ref exp(r / beta) / Z out of samples of p_ref alone."""
  rng = np.random.default_rng(3)
  reward = jnp.asarray(rng.normal(size=ARMS), jnp.float32)
  reference = jnp.asarray(rng.normal(0, 0.5, size=ARMS), jnp.float32)
  optimum = jax.nn.softmax(jax.nn.log_softmax(reference) + reward)

  def distance(cap):
    logits, effective = learn(reference, reward, jax.random.key(0), cap=cap)
    found = jax.nn.softmax(logits)
    return 0.5 * float(jnp.sum(jnp.abs(found - optimum))), effective

  start = 0.5 * float(jnp.sum(jnp.abs(jax.nn.softmax(reference) - optimum)))
  weighed, effective = distance(1e6)
  assert start > 0.2 and weighed < 0.02
  # n_eff / n = 1 / E[w^2], the weights being p* / p_ref at the end.
  expected = 1.0 / jnp.sum(optimum**2 / jax.nn.softmax(reference))
  np.testing.assert_allclose(effective[-50:].mean(), expected, rtol=0.1)
  assert float(effective[0]) == 1.0
  assert distance(None)[0] > 0.05  # control: without weights it is biased
