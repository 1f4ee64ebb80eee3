"""Reward against KL of every family of methods, below the exact frontier.

The most reward that any policy has at a KL to the reference is that of a tilt
p_ref exp(r / beta) / Z (Rafailov et al. 2023, arXiv:2305.18290, figure 2, drew
where methods end; here the frontier itself is known). METHODS annex A4, on the
bandit of bandit.py: both numbers of every point are exact sums over arms, so
what a point is off the frontier is the method's, not that of sampling it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms.policy_gradient import grpo, ppo
from rlhf_jax.evaluation.distance_pictures import Line, Scores, picture
from rlhf_jax.evaluation.pictures import number
from rlhf_jax.evaluation.table_page import Cell, Page, Section, Table
from rlhf_jax.experiments import bandit
from rlhf_jax.experiments import claims as claims_lib
from rlhf_jax.experiments.claims import Claim

ARMS = 64
BETAS = (0.3, 0.6, 1.2, 2.4)
COLOURS = ("after", "fourth", "halt", "fifth", "gold", "before", "before")
RINGS = ("BOND",)  # which shares the colour of what it distils
ROUNDING = 1e-4  # deviations: logits are float32


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is learnt: steps of each method, compared pairs."""

  steps: int = 800
  pairs: int = 4_000
  few: int = 300  # pairs that the learnt reward knows
  betas: tuple[float, ...] = BETAS


SMOKE = Size(steps=150, betas=(0.6, 2.4))


@dataclasses.dataclass(frozen=True)
class Point:
  """Where a method ended.

  setting: "beta 0.3", "best of 4".
  kl: nats. reward: in deviations of the reference, 0 there.
  best: reward of the frontier at that KL.
  """

  method: str
  setting: str
  seed: int
  kl: float
  reward: float
  best: float

  @property
  def share(self) -> float:
    """Reward over the frontier's at the same KL; NaN at the start."""
    return self.reward / self.best if self.best > 1e-3 else math.nan


def measures(
  log_p: np.ndarray, reward: np.ndarray, log_ref: np.ndarray
) -> tuple[float, float]:
  """Returns (KL to the reference in nats, mean reward) of a table [K]."""
  p = np.exp(np.asarray(log_p, np.float64))
  p = p / p.sum()
  is_there = p > 0
  ratio = np.log(p[is_there]) - log_ref[is_there]
  return float(p[is_there] @ ratio), float(p @ reward)


def frontier(reward: np.ndarray, log_ref: np.ndarray, kl: float) -> float:
  """Returns the most reward that a policy has at a KL, by bisection of beta.

  Args:
    reward, log_ref: [K].
    kl: nats, >= 0; beyond that of the best arm alone nothing more is gained.
  """
  low, high = 0.0, 1e4  # strength, 1 / beta: KL grows with it

  def at(strength: float) -> tuple[float, float]:
    tilt = bandit.log_softmax(log_ref + strength * reward)
    return measures(tilt, reward, log_ref)

  for _ in range(80):
    middle = 0.5 * (low + high)
    low, high = (middle, high) if at(middle)[0] < kl else (low, middle)
  return at(high)[1]


Problems = Sequence[tuple[np.ndarray, np.ndarray]]


def _stacked(problems: Problems, betas: Sequence[float]) -> tuple:
  """Returns reward, log_ref, beta, seed of all lanes: seeds by betas."""
  lanes = [(r, q, b, s) for s, (r, q) in enumerate(problems) for b in betas]
  reward, log_ref, beta, seed = zip(*lanes, strict=True)
  return (
    jnp.asarray(np.stack(reward), jnp.float32),
    jnp.asarray(np.stack(log_ref), jnp.float32),
    jnp.asarray(beta, jnp.float32),
    jnp.asarray(seed),
  )


Found = list[tuple[str, str, int, np.ndarray]]  # method, setting, seed, log p


def _by_beta(name: str, log_p: Any, betas: Sequence[float]) -> Found:
  tables = np.asarray(log_p, np.float64)
  return [
    (name, f"beta {betas[i % len(betas)]:g}", i // len(betas), table)
    for i, table in enumerate(tables)
  ]


def _ppo(name: str, known: Problems, size: Size) -> Found:
  """Returns PPO on the rewards of `known`."""
  lanes = _stacked(known, size.betas)
  found = bandit.policy_gradient(ppo, ppo.Config(), *lanes, size.steps)
  return _by_beta(name, found, size.betas)


def _grpo(problems: Problems, size: Size) -> Found:
  """Returns GRPO as published: deviations of a group, k3 in the loss."""
  found: Found = []
  for beta in size.betas:
    config = grpo.Config(group_size=16, kl_loss="k3", kl_loss_coefficient=beta)
    reward, log_ref, _, seed = _stacked(problems, (0.0,))
    zero = jnp.zeros(len(problems))
    lanes = reward, log_ref, zero, seed
    tables = bandit.policy_gradient(grpo, config, *lanes, size.steps)
    found += _by_beta("GRPO", tables, (beta,))
  return found


def _dpo(problems: Problems, size: Size) -> Found:
  batches = [
    bandit.preference_batch(bandit.comparisons(r, q, size.pairs, seed), q)
    for seed, (r, q) in enumerate(problems)
  ]
  batch = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  log_ref = _stacked(problems, (0.0,))[1]
  found: Found = []
  for beta in size.betas:
    tables = bandit.preferred(batch, log_ref, beta, size.steps)
    found += _by_beta("DPO", tables, (beta,))
  return found


def _selection(problems: Problems, size: Size) -> Found:
  """Returns rejection sampling, BOND and best of n itself."""
  reward, log_ref, _, seed = _stacked(problems, (0.0,))
  rounds = bandit.rejection(reward, log_ref, seed, 3, 4, size.steps // 4)
  found: Found = [
    ("RAFT", f"round {i + 1}", lane, table)
    for lane, path in enumerate(np.asarray(rounds, np.float64))
    for i, table in enumerate(path)
  ]
  for n in (4, 16):
    tables = bandit.bonded(reward, log_ref, seed, n, size.steps)
    found += [
      ("BOND", f"best of {n}", lane, table)
      for lane, table in enumerate(np.asarray(tables, np.float64))
    ]
  with np.errstate(divide="ignore"):
    found += [
      ("best of n", f"n {n}", lane, np.log(bandit.exact_best_of_n(r, q, n)))
      for lane, (r, q) in enumerate(problems)
      for n in (2, 4, 8, 16, 64)
    ]
  return found


def run(
  seeds: int, size: Size, say: Callable[[str], None] = print
) -> list[Point]:
  """Trains all methods on all problems; returns where they end.

  Args:
    seeds: problems.
    size: how much is learnt.
    say: prints a line.
  """
  problems = [bandit.problem(seed, ARMS) for seed in range(seeds)]
  learnt = [
    (
      bandit.learnt_reward(bandit.comparisons(r, q, size.few, 100 + s), q),
      q,
    )
    for s, (r, q) in enumerate(problems)
  ]
  parts: Mapping[str, Callable[[], Found]] = {
    "PPO": functools.partial(_ppo, "PPO", problems, size),
    "PPO (learnt)": functools.partial(_ppo, "PPO (learnt)", learnt, size),
    "GRPO": functools.partial(_grpo, problems, size),
    "DPO": functools.partial(_dpo, problems, size),
    "selection": functools.partial(_selection, problems, size),
  }
  points = []
  for name, train in parts.items():
    say(f"{name} ...")
    for method, setting, seed, log_p in train():
      reward, log_ref = problems[seed]
      kl, gained = measures(log_p, reward, log_ref)
      best = frontier(reward, log_ref, kl)
      points.append(Point(method, setting, seed, kl, gained, best))
  return points


def claims(points: Sequence[Point]) -> list[Claim]:
  """Returns what is known of the frontier, and whether it was seen."""
  above = max(points, key=lambda x: x.reward - x.best)
  excess = above.reward - above.best
  true = [x for x in points if x.method == "PPO"]
  worst = min(true, key=lambda x: x.share)
  found = [
    Claim(
      "no policy is above the exact frontier",
      excess <= ROUNDING,
      f"the highest is {above.method}, {above.setting}: {excess:+.5f}",
    ),
    Claim(
      "PPO on the true reward has 90 % of the frontier's reward at its KL",
      worst.share >= 0.9,
      f"the least is {100 * worst.share:.1f} %, {worst.setting}",
    ),
  ]
  learnt = [x for x in points if x.method == "PPO (learnt)"]
  if learnt:
    shares = [float(np.mean([x.share for x in y])) for y in (true, learnt)]
    found.append(
      Claim(
        "PPO on a reward learnt of few comparisons stays below that",
        shares[1] < shares[0],
        f"{100 * shares[1]:.1f} % against {100 * shares[0]:.1f} %",
      )
    )
  return found


def by_setting(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
  """Returns (method, setting) -> its points, one a seed."""
  found: dict[tuple[str, str], list[Point]] = {}
  for point in points:
    found.setdefault((point.method, point.setting), []).append(point)
  return found


def means(those: Sequence[Point]) -> tuple[float, float, float]:
  """Returns mean KL, reward and share."""
  kl, reward, share = (
    np.mean([getattr(x, name) for x in those])
    for name in ("kl", "reward", "share")
  )
  return float(kl), float(reward), float(share)


def picture_of(points: Sequence[Point], seed: int) -> Any:
  """Returns the points of a seed below its frontier."""
  own = [x for x in points if x.seed == seed]
  reward, log_ref = bandit.problem(seed, ARMS)
  far = 1.05 * max(x.kl for x in own)
  kls = np.linspace(1e-3, far, 80)
  best = [frontier(reward, log_ref, k) for k in kls]
  lines = [Line("frontier", kls, best, "ink")]
  for method, colour in zip(
    dict.fromkeys(x.method for x in own), COLOURS, strict=False
  ):
    those = sorted((x.kl, x.reward) for x in own if x.method == method)
    kl, gained = zip(*those, strict=True)
    kind = "rings" if method in RINGS else "points"
    lines.append(Line(method, kl, gained, colour, kind))
  content = Scores(
    "reward (deviations)", lines, xlabel="KL to the reference (nats)"
  )
  return picture(f"Reward against KL, seed {seed}", content, f"frontier {seed}")


def page(
  points: Sequence[Point],
  found: Sequence[Claim],
  facts: Sequence[tuple[str, Any]],
  notes: Sequence[tuple[str, str]] = (),
) -> Page:
  """Returns the page of the study; notes: (level, sentence) at its top."""
  rows = []
  for (method, setting), those in by_setting(points).items():
    kl, reward, share = means(those)
    shares = [x.share for x in those]
    low = f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"
    rows.append(
      [
        f"{method}, {setting}",
        number(kl, 3),
        number(reward, 3),
        Cell(f"{100 * share:.1f} %", low),
      ]
    )
  seeds = sorted({x.seed for x in points})
  heads = ["method", "KL (nats)", "reward", "of the frontier"]
  return Page(
    title="Reward against KL",
    subtitle=f"Every family of methods on {ARMS} answers whose rewards are "
    "known, below the most that any policy has",
    warnings=notes,
    sections=[
      claims_lib.section(found),
      Section("Pictures", pictures=[picture_of(points, x) for x in seeds]),
      Section("Means over seeds", tables=[Table(heads, rows)]),
    ],
    facts=facts,
  )
