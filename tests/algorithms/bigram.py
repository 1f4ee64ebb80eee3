"""A bigram table as the policy, its rollout, and updates from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.types import Rollout, TrainState
from tests import plain

N, L, V, D = 16, 6, 7, 3
TEMPERATURE = 0.6
LENGTHS = np.array([1, 4, 2, 3, 4, 1, 2, 3] * 2)
KEY = jax.random.key(3)
PPO = ppo.Config()
DEFAULT = update.Config(epochs=2, minibatches=2)


def parameters():
  rng = np.random.default_rng(10)
  return {
    "policy": {"table": jnp.asarray(rng.normal(size=(V, V)), jnp.float32)},
    "value": {"w": jnp.asarray(rng.normal(size=(D,)), jnp.float32)},
  }


def policy_logits(params, tokens):
  before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
  return params["policy"]["table"][before]


def apply(params, frozen, rollout, temperature=TEMPERATURE):
  logits = policy_logits(params, rollout.tokens) / temperature
  values = rollout.hidden["value"] @ params["value"]["w"]
  values = values + frozen["shift"]
  logprobs = plain.logprobs_of_logits(logits, rollout.tokens)
  return logprobs, ops.entropy(logits), values


@functools.cache
def make_rollout(padding=0, poison=0.0):
  """Answers sampled from the table at TEMPERATURE; junk on the padding."""
  rng = np.random.default_rng(11)
  columns = np.arange(L + padding)[None] - 2
  mask = (columns >= 0) & (columns < LENGTHS[:, None])
  tokens = rng.integers(0, V, (N, L))
  tokens = np.pad(tokens, ((0, 0), (0, padding)))
  hidden = np.pad(
    rng.normal(size=(N, L, D)), ((0, 0), (0, padding), (0, 0))
  ).astype(np.float32)

  def field(x):
    x = np.pad(x, ((0, 0), (0, padding)))
    return jnp.asarray(np.where(mask, x, poison), jnp.float32)

  rollout = Rollout(
    tokens=jnp.asarray(tokens),
    valid_mask=jnp.asarray(columns < LENGTHS[:, None], jnp.float32),
    response_mask=jnp.asarray(mask, jnp.float32),
    behaviour_logprobs=jnp.zeros(mask.shape),
    finish_reason=jnp.zeros(N, jnp.int32),
    reference_logprobs=jnp.zeros(mask.shape),
    score=jnp.asarray(rng.normal(size=N), jnp.float32),
    rewards=field(rng.normal(size=(N, L))),
    hidden={"value": jnp.asarray(hidden)},
  )
  logprobs, _, values = apply(parameters(), FROZEN, rollout)
  rollout = rollout.replace(
    behaviour_logprobs=field(np.asarray(logprobs)[:, :L]),
    values=field(np.asarray(values)[:, :L]),
  )
  return ppo.advantages(rollout, PPO)


def make_state(optimizer, params=None):
  params = parameters() if params is None else params
  return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))


FROZEN = {"shift": jnp.float32(0.0)}


@functools.cache
def compiled(algorithm_config, config, rate, apply, **kwargs):
  return jax.jit(
    functools.partial(
      update.update,
      algorithm=ppo,
      algorithm_config=algorithm_config,
      config=config,
      apply=apply,
      optimizer=optax.sgd(rate),
      **kwargs,
    ),
    donate_argnums=0,
  )


def run(
  rollout,
  *,
  algorithm_config=PPO,
  config=DEFAULT,
  rate=0.5,
  frozen=FROZEN,
  ptx_batch=None,
  apply=apply,
  **kwargs,
):
  step = compiled(algorithm_config, config, rate, apply, **kwargs)
  return step(make_state(optax.sgd(rate)), frozen, rollout, KEY, ptx_batch)


def assert_same(a, b, rtol=1e-4, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )
