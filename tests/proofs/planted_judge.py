"""A judge with planted faults labels comparisons, and a reward model learns.

  python -m tests.proofs.planted_judge

prints one line per claim, the worst of the seeds, and fails (exit code 1) where
a distance exceeds its tolerance or the control does not miss.

Answers are texts with D = 16 normal features and a linear gold reward that
passes over two of them: the length of the text, and a style. The judge's logit
is the gold difference, and beside it noise of 1 nat, BIAS for whatever is shown
as A, and SLOPE for a standard deviation of length. It is asked by
rewards/ai/judging.py, through texts and their parsing. The first answer always
comes from a policy whose style is one more: so position and style go together,
and a label with the position in it teaches the style (METHODS annex A13, T22).

  labels   both orders: their mean is that of labels without position. Control:
           one order
  flips    the audit finds BIAS, and SLOPE, which two orders do not remove
  reward   a reward model of these soft labels predicts fresh gold labels as
           well as one of gold labels does, within 2 points. Control: one order
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
from rlhf_jax.labelling import judge_audit
from rlhf_jax.rewards.ai.judging import BOTH, FIRST, Judge, Judging, Pair
from rlhf_jax.rewards.ai.reply_cache import Cache
from rlhf_jax.types import PreferenceBatch, TrainState
from tests.fake_judge import Planted
from tests.proofs.preference_data import sigmoid
from tests.proofs.rows import Row, show

FEATURES, LENGTH, STYLE = 16, 14, 15
COUNT, FRESH = 3_000, 20_000  # comparisons that are labelled; of a test
DEVIATION = 2.0  # of the difference of two gold rewards
BIAS, SLOPE, NOISE = 3.0, 0.3, 1.0  # nats
SEEDS = (0, 1, 2)
LETTERS = 40  # standard deviation of lengths


class World:
  """Answers, gold rewards, and the judge of one seed."""

  def __init__(self, seed: int):
    """Draws everything."""
    self.rng = np.random.default_rng(seed)
    self.weights = self.rng.normal(size=FEATURES)
    self.weights[[LENGTH, STYLE]] = 0.0
    norm = np.linalg.norm(self.weights) * np.sqrt(2.0)
    self.weights *= DEVIATION / norm
    self.features = self.drawn(COUNT)
    self.features[:, 0, STYLE] += 1.0
    self.texts = [
      [self.text(2 * n + k, self.features[n, k, LENGTH]) for k in range(2)]
      for n in range(COUNT)
    ]
    self.gold = self.label(self.features)

  def drawn(self, count: int) -> np.ndarray:
    """Returns [count, 2, D] features."""
    return self.rng.normal(size=(count, 2, FEATURES))

  def text(self, number: int, length: float) -> str:
    """Returns an answer that says its number, so long as its feature says."""
    name = f"{number} "
    most = round(6 * LETTERS + LETTERS * float(np.clip(length, -5.0, 5.0)))
    return name + "x" * max(most - len(name), 1)

  def margins(self, features: np.ndarray) -> np.ndarray:
    """Returns [N] gold differences."""
    rewards = features @ self.weights
    return rewards[:, 0] - rewards[:, 1]

  def label(self, features: np.ndarray) -> np.ndarray:
    """Returns [N] drawn gold labels, 1.0 where the first is better."""
    p = sigmoid(self.margins(features))
    return (self.rng.random(len(p)) < p).astype(np.float64)

  def judged(self, orders: str) -> tuple[list, np.ndarray]:
    """Returns verdicts and labels [N] of the judge."""
    rewards = (self.features @ self.weights).reshape(-1)
    noise = np.random.default_rng(7)
    voice = Planted(
      lambda text: rewards[int(text.split()[0])],
      position=BIAS,
      length=SLOPE / (LETTERS * np.sqrt(2.0)),
      noise=lambda text: float(noise.normal(0.0, NOISE)),
    )
    judge = Judge(voice, Judging(orders=orders), Cache(None))
    found = judge.pairs([Pair("q", tuple(x), ("",)) for x in self.texts])
    return found, np.array([x.label for x in found])


@functools.partial(jax.jit, static_argnames=("steps",))
def learn(features: jax.Array, label: jax.Array, steps: int = 300) -> jax.Array:
  """Returns the weights [D] of a linear reward model of soft labels."""
  count = len(label)
  mask = jnp.ones((count, 2, 1))
  batch = PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=mask,
    loss_mask=mask,
    label=label,
    weight=jnp.ones(count),
    features=features,
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))
  start = jnp.zeros(FEATURES)
  state = TrainState(jnp.int32(0), start, optimizer.init(start), jnp.int32(0))

  def one(state, _):
    return reward.update(
      state,
      {},
      batch,
      jax.random.key(0),
      config=reward.Config(),
      apply=lambda params, frozen, batch: batch.features @ params,
      optimizer=optimizer,
    )[0], None

  return jax.lax.scan(one, state, None, length=steps)[0].params


def accuracy(world: World, labels: np.ndarray, fresh: np.ndarray) -> float:
  """Returns how well what is learned predicts fresh gold labels."""
  weights = learn(
    jnp.asarray(world.features, jnp.float32), jnp.asarray(labels, jnp.float32)
  )
  scores = fresh @ np.asarray(weights, np.float64)
  p = sigmoid(world.margins(fresh))
  return float(np.mean(np.where(scores[:, 0] > scores[:, 1], p, 1.0 - p)))


@functools.cache
def measured(seed: int) -> dict[str, float]:
  """Returns all numbers of a seed."""
  world = World(seed)
  (both, labels), (_, one) = world.judged(BOTH), world.judged(FIRST)
  first, swapped = (
    np.array([getattr(x, name) for x in both]) for name in ("first", "swapped")
  )
  longer = np.array([len(a) - len(b) for a, b in world.texts])
  unbiased = sigmoid(
    world.margins(world.features) + SLOPE * longer / (LETTERS * np.sqrt(2.0))
  )
  audit = judge_audit.positions(first, swapped) | judge_audit.lengths(
    0.5 * (first - swapped), longer, world.gold
  )
  fresh = world.drawn(FRESH)
  gold = accuracy(world, world.gold, fresh)
  return audit | {
    "label_bias": abs(np.mean(labels - unbiased)),
    "one_order_bias": abs(np.mean(one - unbiased)),
    "gold": gold,
    "lost": gold - accuracy(world, labels, fresh),
    "lost_by_one_order": gold - accuracy(world, one, fresh),
  }


def label_row() -> Row:
  """Returns how far the mean label is from that of no position."""
  since = time.perf_counter()
  found = [measured(seed) for seed in SEEDS]
  return Row(
    "judge, both orders",
    "labels without b",
    "share",
    max(x["label_bias"] for x in found),
    0.02,
    min(x["one_order_bias"] for x in found),
    0.15,
    time.perf_counter() - since,
  )


def audit_row() -> Row:
  """Returns how far the audit's b is from BIAS, as a share; flips are there."""
  since = time.perf_counter()
  found = [measured(seed) for seed in SEEDS]
  return Row(
    "judge, audit",
    f"b {BIAS:g} nats",
    "share",
    max(abs(x["position_bias"] / BIAS - 1.0) for x in found),
    0.05,
    min(x["flip_rate"] for x in found),
    0.4,
    time.perf_counter() - since,
    all(
      abs(x["length_slope"] - SLOPE) < 4 * x["length_slope_standard_error"]
      for x in found
    ),
  )


def reward_row() -> Row:
  """Returns what a reward model of the judge's labels lacks to one of gold."""
  since = time.perf_counter()
  found = [measured(seed) for seed in SEEDS]
  gold = np.mean([x["gold"] for x in found])
  return Row(
    f"reward of a judge, N={COUNT:,}",
    f"of gold {gold:.3f}",
    "share",
    max(x["lost"] for x in found),
    0.02,
    min(x["lost_by_one_order"] for x in found),
    0.05,
    time.perf_counter() - since,
  )


def rows() -> Iterator[Row]:
  """Yields the table."""
  yield label_row()
  yield audit_row()
  yield reward_row()


if __name__ == "__main__":
  sys.exit(show(rows()))
