"""Every family of methods on a bandit: the policy is a table of logits.

One prompt token, one answer token of K arms, known rewards. The package's own
losses and updates train from samples; reward and KL of what comes out are sums
over arms, exact. All functions have lanes: problems side by side.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import ops
from rlhf_jax.algorithms import best_of_n, bond, sft
from rlhf_jax.algorithms.policy_gradient import ppo, shaping
from rlhf_jax.algorithms.policy_gradient import update as policy_update
from rlhf_jax.algorithms.preference import dpo
from rlhf_jax.algorithms.preference import update as preference_update
from rlhf_jax.types import (
  Array,
  PreferenceBatch,
  PyTree,
  Rollout,
  TokenBatch,
  TrainState,
)

SHAPING = shaping.Config(clip=None)
EPOCHS = policy_update.Config(epochs=1, minibatches=1)
RATE = 0.05
ANSWERS = 1_024  # of a rollout, and prompts of a round
REFERENCES = 64  # reference samples that stand for a quantile


def log_softmax(x: np.ndarray) -> np.ndarray:
  """Returns log softmax over the last axis, float64."""
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def problem(seed: int, arms: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns rewards [K], mean 0 and deviation 1 under p_ref, and log p_ref."""
  rng = np.random.default_rng(seed)
  reward = rng.normal(size=arms)
  log_ref = log_softmax(rng.normal(0.0, 0.7, size=arms))
  p = np.exp(log_ref)
  reward = reward - p @ reward
  return reward / np.sqrt(p @ reward**2), log_ref


def _logprobs(logits: Array, tokens: Array) -> Array:
  """Returns log p of arms `tokens`; the table is the same everywhere."""
  return jax.nn.log_softmax(logits)[tokens]


def _drawn(logits: Array, key: Array, *shape: int) -> Array:
  """Returns arms of a table, by inversion: one uniform number each."""
  cumulative = jnp.cumsum(jax.nn.softmax(logits))
  arm = jnp.searchsorted(cumulative, jax.random.uniform(key, shape))
  return jnp.minimum(arm, len(logits) - 1)


def _mask(count: int) -> Array:
  return jnp.tile(jnp.array([[0.0, 1.0]]), (count, 1))


def _state(params: PyTree, optimizer: Any) -> TrainState:
  start = optimizer.init(params)
  return TrainState(jnp.int32(0), params, start, jnp.int32(0))


# -- policy gradients -------------------------------------------------------


def _apply_policy(params: PyTree, frozen: PyTree, rows: Rollout) -> tuple:
  del frozen
  logits = params["policy"]
  spread = jnp.broadcast_to(logits, (*rows.tokens.shape, len(logits)))
  values = None
  if "value" in params:
    values = jnp.broadcast_to(params["value"], rows.tokens.shape)
  return _logprobs(logits, rows.tokens), ops.entropy(spread), values


def _rollout(params: PyTree, reward: Array, log_ref: Array, key: Array):
  """Returns ANSWERS judged answers; column 0 is the prompt."""
  arm = _drawn(params["policy"], key, ANSWERS)
  tokens, mask = jnp.stack([jnp.zeros_like(arm), arm], 1), _mask(ANSWERS)
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=_logprobs(params["policy"], tokens),
    finish_reason=jnp.zeros(ANSWERS, jnp.int32),
    reference_logprobs=log_ref[tokens],
    score=reward[arm],
  )
  return rollout.replace(values=_apply_policy(params, {}, rollout)[2])


@functools.partial(jax.jit, static_argnames=("module", "config", "steps"))
@functools.partial(jax.vmap, in_axes=(None, None, 0, 0, 0, 0, None))
def policy_gradient(
  module: ModuleType,
  config: Any,
  reward: Array,
  log_ref: Array,
  beta: Array,
  seed: Array,
  steps: int,
) -> Array:
  """Returns [N, K] log p of N lanes after `steps` rollouts from p_ref.

  Args:
    module, config: of a method.
    reward, log_ref: [N, K].
    beta: [N] of the KL in the reward; 0 where the method's loss has one.
    seed: [N].
    steps: of Adam, cosine to 0.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
  params = {"policy": log_ref}
  if module is ppo:
    params["value"] = jnp.zeros(())

  def one(state: TrainState, key: Array) -> tuple[TrainState, None]:
    rollout = _rollout(state.params, reward, log_ref, key)
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), beta, SHAPING
    )
    state, _ = policy_update.update(
      state,
      {},
      module.advantages(rollout, config),
      key,
      algorithm=module,
      algorithm_config=config,
      config=EPOCHS,
      apply=_apply_policy,
      optimizer=optimizer,
    )
    return state, None

  keys = jax.random.split(jax.random.key(seed), steps)
  state, _ = jax.lax.scan(one, _state(params, optimizer), keys)
  return jax.nn.log_softmax(state.params["policy"])


# -- comparisons ------------------------------------------------------------


def comparisons(
  reward: np.ndarray, log_ref: np.ndarray, count: int, seed: int
) -> np.ndarray:
  """Returns [K, K], how often i was preferred to j, of pairs from p_ref.

  Labels are Bradley-Terry's on the reward; an arm against itself says nothing
  and is left out.

  Args:
    reward, log_ref: [K].
    count: pairs, those left out included.
    seed: of them.
  """
  rng = np.random.default_rng(seed)
  arms = len(reward)
  pairs = rng.choice(arms, (count, 2), p=np.exp(log_ref))
  pairs = pairs[pairs[:, 0] != pairs[:, 1]]
  p = 1.0 / (1.0 + np.exp(reward[pairs[:, 1]] - reward[pairs[:, 0]]))
  is_first = rng.random(len(pairs)) < p
  won = np.where(is_first[:, None], pairs, pairs[:, ::-1])
  wins = np.zeros((arms, arms))
  np.add.at(wins, (won[:, 0], won[:, 1]), 1.0)
  return wins


def learnt_reward(
  wins: np.ndarray, log_ref: np.ndarray, decay: float = 1.0
) -> np.ndarray:
  """Returns [K] rewards learnt from comparisons, mean 0 under p_ref.

  Bradley-Terry by gradient descent, with a Gaussian prior: an arm that nobody
  compared has the mean.

  Args:
    wins: from `comparisons`.
    log_ref: [K].
    decay: precision of the prior.
  """
  score, met = np.zeros(len(wins)), wins + wins.T
  rate = 1.0 / (met.sum(1) / 4.0 + decay)
  for _ in range(500):
    p = 1.0 / (1.0 + np.exp(score[None, :] - score[:, None]))
    score = score + 0.9 * rate * ((wins - met * p).sum(1) - decay * score)
  return score - np.exp(log_ref) @ score


def preference_batch(wins: np.ndarray, log_ref: np.ndarray) -> PreferenceBatch:
  """Returns comparisons as rows, each weighted by how often it was made."""
  i, j = (x.ravel() for x in np.indices(wins.shape))
  arms, weight = np.stack([i, j], axis=1), wins.ravel()
  mask = np.zeros((*arms.shape, 2), np.float32)
  mask[..., 1] = 1.0
  reference = np.stack([np.zeros(arms.shape), log_ref[arms]], axis=-1)
  return PreferenceBatch(
    tokens=jnp.asarray(np.stack([0 * arms, arms], axis=-1), jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    loss_mask=jnp.asarray(mask),
    label=jnp.ones(len(arms), jnp.float32),
    weight=jnp.asarray(weight / weight.mean(), jnp.float32),
    reference_logprobs=jnp.asarray(reference, jnp.float32),
  )


def _apply_pairs(params: PyTree, frozen: PyTree, batch: PreferenceBatch):
  del frozen
  return _logprobs(params["logits"], batch.tokens)


@functools.partial(jax.jit, static_argnames=("beta", "steps"))
@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
def preferred(
  batch: PreferenceBatch, log_ref: Array, beta: float, steps: int
) -> Array:
  """Returns [N, K] log p of DPO on whole samples of comparisons.

  Args:
    batch: of N lanes, stacked.
    log_ref: [N, K].
    beta: of DPO.
    steps: of Adam, cosine to 0.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

  def one(state: TrainState, _: None) -> tuple[TrainState, None]:
    return preference_update.update(
      state,
      {},
      batch,
      jax.random.key(0),
      algorithm=dpo,
      algorithm_config=dpo.Config(beta=beta),
      config=preference_update.Config(),
      apply=_apply_pairs,
      optimizer=optimizer,
    )[0], None

  state, _ = jax.lax.scan(
    one, _state({"logits": log_ref}, optimizer), None, length=steps
  )
  return jax.nn.log_softmax(state.params["logits"])


# -- selection --------------------------------------------------------------


def _apply_text(
  params: PyTree, frozen: PyTree, batch: TokenBatch, weights: Array
):
  del frozen
  logprobs = _logprobs(params, batch.tokens)
  spread = jnp.broadcast_to(params, (*batch.tokens.shape, len(params)))
  kept = jnp.where(weights > 0, logprobs, 0.0)
  return jnp.sum(weights * kept), logprobs, ops.entropy(spread)


@functools.partial(jax.jit, static_argnames=("rounds", "best_of", "steps"))
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None, None))
def rejection(
  reward: Array, log_ref: Array, seed: Array, rounds: int, best_of: int, steps
) -> Array:
  """Returns [N, rounds, K] log p: keep the best, imitate it, repeat (RAFT).

  Args:
    reward, log_ref: [N, K].
    seed: [N].
    rounds: of ANSWERS prompts.
    best_of: answers to each of them.
    steps: of imitation in a round.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(2.0 * RATE, steps))

  def one_round(logits: Array, key: Array) -> tuple[Array, Array]:
    drawn = _drawn(logits, key, ANSWERS, best_of)
    chosen = best_of_n.select_best(reward[drawn])[:, None]
    winner = jnp.take_along_axis(drawn, chosen, axis=1)[:, 0]
    batch = TokenBatch(
      tokens=jnp.stack([jnp.zeros_like(winner), winner], axis=1),
      valid_mask=jnp.ones((ANSWERS, 2)),
      loss_mask=_mask(ANSWERS),
    )

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
      return sft.update(
        state,
        {},
        batch,
        key,
        config=sft.Config(),
        apply=_apply_text,
        optimizer=optimizer,
      )[0], None

    state, _ = jax.lax.scan(step, _state(logits, optimizer), None, length=steps)
    return state.params, jax.nn.log_softmax(state.params)

  keys = jax.random.split(jax.random.key(seed), rounds)
  return jax.lax.scan(one_round, log_ref, keys)[1]


@functools.partial(jax.jit, static_argnames=("best_of", "steps"))
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
def bonded(
  reward: Array, log_ref: Array, seed: Array, best_of: int, steps: int
) -> Array:
  """Returns [N, K] log p of BOND, quantiles from REFERENCES samples.

  Args:
    reward, log_ref: [N, K].
    seed: [N].
    best_of: whose distribution is distilled.
    steps: of Adam, cosine to 0.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
  config, mask = bond.Config(), jnp.ones((ANSWERS, 1))

  def loss(logits: Array, best: Array, own: Array, ratio: Array) -> Array:
    log_p = jax.nn.log_softmax(logits)
    return bond.loss(
      log_p[best][:, None],
      mask,
      log_p[own][:, None],
      mask,
      log_ref[own][:, None],
      ratio,
      config,
    )[0]

  def one(carry: tuple, key: Array) -> tuple[tuple, None]:
    logits, moments = carry
    keys = jax.random.split(key, 3)
    own = _drawn(logits, keys[0], ANSWERS)
    drawn = _drawn(log_ref, keys[1], ANSWERS, best_of)
    others = _drawn(log_ref, keys[2], ANSWERS, REFERENCES)
    chosen = best_of_n.select_best(reward[drawn])[:, None]
    best = jnp.take_along_axis(drawn, chosen, axis=1)[:, 0]
    at_most = bond.log_quantile(reward[own], reward[others])
    ratio = bond.log_best_of_n_ratio(at_most, best_of)
    gradient = jax.grad(loss)(logits, best, own, ratio)
    updates, moments = optimizer.update(gradient, moments)
    return (optax.apply_updates(logits, updates), moments), None

  keys = jax.random.split(jax.random.key(seed), steps)
  carry, _ = jax.lax.scan(one, (log_ref, optimizer.init(log_ref)), keys)
  return jax.nn.log_softmax(carry[0])


def exact_best_of_n(
  reward: np.ndarray, log_ref: np.ndarray, n: int
) -> np.ndarray:
  """Returns [K] the probabilities of best of n, exact (METHODS 7.1).

  Equal scores share what their level wins.

  Args:
    reward, log_ref: [K].
    n: samples.
  """
  p = np.exp(np.asarray(log_ref, np.float64))
  _, level = np.unique(reward, return_inverse=True)
  mass = np.bincount(level, weights=p)
  up_to = np.minimum(np.cumsum(mass) / mass.sum(), 1.0)
  up_to[-1] = 1.0
  below = np.concatenate([[0.0], up_to[:-1]])
  return (p / mass[level]) * (up_to**n - below**n)[level]
