"""Where several objectives settle, on a bandit of known optimum.

  python -m tests.proofs.objectives

A weighted sum settles at the tilt by the sum. A constraint E c <= d settles at
the tilt by (r - lambda* c) / beta where it binds, with E c = d, and at the tilt
by r with lambda* = 0 where it does not; with the division by 1 + lambda at
p_ref exp((r - lambda* c) / (beta (1 + lambda*))) / Z, again with E c = d
(METHODS 27.2). lambda* is found by bisection over the enumerated arms.
Everything in between is the package's own: combination, shaping, RLOO, update.

Controls: the weights swapped; the multiplier pulled the other way; a multiplier
that stays at its start.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms.combination import (
  components,
  lagrangian,
  weighted_sum,
)
from rlhf_jax.algorithms.policy_gradient import rloo, shaping, update
from rlhf_jax.types import Components, TrainState
from tests.proofs import fixed_points
from tests.proofs.rows import Row, show

BETA = 0.5
METHOD = rloo.Config(group_size=2)
PAIR = (components.Judge("r"), components.Judge("c"))
TOLERANCE = 5e-3  # nats of KL(p || optimum)
RATE = 0.02  # of the multiplier


@dataclasses.dataclass(frozen=True)
class Case:
  """A problem of two judges.

  module, config: the combination. judges: its two judges.
  control: the config, or the judges, that must miss.
  """

  name: str
  module: Any
  config: Any
  judges: components.Judges = PAIR
  control: Any = None

  def turned(self) -> Case:
    """Returns the control."""
    if isinstance(self.control, tuple):
      return dataclasses.replace(self, judges=self.control)
    return dataclasses.replace(self, config=self.control)


def constrained(limit: float, **fields: Any) -> lagrangian.Config:
  """Returns the constraint E c <= limit."""
  usual = {"cost": "c", "limit": limit, "start": 1.0, "rate": RATE}
  return lagrangian.Config(**(usual | fields))


def cases() -> list[Case]:
  """Returns all rows: both sides of the constraint, both forms."""
  away = {"bound": "at_least"}
  judge = components.Judge
  return [
    Case(
      "weighted sum",
      weighted_sum,
      weighted_sum.Config(),
      (judge("r", 0.8), judge("c", -0.4)),
      (judge("r", -0.4), judge("c", 0.8)),
    ),
    Case(
      "constraint that binds",
      lagrangian,
      constrained(-0.3, divides=False),
      control=constrained(-0.3, divides=False, **away),
    ),
    Case(
      "the same, softplus",
      lagrangian,
      constrained(-0.3, divides=False, form="softplus"),
      control=constrained(-0.3, divides=False, form="softplus", **away),
    ),
    Case(
      "the same, divided",
      lagrangian,
      constrained(-0.3),
      control=constrained(-0.3, **away),
    ),
    Case(
      "one that does not bind",
      lagrangian,
      constrained(5.0, divides=False),
      control=constrained(5.0, divides=False, rate=0.0),
    ),
  ]


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns reward and cost of the arms, and log p_ref.

  Costs go with rewards, so that the constraint hurts.
  """
  reward, log_ref = fixed_points.problem(seed)
  noise = np.random.default_rng(seed + 100).normal(size=reward.shape)
  return reward, (0.6 * reward + 0.8 * noise).astype(np.float32), log_ref


def tilt(
  case: Case, reward: np.ndarray, cost: np.ndarray, log_ref: np.ndarray, force
) -> np.ndarray:
  """Returns log of the tilt under a multiplier."""
  divisor = 1.0 + force if case.config.divides else 1.0
  scored = (reward - force * cost) / divisor
  return fixed_points.log_softmax(log_ref + scored / BETA)


def optimum(
  case: Case, reward: np.ndarray, cost: np.ndarray, log_ref: np.ndarray
) -> tuple[np.ndarray, float]:
  """Returns log of the policy where it should settle, and lambda*."""
  if case.module is weighted_sum:
    first, second = (judge.weight for judge in case.judges)
    total = first * reward + second * cost
    return fixed_points.log_softmax(log_ref + total / BETA), 0.0

  def mean_cost(force: float) -> float:
    p = np.exp(tilt(case, reward, cost, log_ref, force))
    return float(np.sum(p * cost))

  limit, low, high = case.config.limit, 0.0, 1.0
  if mean_cost(0.0) <= limit:
    return tilt(case, reward, cost, log_ref, 0.0), 0.0
  while mean_cost(high) > limit:
    high *= 2.0
  for _ in range(100):
    middle = (low + high) / 2
    is_over = mean_cost(middle) > limit
    low, high = (middle, high) if is_over else (low, middle)
  return tilt(case, reward, cost, log_ref, high), high


@functools.partial(jax.jit, static_argnames=("case", "steps", "count"))
def train(case, reward, cost, log_ref, seed, steps, count):
  """Returns log p [K] and lambda after `steps` rollouts of `count` answers."""
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
  params = {"policy": log_ref}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  how = case.judges, case.config

  def one(carry, key):
    state, combined = carry
    rollout = fixed_points.sample(
      state.params, reward, log_ref, 1.0, key, count
    )
    arm = rollout.tokens[:, 1]
    values = jnp.stack([reward[arm], cost[arm]], axis=1)
    found = Components(values, jnp.ones_like(values), jnp.zeros(count))
    counts = jnp.ones(count)
    combined = case.module.observe(combined, found, counts, *how)
    score = case.module.combine(found, combined, *how)
    rollout, _, _ = shaping.shape_rewards(
      rollout.replace(score=score),
      shaping.init_moments(),
      jnp.float32(BETA),
      fixed_points.SHAPING,
    )
    state, _ = update.update(
      state,
      {},
      rloo.advantages(rollout, METHOD),
      key,
      algorithm=rloo,
      algorithm_config=METHOD,
      config=fixed_points.UPDATE,
      apply=fixed_points.apply,
      optimizer=optimizer,
    )
    if case.module is lagrangian:
      combined, _ = lagrangian.update(combined, found, counts, *how)
    return (state, combined), None

  first = (state, case.module.init(*how))
  keys = jax.random.split(jax.random.key(seed), steps)
  (state, combined), _ = jax.lax.scan(one, first, keys)
  force = jnp.float32(0.0)
  if case.module is lagrangian:
    force = lagrangian.multiplier(combined, case.config)
  return jax.nn.log_softmax(state.params["policy"]), force


@dataclasses.dataclass(frozen=True)
class Result:
  """Of one case, the worst over seeds.

  distance, control: KL to the optimum, nats. force: |lambda - lambda*|.
  excess: E c - d under the learnt policy, exactly; 0 without a constraint.
  start: KL(p_ref || optimum).
  """

  distance: float
  control: float
  force: float
  excess: float
  start: float
  seconds: float

  @property
  def is_good(self) -> bool:
    """Whether it settled where it should, and only so."""
    is_near = self.distance < TOLERANCE and self.force < 0.1
    is_kept = self.excess < 0.02
    is_caught = self.control > 20 * TOLERANCE
    return is_near and is_kept and is_caught and self.start > 4 * TOLERANCE


def measure(
  case: Case, seeds: tuple[int, ...], *, steps: int = 800, count: int = 1024
) -> Result:
  """Trains on each seed, and the control, and measures."""
  begin, found = time.perf_counter(), []
  for seed in seeds:
    reward, cost, log_ref = problem(seed)
    target, best = optimum(case, reward, cost, log_ref)
    told = (jnp.asarray(reward), jnp.asarray(cost), jnp.asarray(log_ref), seed)
    learnt, force = train(case, *told, steps, count)
    missed, _ = train(case.turned(), *told, steps, count)
    learnt, missed = np.asarray(learnt), np.asarray(missed)
    excess = 0.0
    if case.module is lagrangian:
      p = np.exp(np.asarray(learnt, np.float64))
      excess = float(np.sum(p * cost)) - case.config.limit
    found.append(
      (
        fixed_points.kl(learnt, target),
        fixed_points.kl(missed, target),
        abs(float(force) - best),
        excess,
        fixed_points.kl(log_ref, target),
      )
    )
  distance, control, force, excess, start = zip(*found, strict=True)
  return Result(
    max(distance),
    min(control),
    max(force),
    max(excess),
    min(start),
    time.perf_counter() - begin,
  )


def rows() -> Iterator[Row]:
  """Yields the rows of the table."""
  for case in cases():
    found = measure(case, (0, 1, 2))
    yield Row(
      case.name,
      "tilt",
      "KL",
      found.distance,
      TOLERANCE,
      found.control,
      20 * TOLERANCE,
      found.seconds,
      found.is_good,
    )


if __name__ == "__main__":
  sys.exit(show(rows()))
