"""Comparisons that a reward model is unsure of teach it more than others.

  python -m tests.proofs.what_to_label

prints a learning curve of each way to choose what is labelled next, one line
per claim, and fails (exit code 1) where one does not hold, or where the control
does not miss (METHODS 27.9).

Answers have D = 16 normal features and the preference is linear in them, so a
learnt score at angle a to it orders a share 1 - a / pi of new pairs as it does.
Labels are Bradley-Terry, of answers that often differ clearly: their difference
has a deviation of 3 nats. Rounds as in pipelines/iterate.py: each draws CHOICE
candidates for a comparison, has COUNT of them labelled, and trains MEMBERS
models on bootstrap samples of all labels so far with the package's loss. The
first round draws; afterwards programs/iterated.chosen, as in a run, takes

  random        any of them: the baseline
  uncertainty   those whose P is nearest to 1/2 by the members' mean
  disagreement  those on whose difference the members differ most, each in
                units of its own deviation, as a run's members are: raw, they
                differ most in their scale, so on the surest pairs
  control       the surest: the same number of labels where P is nearest to 0
                or 1, which must teach less than drawing does

A claim is of the whole curve: z, the gain over `random`, the mean of all rounds
that chose, in standard errors over seeds, above 2.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import ensemble, reward_losses
from rlhf_jax.programs import iterated
from tests.proofs.rows import Row, show

FEATURES, DEVIATION = 16, 3.0  # of an answer; of a difference, nats
ROUNDS, COUNT, CHOICE = 10, 40, 8  # labels of a round; candidates for each
MEMBERS, SEEDS = 5, 96
DECAY = 0.05  # of weights, nats per label and unit
RULES = ("random", "uncertainty", "disagreement")
SUREST = "surest"


@jax.jit
def _fitted(pairs: jax.Array, label: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns [M, D], linear scores by Newton's method on the pairwise loss.

  Args:
    pairs: [N, 2, D] features.
    label: [N], 1 where the first is better.
    weight: [N, M], how often a pair counts for a member.
  """

  def fit(weight: jax.Array) -> jax.Array:
    def loss(score: jax.Array) -> jax.Array:
      each = reward_losses.pairwise_loss(pairs @ score, label)
      return jnp.sum(weight * each) + DECAY * jnp.sum(jnp.square(score))

    def step(score: jax.Array, _: None) -> tuple:
      gradient, hessian = jax.grad(loss)(score), jax.hessian(loss)(score)
      return score - jnp.linalg.solve(hessian, gradient), None

    found, _ = jax.lax.scan(step, jnp.zeros(pairs.shape[-1]), None, 8)
    return found

  return jax.vmap(fit, in_axes=-1)(weight)


def _chosen(
  rule: str, members: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Returns which candidates are labelled.

  Args:
    rule: of RULES, or SUREST.
    members: [candidates, 2, M] scores of both answers, each in its member's
      deviations.
    rng: of what is drawn.
  """
  scores = members.mean(axis=2)
  if rule == SUREST:
    gap = np.abs(scores[:, 0] - scores[:, 1])
    return np.argsort(-gap)[:COUNT]
  groups = [
    {"number": n, "scores": scores[n], "members": members[n]}
    for n in range(len(scores))
  ]
  found = iterated.chosen(groups, COUNT, rule, rng)
  return np.asarray([group["number"] for group in found])


def run(rule: str, seed: int) -> list[float]:
  """Returns the share of new pairs in the planted order, after each round."""
  rng = np.random.default_rng(seed)
  planted = rng.normal(size=FEATURES)
  planted *= DEVIATION / (np.sqrt(2.0) * np.linalg.norm(planted))
  pairs = np.zeros((ROUNDS * COUNT, 2, FEATURES))
  label, weight = np.zeros(len(pairs)), np.zeros((len(pairs), MEMBERS))
  learnt, found = np.zeros((MEMBERS, FEATURES)), []
  for number in range(ROUNDS):
    rng = np.random.default_rng([seed, number])  # the same for every rule
    candidates = rng.normal(size=(CHOICE * COUNT, 2, FEATURES))
    chance = rng.uniform(size=len(candidates))
    how = rule if number else "random"
    scale = np.linalg.norm(learnt, axis=1) + 1e-12  # deviation of its scores
    taken = _chosen(how, candidates @ (learnt.T / scale), rng)
    gap = (candidates @ planted) @ np.array([1.0, -1.0])
    first = chance < 1.0 / (1.0 + np.exp(-gap))
    here = slice(number * COUNT, (number + 1) * COUNT)
    pairs[here], label[here] = candidates[taken], first[taken]
    known = here.stop
    weight[:known] = ensemble.member_weights(
      np.arange(known)[:, None], MEMBERS, "bootstrap", seed
    )
    learnt = np.asarray(_fitted(pairs, label, weight), np.float64)
    mean = learnt.mean(axis=0)
    cosine = mean @ planted / np.linalg.norm(mean) / np.linalg.norm(planted)
    found.append(1.0 - float(np.arccos(np.clip(cosine, -1.0, 1.0))) / np.pi)
  return found


@functools.lru_cache
def curves(rule: str, seeds: int = SEEDS) -> np.ndarray:
  """Returns [seeds, ROUNDS]; see `run`."""
  return np.asarray([run(rule, seed) for seed in range(seeds)])


def gain(rule: str, seeds: int = SEEDS) -> float:
  """Returns z: the gain over random in standard errors over seeds."""
  apart = (curves(rule, seeds) - curves("random", seeds))[:, 1:].mean(axis=1)
  return float(apart.mean() / (apart.std(ddof=1) / np.sqrt(seeds)))


def rows() -> Iterator[Row]:
  """Yields a claim a rule, with the control."""
  for rule in RULES[1:]:
    begun = time.perf_counter()
    yield Row(
      rule,
      "above random",
      "-z",
      -gain(rule),
      -2.0,
      -gain(SUREST),
      2.0,
      time.perf_counter() - begun,
    )


def table() -> str:
  """Returns the learning curves as a table."""
  names = (*RULES, SUREST)
  lines = ["labels" + "".join(f"{name:>14}" for name in names)]
  means = [curves(name).mean(axis=0) for name in names]
  for number in range(ROUNDS):
    shown = "".join(f"{mean[number]:14.4f}" for mean in means)
    lines.append(f"{(number + 1) * COUNT:6}{shown}")
  return "\n".join(lines)


def main() -> int:
  """Prints the claims and the curves."""
  code = show(rows())
  print(f"share of new pairs in the planted order\n{table()}")
  return code


if __name__ == "__main__":
  sys.exit(main())
