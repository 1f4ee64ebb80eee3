"""A reward model finds the reward that decided the comparisons.

  python -m tests.proofs.reward_recovery

prints one line per claim, the worst of 16 seeds (the mean of 64 where it says
so), and fails (exit code 1) where a distance exceeds its tolerance or a control
does not miss.

Answers have D = 16 normal features, the planted reward is linear in them, and
comparisons are Bradley-Terry; the package's pairwise loss and update train a
linear score on all of them at once (METHODS annex A5, A15). The difference of
two rewards is normal, so accuracy and scale are known by quadrature:

  accuracy     no score predicts comparisons better than the planted one, E
               max(p, 1 - p); a learnt one at angle a to it is right with
               E[s(z)], z its margin. Control: labels of chance
  excess loss  D / (2 N) nats over the planted score's, the mean over seeds.
               Control: half the comparisons
  scale        flips e turn the score's optimum into c times the planted one,
               E[x s(c x)] = E[x ((1 - 2 e) s(x) + e)]; label smoothing e on
               clean labels has the same c. Both keep the direction. Control:
               the planted scale
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from rlhf_jax.algorithms import reward
from rlhf_jax.types import PreferenceBatch, TrainState
from tests.proofs.preference_data import sigmoid
from tests.proofs.rows import Row, show

FEATURES = 16
DEVIATION = 1.35  # of the difference of two planted rewards
NOISE = 0.25  # share of flips, and of smoothing
SEEDS = 16
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def normal_mean(f: Callable[[np.ndarray], np.ndarray]) -> float:
  """Returns E f(x), x a difference of two planted rewards."""
  return float(WEIGHTS @ f(DEVIATION * NODES))


def planted(key: jax.Array) -> jax.Array:
  """Returns [D], the planted weights."""
  direction = jax.random.normal(key, (FEATURES,))
  scale = DEVIATION / (math.sqrt(2.0) * jnp.linalg.norm(direction))
  return scale * direction


def compare(key: jax.Array, count: int, flips: float) -> PreferenceBatch:
  """Returns comparisons of answers that have features and no tokens."""
  keys = jax.random.split(key, 4)
  features = jax.random.normal(keys[0], (count, 2, FEATURES))
  scores = features @ planted(keys[1])
  p = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])
  is_first = jax.random.uniform(keys[2], (count,)) < p
  is_flipped = jax.random.uniform(keys[3], (count,)) < flips
  mask = jnp.ones((count, 2, 1))
  return PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=mask,
    loss_mask=mask,
    label=(is_first ^ is_flipped).astype(jnp.float32),
    weight=jnp.ones(count),
    features=features,
  )


@functools.partial(jax.jit, static_argnames=("count", "flips", "smoothing"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def learn(seed, count: int, flips: float, smoothing: float):
  """Returns planted and learnt weights [D] of one seed."""
  key = jax.random.key(seed)
  batch = compare(key, count, flips)
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 200))
  start = jnp.zeros(FEATURES)
  state = TrainState(jnp.int32(0), start, optimizer.init(start), jnp.int32(0))

  def one(state, _):
    return reward.update(
      state,
      {},
      batch,
      key,
      config=reward.Config(label_smoothing=smoothing),
      apply=lambda params, frozen, batch: batch.features @ params,
      optimizer=optimizer,
    )[0], None

  state, _ = jax.lax.scan(one, state, None, length=200)
  return planted(jax.random.split(key, 4)[1]), state.params


def weights(
  count: int, flips: float = 0.0, smoothing: float = 0.0, seeds: int = SEEDS
):
  """Returns planted and learnt weights [seeds, D], float64."""
  found = learn(jnp.arange(seeds), count, flips, smoothing)
  return (np.asarray(x, np.float64) for x in found)


def cosines(true: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Returns [seeds], which is the correlation of scores."""
  norms = np.linalg.norm(true, axis=1) * np.linalg.norm(found, axis=1)
  return np.sum(true * found, axis=1) / norms


def accuracy(cosine: float) -> float:
  """Returns P(right) of a score that correlates so with the planted one."""
  part = math.sqrt(max(1.0 - cosine**2, 1e-300))

  def is_ordered_alike(x: np.ndarray) -> np.ndarray:
    z = cosine * np.abs(x) / (DEVIATION * part)
    return 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))

  def right(x: np.ndarray) -> np.ndarray:
    p, alike = sigmoid(np.abs(x)), is_ordered_alike(x)
    return p * alike + (1.0 - p) * (1.0 - alike)

  return normal_mean(right)


def excess(true: np.ndarray, found: np.ndarray) -> float:
  """Returns the loss of a score above the planted one's, nats a comparison."""
  rng = np.random.default_rng(0)
  x = math.sqrt(2.0) * rng.normal(size=(50_000, FEATURES))
  p, q = sigmoid(x @ true), sigmoid(x @ found)
  return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def shrunk_scale() -> float:
  """Returns c of flips or smoothing by NOISE (module docstring)."""

  def slope(c: float) -> float:
    return normal_mean(
      lambda x: x * (sigmoid(c * x) - (1.0 - 2.0 * NOISE) * sigmoid(x) - NOISE)
    )

  return float(optimize.brentq(slope, 0.01, 1.0))


def accuracy_row(count: int = 5_000) -> Row:
  """Returns how far accuracy stays below the ceiling of the labels."""
  since = time.perf_counter()
  ceiling = normal_mean(lambda x: sigmoid(np.abs(x)))
  found = cosines(*weights(count))
  chance = cosines(*weights(count, flips=0.5))
  return Row(
    f"reward, N={count:,}",
    f"ceiling {ceiling:.4f}",
    "share",
    max(ceiling - accuracy(x) for x in found),
    5e-3,
    min(ceiling - accuracy(x) for x in chance),
    0.03,
    time.perf_counter() - since,
    found.min() > 0.99,
  )


def excess_row(count: int = 4_000) -> Row:
  """Returns how far the mean excess loss is from D / (2 N), as a share."""
  since = time.perf_counter()
  means = [
    np.mean([excess(*pair) for pair in zip(*weights(n, seeds=64), strict=True)])
    for n in (count, count // 2)
  ]
  wanted = FEATURES / (2.0 * count)
  right, wrong = (abs(mean / wanted - 1.0) for mean in means)
  return Row(
    f"reward, N={count:,}, mean",
    "excess D / 2N",
    "share",
    right,
    0.2,
    wrong,
    0.5,
    time.perf_counter() - since,
  )


def scale_row(flips: float, smoothing: float, count: int = 50_000) -> Row:
  """Returns how far the learnt scale is from c, as a share."""
  since = time.perf_counter()
  true, found = weights(count, flips, smoothing)
  scales = np.sum(true * found, axis=1) / np.sum(true**2, axis=1)
  wanted = shrunk_scale()
  return Row(
    f"reward, {NOISE:.0%} {'flips' if flips else 'smoothing'}",
    f"scale {wanted:.3f}",
    "share",
    np.abs(scales / wanted - 1.0).max(),
    0.1,
    abs(1.0 / wanted - 1.0),
    0.5,
    time.perf_counter() - since,
    cosines(true, found).min() > 0.99,
  )


def rows() -> Iterator[Row]:
  """Yields the table."""
  yield accuracy_row()
  yield excess_row()
  yield scale_row(NOISE, 0.0)
  yield scale_row(0.0, NOISE)


if __name__ == "__main__":
  sys.exit(show(rows()))
