"""Rewards of tokens that leave the optimum where it is, and some that do not.

  python -m tests.proofs.token_rewards

prints one line per method and judge, the worst of seeds 0 to 2: KL from the
learnt policy to p_ref exp(r / beta) / Z with a potential (Ng, Harada and
Russell 1999), and the control, the same run with the judge's values as raw
rewards, which must miss. It fails (exit code 1) where one is not so.

All 64 answers of T = 3 tokens of V = 4 are known, the policy is a table of
logits for each of the 21 beginnings, the critic a number for each. What the
judge thinks of a beginning is drawn at random: it knows nothing of the score,
so a potential is of no help here and must do no harm. "prefixes" values all of
them, the prompt too, "steps" only those that end with the second token. The
package's own shaping, advantages, loss and update are in between (docs/
METHODS.md 27.3).
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  ppo,
  reinforce_pp,
  shaping,
  update,
)
from rlhf_jax.types import Rollout, TrainState
from tests import plain
from tests.proofs.fixed_points import kl, log_softmax
from tests.proofs.rows import Row, show

BETA = 0.5
LENGTH, WORDS = 3, 4
STATES = sum(WORDS**t for t in range(LENGTH))
SEQUENCES = np.stack(np.indices((WORDS,) * LENGTH), -1).reshape(-1, LENGTH)
METHODS: dict[str, tuple[ModuleType, Any]] = {
  "ppo": (ppo, ppo.Config()),
  "reinforce_pp": (
    reinforce_pp,
    reinforce_pp.Config(scales_advantages=False),
  ),
}
JUDGES = {  # columns with a value: of the prompt, and of each token
  "prefixes": (1.0, 1.0, 1.0, 1.0),
  "steps": (0.0, 0.0, 1.0, 1.0),
}
UPDATE = update.Config(epochs=1, minibatches=1)
STEPS, TOLERANCE, FLOOR = 800, 5e-3, 0.1


def problem(seed: int) -> dict[str, np.ndarray]:
  """Returns score [64], reference [21, 4] and what is thought [21 + 64]."""
  rng = np.random.default_rng(seed)
  return {
    "score": rng.normal(size=len(SEQUENCES)).astype(np.float32),
    "reference": rng.normal(0, 0.7, (STATES, WORDS)).astype(np.float32),
    "thought": rng.normal(size=STATES + len(SEQUENCES)).astype(np.float32),
  }


def states(answers: jax.Array) -> jax.Array:
  """Returns [N, T + 1] numbers of the beginnings of answers [N, T]."""
  found, number = [jnp.zeros(answers.shape[:1], jnp.int32)], 0
  for t in range(LENGTH):
    number = number * WORDS + answers[:, t]
    first = sum(WORDS**n for n in range(t + 1))
    found.append(first + number)
  return jnp.stack(found, axis=1)


def apply(params, frozen, rollout):
  """Tables over the state before each token; column 0 is the prompt."""
  del frozen
  before = jnp.pad(states(rollout.tokens[:, 1:])[:, :-1], ((0, 0), (1, 0)))
  logits = params["policy"][before]
  logprobs = plain.logprobs_of_logits(logits, rollout.tokens)
  values = params["value"][before] if "value" in params else None
  return logprobs, ops.entropy(logits), values


def sample(params, problem, judge, key, count) -> Rollout:
  """Returns `count` judged answers."""
  number = jnp.zeros(count, jnp.int32)
  answers = []
  for t, step_key in enumerate(jax.random.split(key, LENGTH)):
    first = sum(WORDS**n for n in range(t))
    drawn = jax.random.categorical(step_key, params["policy"][first + number])
    answers.append(drawn)
    number = number * WORDS + drawn
  answers = jnp.stack(answers, axis=1)
  tokens = jnp.pad(answers, ((0, 0), (1, 0)))
  mask = jnp.ones(tokens.shape).at[:, 0].set(0.0)
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(count, jnp.int32),
    reference_logprobs=mask,
    score=problem["score"][number],
    prefix_values=problem["thought"][states(answers)],
    prefix_mask=jnp.broadcast_to(jnp.asarray(judge), mask.shape),
  )
  behaviour, _, values = apply(params, {}, rollout)
  reference, _, _ = apply(
    params | {"policy": problem["reference"]}, {}, rollout
  )
  return rollout.replace(
    behaviour_logprobs=behaviour, reference_logprobs=reference, values=values
  )


@functools.partial(
  jax.jit, static_argnames=("name", "judge", "mode", "steps", "count")
)
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0, None, None))
def train(name, judge, mode, problem, seed, steps, count):
  """Returns the table of logits [21, 4] after `steps` rollouts, per lane."""
  module, config = METHODS[name]
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
  params = {"policy": problem["reference"]}
  if module is ppo:
    params["value"] = jnp.zeros(STATES)
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  shape = shaping.Config(clip=None, token_rewards=mode)

  def one(state: TrainState, key):
    rollout = sample(state.params, problem, JUDGES[judge], key, count)
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), jnp.float32(BETA), shape
    )
    state, _ = update.update(
      state,
      {},
      module.advantages(rollout, config),
      key,
      algorithm=module,
      algorithm_config=config,
      config=UPDATE,
      apply=apply,
      optimizer=optimizer,
    )
    return state, None

  keys = jax.random.split(jax.random.key(seed), steps)
  state, _ = jax.lax.scan(one, state, keys)
  return state.params["policy"]


def log_policy(table: np.ndarray) -> np.ndarray:
  """Returns log p [64] of all answers, of a table of logits."""
  each = np.stack([log_softmax(row) for row in table])
  before = np.asarray(states(jnp.asarray(SEQUENCES)))[:, :-1]
  return each[before, SEQUENCES].sum(axis=1)


def distances(
  name: str,
  judge: str,
  mode: str,
  seeds: tuple[int, ...],
  steps: int = STEPS,
  count: int = 1024,
) -> list[float]:
  """Returns KL(p || p_ref exp(r / beta) / Z) in nats, of each seed.

  Args:
    name: of METHODS.
    judge: of JUDGES.
    mode: of token rewards.
    seeds: of problems and of samples.
    steps: rollouts.
    count: answers of each.
  """
  problems = [problem(seed) for seed in seeds]
  stacked = {k: np.stack([p[k] for p in problems]) for k in problems[0]}
  learnt = train(name, judge, mode, stacked, jnp.asarray(seeds), steps, count)
  return [
    kl(
      log_policy(table),
      log_softmax(log_policy(p["reference"]) + p["score"] / BETA),
    )
    for table, p in zip(np.asarray(learnt, np.float64), problems, strict=True)
  ]


def rows(steps: int = STEPS) -> Iterator[Row]:
  """Yields a row for each method and judge; without token rewards first."""
  seeds = (0, 1, 2)
  for name in METHODS:
    for judge in (None, *JUDGES):
      begin = time.perf_counter()
      mode = "none" if judge is None else "potential"
      used = judge or "prefixes"
      label = f"potential: {judge}" if judge else "score alone"
      found = distances(name, used, mode, seeds, steps)
      control = distances(name, used, "raw", seeds, steps)
      yield Row(
        f"{name}, {label}",
        "tilt",
        "KL",
        max(found),
        TOLERANCE,
        min(control),
        FLOOR,
        time.perf_counter() - begin,
      )


if __name__ == "__main__":
  sys.exit(show(rows()))
