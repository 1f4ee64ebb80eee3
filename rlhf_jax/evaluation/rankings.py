"""Any number of policies, ranked by how often each beats each other one.

  P(i beats j) = sigma(s_i - s_j),  sum_i s_i = 0   (Bradley and Terry 1952)
  Elo_i = 400 / ln 10 * s_i                         (173.7 a nat)

The unit is the prompt: intervals resample prompts, each with all its answers,
so what two policies share on a prompt cancels. To every pair a few ties are
added (virtual_ties), without which a policy that wins always has no finite
strength; they draw towards 0, the less the more prompts there are.

Left out: intransitive judges, of which one number a policy says too little; the
matrix of win rates shows them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation import win_rate
from rlhf_jax.types import Array

ELO = 400.0 / math.log(10.0)  # of a difference of 1 nat
VIRTUAL_TIES = 1.0
_STEPS = 100  # of Newton's method
_ENDLESS = 60.0  # nats: nothing holds this strength
_CLOSE = 1e-10  # of a step


class Ranked(NamedTuple):
  """A policy among others.

  elo: mean of all policies 0.
  low, high: 95 % bootstrap interval over prompts.
  win_rate: mean over the other policies; 0.5 is as good as they are.
  """

  elo: float
  low: float
  high: float
  win_rate: float


def outcomes(scores: Array) -> np.ndarray:
  """Returns [n, P, P]: 1 where i beats j on a prompt, 0.5 on a tie, else 0.

  Args:
    scores: [P, n], of one judge; only the order within a prompt matters.

  Raises:
    ValueError: fewer than 2 policies or prompts, or a score not finite.
  """
  table = np.asarray(scores, np.float64)
  if table.ndim != 2 or min(table.shape) < 2:
    raise ValueError(
      f"scores has shape {table.shape}: [policies, prompts] is wanted, 2 or "
      "more of each."
    )
  for i, row in enumerate(table):
    win_rate.finite_vector(f"scores[{i}]", row)
  return 0.5 * (1.0 + np.sign(table[:, None, :] - table[None, :, :])).transpose(
    2, 0, 1
  )


def win_matrix(
  scores: Array, groups: Sequence[int] | None = None
) -> np.ndarray:
  """Returns [P, P]: the share of prompts on which i beats j; 0.5 inside.

  Args:
    scores: see `outcomes`.
    groups: see `rank`.
  """
  return by_group(outcomes(scores), groups).mean(axis=0)


def strengths(
  wins: Array, prompts: int, virtual_ties: float = VIRTUAL_TIES
) -> np.ndarray:
  """Returns [P] Bradley-Terry strengths in nats, their sum 0.

  The maximum of sum_ij w_ij log sigma(s_i - s_j), by Newton's method.

  Args:
    wins: [P, P] share of prompts on which i beats j; wins[i,j] + wins[j,i] = 1.
    prompts: that each pair was compared on.
    virtual_ties: added to each pair.

  Raises:
    ValueError: no ties and a policy, or a set of them, that always won.
  """
  share = np.asarray(wins, np.float64)
  count = len(share)
  weight = prompts + virtual_ties
  target = (prompts * share + 0.5 * virtual_ties) / weight
  np.fill_diagonal(target, 0.5)
  found = np.zeros(count)
  pull = np.full((count, count), 1.0 / count)  # keeps the sum at 0
  for _ in range(_STEPS):
    expected = 1.0 / (1.0 + np.exp(found[None, :] - found[:, None]))
    slope = (target - expected).sum(axis=1)
    curve = expected * (1.0 - expected)
    np.fill_diagonal(curve, 0.0)
    laplacian = np.diag(curve.sum(axis=1)) - curve
    if np.abs(found).max() > _ENDLESS:
      break
    try:
      step = np.linalg.solve(laplacian + pull, slope)
    except np.linalg.LinAlgError:  # nothing holds two groups together
      break
    found = found + step / max(1.0, float(np.abs(step).max()))
    if np.abs(step).max() < _CLOSE:
      return found - found.mean()
  raise ValueError(
    "the strengths have no finite maximum: somebody won always. Set "
    f"virtual_ties > 0 ({VIRTUAL_TIES} is usual)."
  )


def by_group(values: np.ndarray, groups: Sequence[int] | None) -> np.ndarray:
  """Returns [groups, ...] means of values [n, ...] over each group.

  Args:
    values: one a prompt and sample.
    groups: [n] number of the prompt of each; None where each is its own.
  """
  if groups is None:
    return values
  _, place, counts = np.unique(
    np.asarray(groups), return_inverse=True, return_counts=True
  )
  total = np.zeros((len(counts), *values.shape[1:]))
  np.add.at(total, place, values)
  return total / counts.reshape(-1, *[1] * (values.ndim - 1))


def rank(
  scores: Array,
  *,
  groups: Sequence[int] | None = None,
  seed: int = 0,
  resamples: int = 1000,
  virtual_ties: float = VIRTUAL_TIES,
) -> list[Ranked]:
  """Returns each policy's Elo with its interval, in the order of `scores`.

  Args:
    scores: see `outcomes`.
    groups: [n] number of the prompt, where some were answered several times;
      those are one unit.
    seed: of the resampling.
    resamples: number of resampled sets of prompts.
    virtual_ties: see `strengths`.
  """
  each = by_group(outcomes(scores), groups)
  prompts, count, _ = each.shape
  whole = each.mean(axis=0)
  elo = ELO * strengths(whole, prompts, virtual_ties)
  generator = np.random.default_rng(seed)
  even = np.full(prompts, 1.0 / prompts)
  drawn = generator.multinomial(prompts, even, resamples) / prompts
  resampled = (drawn @ each.reshape(prompts, -1)).reshape(-1, count, count)
  found = np.array(
    [ELO * strengths(wins, prompts, virtual_ties) for wins in resampled]
  )
  low, high = np.quantile(found, [0.025, 0.975], axis=0)
  beaten = (whole.sum(axis=1) - 0.5) / (count - 1)
  return [
    Ranked(*map(float, row)) for row in zip(elo, low, high, beaten, strict=True)
  ]
