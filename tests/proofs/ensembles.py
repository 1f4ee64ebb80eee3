"""Ensembles keep gold where one reward model loses it (METHODS annex A3).

  python -m tests.proofs.ensembles [SEEDS]

Answers are 48 tokens of 12, a bag: the gold reward of each token rises with its
count and turns 2 to 3 deviations of the reference out,

  gold = sum_v a_v (s_v z_v - z_v^2 / (2 t_v)),   t_v in [2, 3], s_v = +-1,

scaled to deviation 1 on the reference. Reward models (6 hidden units on z, all
weights train) learn from 1,000 pairs of reference answers with 25 % of
labels flipped, where hardly anything stands beyond a turning point. REINFORCE
without a KL penalty then follows a score for 300 steps; the policy is one
distribution of tokens, so KL and mean gold are exact.

  single     one model on all pairs
  mean, uwo, min   4 members on bootstrapped pairs, each normalised
  min, raw   the control: members as they come, in units and with zeros of
             their own. Comparisons fix no zero, and how long a member trained
             decides its scale: members are given different ones of both

The table says how far the mean gold at the end stays below what it must reach
(single + 2 standard errors of the difference, for mean no error), and fails
where a peak is more than 5 % below the single model's.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms import ensemble, reward
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.types import PreferenceBatch, TrainState
from tests.proofs.rows import Row, show

LENGTH, VOCABULARY, HIDDEN = 48, 12, 6
PAIRS, FLIPS, MEMBERS = 1_000, 0.25, 4
STEPS, SAMPLES = 300, 128  # of the policy
EPOCHS, RATE, DECAY = 20, 3e-2, 1e-2  # of the reward models
REFERENCE_SAMPLES = 512  # members are normalised on them
SEEDS = 48
FIRST_SEED = 100  # widths and epochs were chosen on others, 0 to 23
RULES = {
  "single": Combination(),
  "mean": Combination(),
  "uwo": Combination("uwo", 0.5),
  "min": Combination("min"),
  "min, raw": Combination("min"),
}


@dataclasses.dataclass(frozen=True)
class Curves:
  """Of one rule: exact mean gold and KL in nats, [SEEDS, STEPS + 1]."""

  gold: np.ndarray
  kl: np.ndarray

  @property
  def end(self) -> np.ndarray:
    """Mean gold over the last tenth of the steps, [SEEDS]."""
    return self.gold[:, -STEPS // 10 :].mean(axis=1)

  @property
  def peak(self) -> np.ndarray:
    """[SEEDS]."""
    return self.gold.max(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
  """Reference distribution of tokens [V] and the gold reward's weights [V]."""

  reference: jax.Array
  slope: jax.Array
  bend: jax.Array
  scale: jax.Array

  def features(self, tokens: jax.Array) -> jax.Array:
    """Returns [..., V] deviations of the counts of tokens [..., L]."""
    return self.of_counts(jax.nn.one_hot(tokens, VOCABULARY).sum(-2))

  def of_counts(self, counts: jax.Array) -> jax.Array:
    """Returns [..., V] of counts [..., V]."""
    mean = like(LENGTH * self.reference, counts)
    return (counts - mean) / like(self.deviation, counts)

  @property
  def deviation(self) -> jax.Array:
    """[V], of counts on the reference."""
    return jnp.sqrt(LENGTH * self.reference * (1.0 - self.reference))

  def gold(self, z: jax.Array) -> jax.Array:
    """Returns [...] of features [..., V]."""
    return (z @ self.slope - jnp.square(z) @ self.bend) / self.scale

  def mean_gold(self, policy: jax.Array) -> jax.Array:
    """Returns [] exactly, of tokens drawn from policy [V]."""
    mean = LENGTH * (policy - self.reference) / self.deviation
    variance = LENGTH * policy * (1.0 - policy) / jnp.square(self.deviation)
    second = jnp.square(mean) + variance
    return (mean @ self.slope - second @ self.bend) / self.scale


def like(x: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns x [V] beside each of rows [..., V]."""
  return jnp.broadcast_to(x, rows.shape)


def make_world(key: jax.Array) -> World:
  """Returns a world with its own reference and gold."""
  keys = jax.random.split(key, 5)
  reference = jax.nn.softmax(0.3 * jax.random.normal(keys[0], (VOCABULARY,)))
  size = jax.random.uniform(keys[1], (VOCABULARY,), minval=0.5, maxval=1.5)
  sign = jnp.sign(jax.random.normal(keys[2], (VOCABULARY,)))
  turn = jax.random.uniform(keys[3], (VOCABULARY,), minval=2.0, maxval=3.0)
  world = World(reference, size * sign, size / (2.0 * turn), jnp.float32(1.0))
  gold = world.gold(world.features(draw(keys[4], reference, 4096)))
  return dataclasses.replace(world, scale=jnp.std(gold))


def draw(key: jax.Array, policy: jax.Array, count: int) -> jax.Array:
  """Returns tokens [count, L], by the inverse of the cumulative policy."""
  uniform = jax.random.uniform(key, (count, LENGTH, 1))
  return jnp.sum(uniform > jnp.cumsum(policy)[None, None, :-1], axis=-1)


def apply(params, frozen, batch: PreferenceBatch) -> jax.Array:
  """Returns scores [B, K, M] of features."""
  del frozen
  return scores(params, batch.features)


def scores(params, z: jax.Array) -> jax.Array:
  """Returns [..., M] of features [..., V]."""

  def one(member):
    hidden = jnp.dot(z, member["in"])
    hidden = jnp.tanh(hidden + like(member["bias"], hidden))
    return hidden @ member["out"]

  return jax.vmap(one, out_axes=-1)(params)


def fresh(key: jax.Array):
  """Returns the weights of one member."""
  keys = jax.random.split(key)
  wide = jax.random.normal(keys[0], (VOCABULARY, HIDDEN))
  return {
    "in": wide / np.sqrt(VOCABULARY),
    "bias": jnp.zeros(HIDDEN),
    "out": jax.random.normal(keys[1], (HIDDEN,)) / np.sqrt(HIDDEN),
  }


def train(key: jax.Array, world: World, weights: jax.Array):
  """Returns trained heads, stacked: one for each column of weights [PAIRS, M].

  EPOCHS over all pairs in batches of 50: small models of noisy labels, that
  have learnt some of the noise.
  """
  keys = jax.random.split(key, 5)
  z = world.features(draw(keys[0], world.reference, 2 * PAIRS))
  z = z.reshape(PAIRS, 2, VOCABULARY)
  gold = world.gold(z)
  p = jax.nn.sigmoid(gold[:, 0] - gold[:, 1])
  is_first = jax.random.uniform(keys[1], (PAIRS,)) < p
  is_first ^= jax.random.uniform(keys[2], (PAIRS,)) < FLIPS
  exists = jnp.ones((PAIRS, 2, 1))
  data = PreferenceBatch(
    tokens=jnp.zeros(exists.shape, jnp.int32),
    valid_mask=exists,
    loss_mask=exists,
    label=is_first.astype(jnp.float32),
    weight=jnp.ones(PAIRS),
    features=z,
    member_weight=weights,
  )
  size, epochs = 50, EPOCHS
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(RATE, epochs * PAIRS // size),
    weight_decay=DECAY,
  )
  params = jax.vmap(fresh)(jax.random.split(keys[3], weights.shape[1]))
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))

  def one(state, index):
    batch = jax.tree.map(lambda x: x[index], data)
    return ensemble.update(
      state,
      {},
      batch,
      key,
      config=reward.Config(),
      apply=apply,
      optimizer=optimizer,
      is_shared=False,
    )[0], None

  order = jax.vmap(lambda k: jax.random.permutation(k, PAIRS))(
    jax.random.split(keys[4], epochs)
  ).reshape(-1, size)
  return jax.lax.scan(one, state, order)[0].params


def optimise(key, world: World, params, shift, scale, how: Combination):
  """Returns gold [STEPS + 1] and KL of a policy that follows the score."""
  optimizer = optax.adam(0.02)
  logits = jnp.log(world.reference)

  def numbers(logits):
    policy = jax.nn.softmax(logits)
    ratio = jax.nn.log_softmax(logits) - jnp.log(world.reference)
    return world.mean_gold(policy), LENGTH * jnp.sum(policy * ratio)

  def one(carry, key):
    logits, moments = carry
    tokens = draw(key, jax.nn.softmax(logits), SAMPLES)
    counts = jax.nn.one_hot(tokens, VOCABULARY).sum(-2)
    raw = scores(params, world.of_counts(counts))
    each = (raw - like(shift, raw)) / like(scale, raw)
    found = ensemble.combined(each, how)
    advantage = found - found.mean()

    def loss(logits):
      logprobs = counts @ jax.nn.log_softmax(logits)
      return -jnp.mean(advantage * logprobs)

    updates, moments = optimizer.update(jax.grad(loss)(logits), moments)
    logits = logits + updates
    return (logits, moments), numbers(logits)

  start = numbers(logits)
  _, found = jax.lax.scan(
    one, (logits, optimizer.init(logits)), jax.random.split(key, STEPS)
  )
  return tuple(
    jnp.concatenate([first[None], rest])
    for first, rest in zip(start, found, strict=True)
  )


@functools.partial(jax.jit, static_argnames="rules")
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def run(seed, weights, rules: tuple[str, ...]):
  """Returns rule -> gold and KL [STEPS + 1] of one seed.

  Args:
    seed: of the world, the pairs, the members and the policy's samples.
    weights: [PAIRS, M] of the pairs for each member.
    rules: of RULES.
  """
  keys = jax.random.split(jax.random.key(seed), 4)
  world = make_world(keys[0])
  params = train(keys[1], world, weights)
  z = world.features(draw(keys[2], world.reference, REFERENCE_SAMPLES))
  raw = scores(params, z)
  own = own_units(jax.random.fold_in(keys[2], 1), raw)
  found = {}
  for rule in rules:
    shift, scale = own if rule == "min, raw" else (raw.mean(0), raw.std(0))
    parts = (keys[3], world, params, shift, scale, RULES[rule])
    found[rule] = optimise(*parts)
  return found


def own_units(key: jax.Array, raw: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns zeros and scales [M] that no comparison fixes, see above."""
  members = raw.shape[1]
  scale = raw.std(0) * jnp.exp2(-jnp.linspace(0.0, 2.0, members))
  zero = 10.0 * scale * jax.random.normal(key, (members,))
  return raw.mean(0) + zero, scale


def curves(rules: tuple[str, ...], seeds: int = SEEDS) -> dict[str, Curves]:
  """Returns the curves of rules, of "single" alone or of ensembles."""
  groups, is_single = np.arange(PAIRS)[:, None], rules == ("single",)
  members, subsets = (1, "all") if is_single else (MEMBERS, "bootstrap")
  weights = np.stack(
    [
      ensemble.member_weights(groups, members, subsets, seed)
      for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
  )
  found = run(FIRST_SEED + jnp.arange(seeds), weights, rules)
  return {
    name: Curves(np.asarray(gold, np.float64), np.asarray(kl, np.float64))
    for name, (gold, kl) in found.items()
  }


def rows(seeds: int = SEEDS) -> Iterator[Row]:
  """Yields the table."""
  since = time.perf_counter()
  single = curves(("single",), seeds)["single"]
  fall = float((single.peak - single.end).mean())
  found = curves(tuple(name for name in RULES if name != "single"), seeds)
  for name, curve in ({"single": single} | found).items():
    print(
      f"  {name:9} end {curve.end.mean():7.3f}  peak {curve.peak.mean():6.3f}"
      f"  sqrt KL at the peak {_distance(curve):5.2f}, at the end "
      f"{np.sqrt(curve.kl[:, -1]).mean():5.2f}"
    )
  for name in ("mean", "uwo", "min"):
    gain = found[name].end - single.end
    print(f"  {name} - single: {gain.mean():.3f}, SE {_error(gain):.3f}")
    error = 0.0 if name == "mean" else 2.0 * _error(gain)
    is_high = found[name].peak.mean() > 0.95 * single.peak.mean()
    control, floor = fall, 1.0  # one model is over-optimised at all
    if name == "min":
      lost = found["min"].end - found["min, raw"].end
      print(f"  min - min, raw: {lost.mean():.3f}, SE {_error(lost):.3f}")
      control, floor = lost.mean() - 2.0 * _error(lost), 0.0
    yield Row(
      f"{name}, {MEMBERS} members",
      "single" if name == "mean" else "single + 2 SE",
      "gold",
      float(error - gain.mean()),
      0.0,
      float(control),
      floor,
      time.perf_counter() - since,
      bool(is_high),
    )


def _distance(curve: Curves) -> float:
  where = np.argmax(curve.gold, axis=1)[:, None]
  return float(np.sqrt(np.take_along_axis(curve.kl, where, 1)).mean())


def _error(x: np.ndarray) -> float:
  return float(np.std(x, ddof=1) / np.sqrt(len(x)))


if __name__ == "__main__":
  sys.exit(show(rows(*(int(x) for x in sys.argv[1:]))))
