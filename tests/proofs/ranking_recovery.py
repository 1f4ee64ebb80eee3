"""A reward model finds the reward that decided rankings, choices and scores.

  python -m tests.proofs.ranking_recovery

prints one line per claim, the mean of 32 seeds, and fails (exit code 1) where a
distance exceeds its tolerance or a control does not miss.

Answers and the planted reward are those of reward_recovery.py; a ranking is
drawn from Plackett and Luce, whose pairs are Bradley-Terry (METHODS annex A5).
What a ranking is worth depends on what is counted:

  answers  N judged answers, two to a prompt or four: 6 pairs of four answers
           teach more than 2 pairs of two each, at the same number of forwards.
           Plackett-Luce, the likelihood itself, is at least as good, and the
           choice of the best alone is worth less than the ranking
  pairs    the control: with as many pairs as the pairwise loss has, rankings
           must miss, as pairs of one ranking are not independent

  scores   the planted reward with noise, and that in five grades, give its
           direction by regression and by the ordinal loss. Control: scores
           that go with other answers
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms import reward
from rlhf_jax.types import PreferenceBatch, TrainState
from tests.proofs import reward_recovery
from tests.proofs.rows import Row, show

ANSWERS, SEEDS, K = 4_000, 32, 4
GRADES = (-1.5, -0.5, 0.5, 1.5)  # between five grades of a noisy reward


def ranked(key: jax.Array, count: int, candidates: int) -> PreferenceBatch:
  """Returns rankings of answers that have features, drawn by Plackett-Luce."""
  keys = jax.random.split(key, 4)
  shape = (count, candidates)
  features = jax.random.normal(keys[0], (*shape, reward_recovery.FEATURES))
  scores = features @ reward_recovery.planted(keys[1])
  noisy = scores + jax.random.gumbel(keys[2], shape)
  rank = jnp.argsort(jnp.argsort(-noisy, axis=1), axis=1).astype(jnp.float32)
  mask = jnp.ones((*shape, 1))
  return PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=mask,
    loss_mask=mask,
    label=(rank[:, 0] < rank[:, 1]).astype(jnp.float32),
    weight=jnp.ones(count),
    features=features,
    rank=rank,
    target=scores + jax.random.normal(keys[3], shape),
  )


def fitted(batch: PreferenceBatch, config: reward.Config) -> jax.Array:
  """Returns weights [D] that minimise the loss of a batch."""
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 200))
  start = jnp.zeros(reward_recovery.FEATURES)
  state = TrainState(jnp.int32(0), start, optimizer.init(start), jnp.int32(0))

  def one(state, _):
    return reward.update(
      state,
      {},
      batch,
      jax.random.key(0),
      config=config,
      apply=lambda params, frozen, batch: batch.features @ params,
      optimizer=optimizer,
    )[0], None

  return jax.lax.scan(one, state, None, length=200)[0].params


@functools.partial(
  jax.jit, static_argnames=("count", "candidates", "objective")
)
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def learn(seed, count: int, candidates: int, objective: str):
  """Returns planted and learnt weights [D] of one seed."""
  key = jax.random.key(seed)
  batch = ranked(key, count, candidates)
  true = reward_recovery.planted(jax.random.split(key, 4)[1])
  return true, fitted(batch, reward.Config(objective=objective))


def mean_excess(count: int, candidates: int, objective: str) -> float:
  """Returns nats a comparison above the planted score, the mean over seeds."""
  found = learn(jnp.arange(SEEDS), count, candidates, objective)
  true, learnt = (np.asarray(x, np.float64) for x in found)
  pairs = zip(true, learnt, strict=True)
  return float(np.mean([reward_recovery.excess(*pair) for pair in pairs]))


def answers_row() -> Row:
  """Returns the excess loss of rankings of four, a share of that of pairs."""
  since = time.perf_counter()
  pairwise = mean_excess(ANSWERS // 2, 2, "pairwise")
  kwise = mean_excess(ANSWERS // K, K, "k-wise")
  likelihood = mean_excess(ANSWERS // K, K, "plackett-luce")
  choice = mean_excess(ANSWERS // K, K, "choice")
  pairs = K * (K - 1) // 2
  control = mean_excess(ANSWERS // 2 // pairs, K, "k-wise")
  return Row(
    f"k-wise, {ANSWERS:,} answers",
    f"pairwise {pairwise:.4f}",
    "share",
    kwise / pairwise,
    0.8,
    control / pairwise,
    1.2,
    time.perf_counter() - since,
    likelihood < 1.02 * kwise and kwise < choice,
  )


def scores_row(objective: str, seeds: int = 8) -> Row:
  """Returns one minus the worst cosine of weights learnt from scores."""
  since = time.perf_counter()
  wrong, control = [], []
  for seed in range(seeds):
    key = jax.random.key(seed)
    true = reward_recovery.planted(jax.random.split(key, 4)[1])
    batch = ranked(key, ANSWERS // K, K)
    found = []
    for target in (batch.target, jnp.roll(batch.target, 1, 0)):
      if objective == "ordinal":
        grades = np.digitize(np.asarray(target), GRADES).astype(np.float32)
        target = jnp.asarray(reward.grade_bounds(grades))
      config = reward.Config(objective=objective)
      learnt = jax.jit(fitted, static_argnames="config")(
        batch.replace(target=target), config=config
      )
      both = (np.asarray(x, np.float64)[None] for x in (true, learnt))
      found.append(1.0 - reward_recovery.cosines(*both)[0])
    wrong.append(found[0])
    control.append(found[1])
  return Row(
    f"{objective}, {ANSWERS:,} scores",
    "planted direction",
    "share",
    max(wrong),
    0.01,
    min(control),
    0.2,
    time.perf_counter() - since,
  )


def rows() -> Iterator[Row]:
  """Yields the table."""
  yield answers_row()
  yield scores_row("regression")
  yield scores_row("ordinal")


if __name__ == "__main__":
  sys.exit(show(rows()))
