"""700 labels of segments do what the true reward does; 200 do not.

  python -m tests.proofs.segments cart_pole
  python -m tests.proofs.segments pendulum
  python -m tests.proofs.segments labels

prints one line per claim and fails (exit code 1) where one does not hold, or
where a control does not miss. METHODS annex A8, after Christiano et al. 2017.
The settings are those of configs/segments.py; a tenth of the labels is given
by chance. The seeds of an arm are lanes of one program, six on cart-pole and
three on the pendulum; each arm is a program of its own, as the pairs that one
chooses among are ten times its own labels.

  cart-pole  700 labels of queries by disagreement: seeds of six that miss 90 %
             of the return on the true reward, or 450 of 500; none may. Control:
             200 labels
             700 labels by disagreement are not worse than 700 of random pairs
             by more than 5 % of the return, on average. Control: the two in
             each other's place
  pendulum   correlation of predicted and true reward over the steps of the last
             ten rollouts, worst seed. Control: 700 labels by chance
             the same labels gain 90 % of what the true reward gains over the
             first policy. Control: as above
  labels     25 to 700 labels by disagreement, in both environments: rank
             correlation of labels and return inside a seed, mean over six.
             Control: the best of 20 shuffles of the labels,
             in every seed another one

The reward of cart-pole is constant for whoever holds the pole, and nothing can
be correlated with it; so the correlation is pendulum's.
"""

from __future__ import annotations

import dataclasses
import functools
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import pipelines
from rlhf_jax.algorithms import segments as maths
from rlhf_jax.evaluation import overoptimisation as over
from rlhf_jax.pipelines.segments import Settings, lab_of
from rlhf_jax.programs.segments import agent, queries, turns
from rlhf_jax.types import Array
from tests.proofs.rows import Row, show

CONFIG = Path(__file__).parents[2] / "configs" / "segments.py"
SEEDS = {"cart_pole": (0, 1, 2, 3, 4, 5), "pendulum": (0, 1, 2)}
COUNTS = (25, 50, 100, 200, 400, 700)  # labels
MAY_MISS = 0  # seeds
NOISE = 0.1  # share of labels that are given by chance
LAST = 10  # rollouts over which correlation is averaged


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to run; is_chance: labels are coins."""

  labels: int
  is_active: bool = True
  uses_truth: bool = False
  is_chance: bool = False


TRUE = Arm(0, uses_truth=True)
MANY, FEW = Arm(700), Arm(200)
RANDOM, CHANCE = Arm(700, is_active=False), Arm(700, is_chance=True)
ARMS = {
  "cart_pole": {
    "true reward": TRUE,
    "700 by disagreement": MANY,
    "700 random": RANDOM,
    "200 by disagreement": FEW,
  },
  "pendulum": {
    "true reward": TRUE,
    "700 by disagreement": MANY,
    "700 by chance": CHANCE,
  },
}


@dataclasses.dataclass(frozen=True)
class Found:
  """Of one arm, by seed: greedy true return, first return, correlation."""

  returns: np.ndarray
  first: np.ndarray
  correlation: np.ndarray


def settings_of(environment: str, **changes: int) -> Settings:
  """Returns the settings of the experiment file, with noise in the labels.

  Args:
    environment: an argument of configs/segments.py.
    changes: of its section schedule.
  """
  config = runpy.run_path(str(CONFIG))["get_config"](environment)
  config.labels.noise = NOISE
  config.schedule.update(changes)
  return pipelines.read(config).settings


@functools.partial(jax.jit, static_argnames=("lab", "most"))
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, None, None))
def _ask(
  state: turns.State,
  key: Array,
  due: Array,
  is_active: Array,
  is_chance: Array,
  lab: turns.Lab,
  most: int,
):
  """Returns all lanes after they played and asked, and their episodes."""
  keys = jax.random.split(key, 5)
  episodes = turns.collect(state, keys[0], lab)
  pairs = turns.propose(state, episodes, keys[1], lab, most, is_active)
  label, is_comparable = queries.simulated(pairs, keys[2], lab.labels)
  coin = jax.random.bernoulli(keys[4], 0.5, label.shape)
  label = jnp.where(is_chance, coin, label)
  state, _ = turns.add(state, pairs, label, is_comparable, due, keys[3])
  return state, episodes


@functools.partial(jax.jit, static_argnames="lab")
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, 0, None))
def _learn(
  state: turns.State,
  episodes: agent.Episodes,
  key: Array,
  fits: int,
  uses_truth: Array,
  lab: turns.Lab,
):
  """Returns all lanes after they learned, and their metrics."""
  key = jax.random.fold_in(key, 1)
  return turns.learn(state, episodes, key, fits, uses_truth, lab)


def run(
  environment: str, arms: dict[str, Arm], seeds: tuple[int, ...], **changes: int
) -> dict[str, Found]:
  """Returns what came out of every arm.

  Args:
    environment: an argument of configs/segments.py.
    arms: by name.
    seeds: of each.
    changes: of the schedule.
  """
  return {
    name: run_arm(environment, arm, seeds, **changes)
    for name, arm in arms.items()
  }


def run_arm(
  environment: str, arm: Arm, seeds: tuple[int, ...], **changes: int
) -> Found:
  """Returns what came out of an arm; see `run`."""
  settings = settings_of(environment, **changes)
  lab, rollouts = lab_of(settings), settings.schedule.steps
  how = settings.queries
  due = maths.due(arm.labels, rollouts, how.first_share, how.half_rollouts)
  is_active, uses_truth, is_chance = (
    jnp.full(len(seeds), getattr(arm, name))
    for name in ("is_active", "uses_truth", "is_chance")
  )
  base = jnp.stack([jax.random.key(seed) for seed in seeds])
  room = max(1, arm.labels)
  state = jax.jit(jax.vmap(lambda k: turns.start(k, lab, room)))(base)
  history = []
  for step in range(rollouts):
    most = due[0] if step == 0 else due[1:].max()
    keys = jax.vmap(jax.random.fold_in, (0, None))(base, step + 1)
    state, episodes = _ask(
      state,
      keys,
      jnp.full(len(seeds), due[step]),
      is_active,
      is_chance,
      lab,
      max(1, int(most)),
    )
    fits = settings.predictor.first_fits if step == 0 else 1
    state, metrics = _learn(state, episodes, keys, fits, uses_truth, lab)
    kept = ("agent/true_return", "agent/reward_correlation")
    history.append({name: np.asarray(metrics[name]) for name in kept})
  test = jax.vmap(
    lambda params, key: agent.greedy_returns(
      params, key, lab.environment, settings.agent.test_episodes
    )
  )
  keys = jax.vmap(jax.random.fold_in, (0, None))(base, 0)
  returns = np.asarray(jax.jit(test)(state.agent.params, keys)).mean(axis=1)
  correlation = np.stack(
    [row["agent/reward_correlation"] for row in history[-LAST:]]
  ).mean(axis=0)
  return Found(returns, history[0]["agent/true_return"], correlation)


def tell(found: dict[str, Found]) -> None:
  """Prints every arm by seed."""
  for name, arm in found.items():
    print(
      f"{name:22} return {'  '.join(f'{x:8.1f}' for x in arm.returns)}   "
      f"correlation {'  '.join(f'{x:5.3f}' for x in arm.correlation)}",
      flush=True,
    )


def cart_pole_rows(found: dict[str, Found], seconds: float) -> Iterator[Row]:
  """Yields the claims on cart-pole."""
  true, most = (
    found["true reward"].returns,
    found["700 by disagreement"].returns,
  )
  few = found["200 by disagreement"].returns

  def missed(returns: np.ndarray) -> float:
    return float(np.sum((returns < 0.9 * true) | (returns < 450.0)))

  yield Row(
    "cart_pole, 700 labels (200)",
    "true reward",
    "seeds",
    missed(most),
    MAY_MISS + 0.5,
    missed(few),
    MAY_MISS + 0.5,
    seconds,
    missed(true) == 0.0,
  )
  worse = (found["700 random"].returns - most).mean() / true.mean()
  yield Row(
    "cart_pole, disagreement (random)",
    "random pairs",
    "share",
    worse,
    0.05,
    -worse,
    0.05,
    seconds,
  )


def pendulum_rows(found: dict[str, Found], seconds: float) -> Iterator[Row]:
  """Yields the claims on the pendulum."""
  true, most = found["true reward"], found["700 by disagreement"]
  chance = found["700 by chance"]
  yield Row(
    "pendulum, 700 labels (chance)",
    "correlation 1",
    "",
    1.0 - most.correlation.min(),
    0.1,
    1.0 - chance.correlation.max(),
    0.5,
    seconds,
  )
  gained = true.returns - true.first
  lost, missed = (1.0 - (x.returns - x.first) / gained for x in (most, chance))
  yield Row(
    "pendulum, 700 labels (chance)",
    "true reward's gain",
    "share",
    lost.max(),
    0.1,
    missed.min(),
    0.5,
    seconds,
  )


def rows(environment: str) -> Iterator[Row]:
  """Yields the table of an environment."""
  begun = time.perf_counter()
  found = run(environment, ARMS[environment], SEEDS[environment])
  seconds = time.perf_counter() - begun
  tell(found)
  make = {"cart_pole": cart_pole_rows, "pendulum": pendulum_rows}[environment]
  yield from make(found, seconds)


def label_row(environment: str, returns: np.ndarray, seconds: float) -> Row:
  """Returns whether more labels give more return.

  Args:
    environment: which.
    returns: [counts, seeds], of COUNTS.
    seconds: that it took.
  """

  counts, rng = np.array(COUNTS), np.random.default_rng(0)
  seen = [over.rank_correlation(counts, x) for x in returns.T]
  shuffled = [
    [over.rank_correlation(rng.permutation(counts), x) for x in returns.T]
    for _ in range(20)
  ]
  best = np.mean(shuffled, axis=1).max()
  return Row(
    f"{environment}, labels (shuffled)",
    "correlation 1",
    "",
    1.0 - float(np.mean(seen)),
    0.5,
    1.0 - float(best),
    0.6,
    seconds,
  )


def label_rows() -> Iterator[Row]:
  """Yields what returns do as labels grow."""
  arms = {f"{n} by disagreement": Arm(n) for n in COUNTS}
  for environment in ARMS:
    begun = time.perf_counter()
    found = run(environment, arms, SEEDS["cart_pole"])
    tell(found)
    returns = np.stack([x.returns for x in found.values()])
    yield label_row(environment, returns, time.perf_counter() - begun)


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1] not in (*ARMS, "labels"):
    sys.exit(__doc__)
  labels = sys.argv[1] == "labels"
  sys.exit(show(label_rows() if labels else rows(sys.argv[1])))
