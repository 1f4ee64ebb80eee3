"""Rounds of labels on new answers beat as many labels at once, at equal KL.

  python -m tests.proofs.iterated_online

prints one line per claim and fails (exit code 1) where one does not hold, or
where a control does not miss. METHODS annex A14, on the engineered gold of
saturation.py: it turns where the reference hardly goes, so labels on answers of
the reference do not show it.

  at once   2,000 labels on answers of the reference, one proxy, one policy
  rounds    4 rounds of 500 labels: the first on answers of the reference, the
            others on answers of three snapshots of the policy before (Bai et
            al. 2022: several, to keep diversity); each round a fresh proxy on
            all labels so far, and a fresh policy from the reference

A seed is a gold; 8 draws of labels, proxies and policies in each give the
standard error. Compared is the exact mean gold where both policies have a KL of
25 nats (d = 5), on the way of REINFORCE without KL. At 9 nats both are on the
exact tilt's way up, and rounds gain little: that is printed, and not claimed.

  claim     rounds - at once > 2 standard errors in at least 4 of 5 seeds
  controls  the same 4 rounds with all answers from the reference; labels by
            chance from the second round on
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.experiments import saturation
from rlhf_jax.types import Array, PyTree
from tests.proofs.rows import Row, show

SEEDS = 5
DRAWS = 8  # of labels, proxies and policies; the standard error is over them
ROUNDS, LABELS = 4, 500
WIDTH = 32  # of proxies: a linear one could not learn that the gold turns
SNAPSHOTS = (100, 200, 300)  # steps of the policy before that answer
DISTANCES = (3.0, 5.0)  # square roots of nats; the last is claimed
ERRORS, AT_LEAST = 2.0, 4  # standard errors, seeds


def _join(*parts: saturation.Pairs) -> saturation.Pairs:
  """Returns all pairs together."""
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _scale(params: PyTree, problem: saturation.Problem, counts: Array) -> tuple:
  """Returns (mean, deviation) of raw scores on bags of the reference."""
  scores = saturation.score(params, problem, counts)
  return jnp.mean(scores), jnp.std(scores)


def _at_distance(distance: Array, values: Array, wanted: Array) -> Array:
  """Returns values [W] where a path first reaches distances [W].

  A path that never goes so far gives its last value.
  """
  reached = jax.lax.cummax(distance)
  return jnp.interp(wanted, reached, values)


def _answer(key: Array, logits: Array) -> Array:
  """Returns [N, 2, V], two answers of each of N policies [N, V]."""
  keys = jax.random.split(key, len(logits))
  one = functools.partial(saturation.sample, count=2)
  return jax.vmap(one)(keys, logits)


def _learn(
  key: Array, problem: saturation.Problem, pairs: saturation.Pairs
) -> tuple[PyTree, Array]:
  """Returns a proxy of all pairs, and the way of the policy that it judges."""
  keys = jax.random.split(key, 3)
  proxy = saturation.train_proxy(keys[0], problem, pairs, width=WIDTH)
  counts = saturation.sample(keys[1], problem.reference, 2_000)
  mean, deviation = _scale(proxy, problem, counts)

  def judge(answers: Array) -> Array:
    return (saturation.score(proxy, problem, answers) - mean) / deviation

  return proxy, saturation.optimise(keys[2], judge, problem.reference)


def run(seed: Array, draw: Array, rounds: int, mode: str) -> Array:
  """Returns the gold of the last policy at DISTANCES.

  Args:
    seed: of the gold.
    draw: of the labels and all that follows.
    rounds: that share ROUNDS x LABELS labels.
    mode: "policy", "reference" (who answers after the first round), or
      "chance" (the policy answers, and chance labels).
  """
  problem = saturation.make(jax.random.key(seed))
  key = jax.random.fold_in(jax.random.key(1_000 + seed), draw)
  count = ROUNDS * LABELS // rounds
  path, parts = problem.reference[None], []
  for number in range(rounds):
    keys = jax.random.split(jax.random.fold_in(key, number), 5)
    logits = jnp.broadcast_to(problem.reference, (count, saturation.KINDS))
    if number and mode != "reference":
      chosen = jax.random.choice(keys[0], jnp.array(SNAPSHOTS), (count,))
      logits = path[chosen]
    pairs = saturation.compare(keys[2], problem, _answer(keys[1], logits))
    if number and mode == "chance":
      coin = jax.random.bernoulli(keys[4], 0.5, (count,))
      pairs = pairs.replace(label=coin.astype(jnp.float32))
    parts.append(pairs)
    _, path = _learn(keys[3], problem, _join(*parts))
  distance, gold = saturation.curve(problem, path)
  return _at_distance(distance, gold, jnp.array(DISTANCES))


@functools.lru_cache
def golds(rounds: int, mode: str, seeds: int, draws: int) -> np.ndarray:
  """Returns [seeds, draws, distances], float64; see `run`."""
  one = functools.partial(run, rounds=rounds, mode=mode)
  every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
  first = 0 if rounds > 1 else DRAWS  # the arms share no draw
  found = jax.jit(every)(jnp.arange(seeds), first + jnp.arange(draws))
  return np.asarray(found, np.float64)


def wins(
  mode: str, seeds: int = SEEDS, draws: int = DRAWS
) -> tuple[int, np.ndarray]:
  """Returns how many seeds rounds win by ERRORS, and their gains.

  Args:
    mode: of the rounds.
    seeds, draws: how many.

  Returns:
    seeds won at the last of DISTANCES; mean gain in gold [distances].
  """
  rounds = golds(ROUNDS, mode, seeds, draws)
  once = golds(1, "reference", seeds, draws)
  gain = rounds.mean(1) - once.mean(1)
  variance = (rounds.var(1, ddof=1) + once.var(1, ddof=1)) / draws
  is_won = gain > ERRORS * np.sqrt(variance)
  return int(is_won[:, -1].sum()), gain.mean(0)


def rows() -> Iterator[Row]:
  """Yields the claim, with each control."""
  for control in ("reference", "chance"):
    begun = time.perf_counter()
    won, gain = wins("policy")
    missed, _ = wins(control)
    yield Row(
      f"rounds; control: {control}",
      f"{gain[-1]:+.2f} at {DISTANCES[-1] ** 2:.0f} nats",
      "seeds",
      float(SEEDS - won),
      SEEDS - AT_LEAST + 0.5,
      float(SEEDS - missed),
      SEEDS - AT_LEAST + 0.5,
      time.perf_counter() - begun,
    )


def main() -> int:
  """Prints the table, and what rounds gain at a smaller KL."""
  code = show(rows())
  _, gain = wins("policy")
  for distance, value in zip(DISTANCES, gain, strict=True):
    print(f"gain in gold at {distance**2:.0f} nats: {value:+.3f} deviations")
  return code


if __name__ == "__main__":
  sys.exit(main())
