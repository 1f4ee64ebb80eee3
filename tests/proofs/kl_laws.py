"""The KL controller ends at its target; score gained is sqrt(2 KL).

  python -m tests.proofs.kl_laws

prints one line per claim, the worst of seeds 0, 1 and 2, and fails (exit code
1) where a distance exceeds its tolerance or a control does not miss.

Answers of T = 12 tokens of V = 16, a table of logits for each position, a
score that adds over positions; RLOO with k1 in the reward (METHODS 3.5, 13,
annex A2a, A6, A9).

  adaptive KL  exact KL of the last third of 900 rollouts against its target,
               from a coefficient of 0.15. Control: a controller that is told
               the KL per token. The gain of the controller is Ziegler's,
               256 answers over a horizon of 5,120; at 2,000 it oscillates by 1
               to 3 nats about its target, because Adam's momentum lags
  exact tilt   p_ref exp(s r), r of deviation 1 under p_ref, enumerated over 6
               tokens of 4: E r = sqrt(2) sqrt(KL) for small s, the slope being
               the mean of 48 problems. Control: scores of deviation 1.1
  rloo         the same slope of trained policies, from the metrics of the
               package's rollouts. Control: its KL per token
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  kl_control,
  rloo,
  shaping,
  update,
)
from rlhf_jax.types import Metrics, Rollout, TrainState
from tests import plain
from tests.proofs.fixed_points import kl, log_softmax
from tests.proofs.rows import Row, show

TOKENS, WORDS = 12, 16
SEEDS = (0, 1, 2)
ANSWERS = 256  # a rollout
UPDATE = update.Config(epochs=1, minibatches=1)
RLOO = rloo.Config(group_size=4)


def problem(seed: int) -> np.ndarray:
  """Returns [T, V] scores whose sum has mean 0, deviation 1 under p_ref."""
  score = np.random.default_rng(seed).normal(size=(TOKENS, WORDS))
  score -= score.mean(axis=1, keepdims=True)
  return (score / np.sqrt(np.sum(np.mean(score**2, axis=1)))).astype(np.float32)


def apply(params, frozen, rollout: Rollout):
  """Tables: logits [T, V] after one prompt token; p_ref is uniform."""
  del frozen
  logits = jnp.pad(params["policy"], ((1, 0), (0, 0)))[None]
  logits = jnp.broadcast_to(logits, (*rollout.tokens.shape, WORDS))
  logprobs = plain.logprobs_of_logits(logits, rollout.tokens)
  return logprobs, ops.entropy(logits), None


def sample(params, score, key, count: int) -> Rollout:
  """Returns `count` judged answers."""
  cumulative = jnp.cumsum(jax.nn.softmax(params["policy"])[:, :-1], axis=1)
  uniform = jax.random.uniform(key, (count, TOKENS, 1))
  answer = jnp.sum(uniform > cumulative[None], axis=-1)
  tokens = jnp.pad(answer, ((0, 0), (1, 0)))
  mask = jnp.ones((count, TOKENS + 1)).at[:, 0].set(0.0)
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(count, jnp.int32),
    reference_logprobs=-math.log(WORDS) * mask,
    score=score[jnp.arange(TOKENS)[None], answer].sum(-1),
  )
  return rollout.replace(behaviour_logprobs=apply(params, {}, rollout)[0])


def exact_kl(params) -> jax.Array:
  """Returns KL(p || p_ref) of whole answers, nats."""
  log_p = jax.nn.log_softmax(params["policy"])
  return jnp.sum(jnp.exp(log_p) * (log_p + math.log(WORDS)))


@functools.partial(
  jax.jit, static_argnames=("config", "steps", "count", "is_per_token")
)
@functools.partial(jax.vmap, in_axes=(0, None, 0, None, None, None, None))
def train(score, beta, seed, config, steps, count, is_per_token):
  """Trains from p_ref.

  Returns:
    the policy, and exact KL and coefficient before each update [steps].
  """
  rate = 0.05
  if config.kl_controller == "fixed":
    rate = optax.cosine_decay_schedule(rate, steps)
  optimizer = optax.adam(rate)
  params = {"policy": jnp.zeros((TOKENS, WORDS))}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))

  def one(carry, key):
    state, beta = carry
    sample_key, update_key = jax.random.split(key)
    rollout = sample(state.params, score, sample_key, count)
    rollout, _, metrics = shaping.shape_rewards(
      rollout, shaping.init_moments(), beta, config
    )
    found = exact_kl(state.params), beta
    state, _ = update.update(
      state,
      {},
      rloo.advantages(rollout, RLOO),
      update_key,
      algorithm=rloo,
      algorithm_config=RLOO,
      config=UPDATE,
      apply=apply,
      optimizer=optimizer,
    )
    name = "rollout/kl_per_token" if is_per_token else "rollout/kl_k1_sum"
    beta = kl_control.update_kl_coefficient(beta, metrics[name], count, config)
    return (state, beta), found

  keys = jax.random.split(jax.random.key(seed), steps)
  (state, _), path = jax.lax.scan(one, (state, jnp.float32(beta)), keys)
  return state.params, *path


def adaptive_row(target: float, seeds: Sequence[int] = SEEDS) -> Row:
  """Returns the row of one target: its settled mean, as a share of it."""
  since = time.perf_counter()
  config = shaping.Config(
    clip=None, kl_coefficient=0.15, kl_target=target, kl_horizon=5_120.0
  )
  scores = jnp.asarray(2.0 * np.stack([problem(seed) for seed in seeds]))
  errors, spreads = {}, []
  for is_per_token in (False, True):
    _, path, beta = train(
      scores, 0.15, jnp.asarray(seeds), config, 900, ANSWERS, is_per_token
    )
    settled = np.asarray(path, np.float64)[:, 600:]
    errors[is_per_token] = np.abs(settled.mean(axis=1) / target - 1.0)
    if not is_per_token:
      spreads = settled.std(axis=1)
      has_moved = np.abs(np.log(np.asarray(beta)[:, -1] / 0.15)).min() > 0.5
  return Row(
    f"adaptive KL, target {target:g}",
    "target",
    "share",
    errors[False].max(),
    0.1,
    errors[True].min(),
    0.5,
    time.perf_counter() - since,
    bool(has_moved and spreads.max() < 0.5),
  )


def slope(gains: np.ndarray, distances: np.ndarray) -> float:
  """Returns the least-squares slope through 0 of gain on sqrt(KL)."""
  return float(np.sum(gains * distances) / np.sum(distances**2))


def tilted_slope(seed: int, deviation: float) -> float:
  """Returns the slope of exact tilts, d < 0.5, of one enumerated problem."""
  rng = np.random.default_rng(seed)
  answers = np.indices((4,) * 6).reshape(6, -1)
  position, token = np.arange(6)[:, None], answers
  log_ref = rng.normal(0.0, 0.7, (6, 4))[position, token].sum(axis=0)
  log_ref = log_softmax(log_ref)
  p_ref = np.exp(log_ref)
  score = rng.normal(size=(6, 4))[position, token].sum(axis=0)
  between = rng.normal(size=(5, 4, 4))
  score += between[position[:5], token[:-1], token[1:]].sum(axis=0)
  score -= p_ref @ score
  score *= deviation / np.sqrt(p_ref @ score**2)
  gains, distances = [], []
  for strength in np.linspace(0.05, 0.7, 14) / deviation:
    log_p = log_softmax(log_ref + strength * score)
    gains.append(np.exp(log_p) @ score)
    distances.append(math.sqrt(kl(log_p, log_ref)))
  gains, distances = np.array(gains), np.array(distances)
  return slope(gains[distances < 0.5], distances[distances < 0.5])


def tilt_row(problems: int = 48) -> Row:
  """Returns the row of exact tilts."""
  since = time.perf_counter()
  means = [
    np.mean([tilted_slope(seed, deviation) for seed in range(problems)])
    for deviation in (1.0, 1.1)
  ]
  right, wrong = (abs(x / math.sqrt(2.0) - 1.0) for x in means)
  spent = time.perf_counter() - since
  return Row(
    "exact tilt", "slope sqrt 2", "share", right, 0.01, wrong, 0.05, spent
  )


def measure(params, score, seed: int) -> Metrics:
  """Returns the package's metrics of 2^17 fresh answers."""
  key = jax.random.fold_in(jax.random.key(seed), 1)
  return shaping.rollout_metrics(sample(params, score, key, 1 << 17))


def trained_row(seeds: Sequence[int] = SEEDS) -> Row:
  """Returns the row of RLOO: efficiency of trained policies over sqrt 2."""
  since = time.perf_counter()
  scores = jnp.asarray(np.stack([problem(seed) for seed in seeds]))
  found = []
  for beta in (1.5, 2.0, 3.0):
    config = shaping.Config(clip=None, kl_controller="fixed")
    params, _, _ = train(
      scores, beta, jnp.asarray(seeds), config, 500, 512, False
    )
    for lane, seed in enumerate(seeds):
      own = jax.tree.map(lambda x: x[lane], params)  # noqa: B023
      found.append(measure(own, scores[lane], seed))
  table = {k: np.array([float(x[k]) for x in found]) for k in found[0]}
  slopes = [
    slope(table["rollout/score_mean"], np.sqrt(table[name]))
    for name in ("rollout/kl_k1_sum", "rollout/kl_per_token")
  ]
  right, wrong = (abs(x / math.sqrt(2.0) - 1.0) for x in slopes)
  return Row(
    "rloo, beta 1.5, 2, 3",
    "slope sqrt 2",
    "share",
    right,
    0.01,
    wrong,
    1.0,
    time.perf_counter() - since,
    bool(np.sqrt(table["rollout/kl_k1_sum"]).max() < 0.5),
  )


def rows() -> Iterator[Row]:
  """Yields the table."""
  for target in (3.0, 6.0, 10.0):
    yield adaptive_row(target)
  yield tilt_row()
  yield trained_row()


if __name__ == "__main__":
  sys.exit(show(rows()))
