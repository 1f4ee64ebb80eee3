"""PPO on problems whose optimum is known: p_ref exp(r / beta) / Z.

One prompt token and one or more response tokens, a table of logits as the
policy, one number per position as the critic, and the package's own shaping,
advantages and update in between. METHODS annex A1 and A6.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import kl_control, ppo, shaping, update
from rlhf_jax.types import Rollout, TrainState
from tests import plain

SHAPING = shaping.Config(clip=None, kl_target=3.0, kl_horizon=2_000.0)
UPDATE = update.Config(epochs=2, minibatches=1)
PPO = ppo.Config()


def apply(params, frozen, rollout):
  """Tables: logits [T, V] and values [T], after one prompt token."""
  del frozen
  logits = jnp.pad(params["policy"], ((1, 0), (0, 0)))[None]
  logits = jnp.broadcast_to(logits, (*rollout.tokens.shape, logits.shape[-1]))
  values = jnp.broadcast_to(
    jnp.pad(params["value"], (1, 0))[None], rollout.tokens.shape
  )
  logprobs = plain.logprobs_of_logits(logits, rollout.tokens)
  return logprobs, ops.entropy(logits), values


def sample(params, reference, reward, key, count):
  """A rollout of `count` answers; the score is the sum of rewards [T, V]."""
  length, _ = reward.shape
  answer = jax.random.categorical(key, params["policy"], shape=(count, length))
  tokens = jnp.pad(answer, ((0, 0), (1, 0)))
  mask = jnp.ones((count, length + 1)).at[:, 0].set(0.0)
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(count, jnp.int32),
    reference_logprobs=mask,
    score=reward[jnp.arange(length)[None], answer].sum(-1),
  )
  behaviour, _, values = apply(params, {}, rollout)
  fixed, _, _ = apply(params | {"policy": reference}, {}, rollout)
  return rollout.replace(
    behaviour_logprobs=behaviour, reference_logprobs=fixed, values=values
  )


@functools.partial(
  jax.jit,
  static_argnames=("steps", "count", "rate", "is_targeted", "shape"),
)
def train(
  reward,
  reference,
  beta,
  key,
  *,
  steps,
  count,
  rate,
  is_targeted=False,
  shape=SHAPING,
):
  """Returns params and the rollout metrics of `steps` updates."""
  optimizer = optax.adam(
    optax.cosine_decay_schedule(rate, steps * UPDATE.epochs)
  )
  params = {"policy": reference, "value": jnp.zeros(len(reward))}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))

  def one(carry, key):
    state, moments, beta = carry
    sample_key, update_key = jax.random.split(key)
    rollout = sample(state.params, reference, reward, sample_key, count)
    rollout, moments, metrics = shaping.shape_rewards(
      rollout, moments, beta, shape
    )
    rollout = ppo.advantages(rollout, PPO)
    state, step_metrics = update.update(
      state,
      {},
      rollout,
      update_key,
      algorithm=ppo,
      algorithm_config=PPO,
      config=UPDATE,
      apply=apply,
      optimizer=optimizer,
    )
    if is_targeted:
      beta = kl_control.update_kl_coefficient(
        beta, metrics["rollout/kl_k1_sum"], count, SHAPING
      )
    return (state, moments, beta), metrics | step_metrics

  carry = (state, shaping.init_moments(), beta)
  (state, _, _), metrics = jax.lax.scan(
    one, carry, jax.random.split(key, steps)
  )
  return state.params, metrics


def bandit(seed, arms=16):
  rng = np.random.default_rng(seed)
  reward = jnp.asarray(rng.normal(size=(1, arms)), jnp.float32)
  reference = jnp.asarray(rng.normal(0, 0.7, size=(1, arms)), jnp.float32)
  return reward, reference


def kl_to_optimum(params, reward, reference, beta):
  """Returns KL(p || p_ref exp(r / beta) / Z) in nats."""
  log_p = jax.nn.log_softmax(params["policy"][0])
  optimum = jax.nn.log_softmax(
    jax.nn.log_softmax(reference[0]) + reward[0] / beta
  )
  return float(jnp.sum(jnp.exp(log_p) * (log_p - optimum)))


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize(
  "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a1_ppo_reaches_the_kl_regularised_optimum(seed, beta):
  reward, reference = bandit(seed)
  settings = {"steps": 500, "count": 1024, "rate": 0.05}
  key = jax.random.key(seed)
  params, metrics = train(reward, reference, beta, key, **settings)
  start = kl_to_optimum({"policy": reference}, reward, reference, beta)
  assert start > 0.1
  assert kl_to_optimum(params, reward, reference, beta) < 5e-3
  assert float(metrics["ppo/first_ratio_error"].max()) < 1e-5
  # Control: with the sign of the KL flipped it must miss by far.
  flipped, _ = train(reward, reference, -beta, key, **settings)
  assert kl_to_optimum(flipped, reward, reference, beta) > 0.5


@pytest.mark.parametrize(
  "whitening", ["scale", pytest.param("keep_mean", marks=pytest.mark.slow)]
)
def test_whitened_rewards_of_one_length_move_no_optimum(whitening):
  """Score and KL are divided by the same number."""
  reward, reference = bandit(0)
  shape = dataclasses.replace(SHAPING, whitening=whitening)
  params, metrics = train(
    4.0 * reward,
    reference,
    2.0,
    jax.random.key(0),
    steps=500,
    count=1024,
    rate=0.05,
    shape=shape,
  )
  assert float(metrics["reward/deviation"][0]) > 2.0  # it does divide
  assert kl_to_optimum(params, 4.0 * reward, reference, 2.0) < 5e-3


@pytest.mark.slow
def test_a6_adaptive_kl_settles_at_its_target():
  rng = np.random.default_rng(0)
  reward = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
  _, metrics = train(
    reward,
    jnp.zeros((8, 16)),
    0.15,
    jax.random.key(0),
    steps=900,
    count=256,
    rate=0.03,
    is_targeted=True,
  )
  kl = np.asarray(metrics["rollout/kl_k1_sum"])
  settled = kl[600:]
  beta = np.asarray(metrics["ppo/kl_coefficient"])
  assert abs(settled.mean() - 3.0) < 0.3
  assert settled.std() < 1.0
  assert beta[600:].mean() > 2 * beta[0]
