"""Over-optimisation where every answer is enumerated: nothing is sampled.

METHODS annex A2a. All answers of LENGTH tokens of KINDS are listed, so policies
are tables and KL, gold and proxy of every policy are exact sums. The reference
draws each token by itself. Gold is an additive score u that turns,

  gold = u - u^2 / (2 TURN) + pairs of neighbours,   u of deviation 1

and judges (one-hot tokens, a hidden layer) learn from comparisons of answers of
the reference. What "rl" is here is where RL with a KL penalty ends: the tilt
p_ref exp(s proxy) / Z, for growing s. Best of n is exact, with its true KL.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.evaluation import kl_law
from rlhf_jax.experiments import study
from rlhf_jax.experiments.bandit import exact_best_of_n, log_softmax
from rlhf_jax.experiments.claims import Claim
from rlhf_jax.experiments.curves import Curve, Row, read, write
from rlhf_jax.types import Array, PyTree

LENGTH, KINDS = 8, 4
TURN = 1.5  # deviations of u where gold turns
PAIRS = 4_000
STRENGTHS = np.concatenate([[0.0], np.geomspace(0.01, 12.0, 48)])
NEAR = 0.05  # sqrt(nats): where a score's own shape does not matter yet
NS = tuple(2**i for i in range(13))
WIDTHS = (0, 2, 8, 32)
SMOKE_WIDTHS = (0, 8)


class Space(NamedTuple):
  """All Y answers. features: [Y, LENGTH * KINDS] one-hot tokens.

  log_ref, gold: [Y] float64; gold has mean 0 and deviation 1 under p_ref.
  """

  features: np.ndarray
  log_ref: np.ndarray
  gold: np.ndarray


def _standard(values: np.ndarray, p: np.ndarray) -> np.ndarray:
  """Returns values with mean 0 and deviation 1 under p."""
  values = values - p @ values
  return values / math.sqrt(float(p @ values**2))


def make(seed: int, length: int = LENGTH) -> Space:
  """Returns all answers with a gold of their own.

  Args:
    seed: of reference and gold.
    length: tokens of an answer.
  """
  rng = np.random.default_rng(seed)
  tokens = np.indices((KINDS,) * length).reshape(length, -1)
  place = np.arange(length)[:, None]
  log_ref = log_softmax(
    rng.normal(0.0, 0.7, (length, KINDS))[place, tokens].sum(axis=0)
  )
  p = np.exp(log_ref)
  u = _standard(rng.normal(size=(length, KINDS))[place, tokens].sum(0), p)
  between = rng.normal(size=(length - 1, KINDS, KINDS))
  pairs = between[place[:-1], tokens[:-1], tokens[1:]].sum(axis=0)
  gold = u - u**2 / (2.0 * TURN) + 0.3 * _standard(pairs, p)
  features = np.eye(KINDS, dtype=np.float32)[tokens.T]
  return Space(features.reshape(len(p), -1), log_ref, _standard(gold, p))


def _scores(params: PyTree, features: Array) -> Array:
  if "linear" in params:
    return features @ params["linear"]
  inner = features @ params["inner"]
  inner = inner + jnp.broadcast_to(params["bias"], inner.shape)
  return jnp.tanh(inner) @ params["outer"]


@functools.partial(jax.jit, static_argnames="width")
def _train(key: Array, pairs: Array, label: Array, width: int) -> PyTree:
  """Returns a judge of pairs [N, 2, F] by Bradley-Terry; label [N]."""
  keys = jax.random.split(key)
  size = pairs.shape[-1]
  params = {"linear": jnp.zeros(size)}
  if width:
    params = {
      "inner": jax.random.normal(keys[0], (size, width)) / size**0.5,
      "bias": jnp.zeros(width),
      "outer": jax.random.normal(keys[1], (width,)) / width**0.5,
    }
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(0.02, 400), weight_decay=1e-3
  )

  def loss(params: PyTree) -> Array:
    scores = _scores(params, pairs)
    margin = scores[:, 0] - scores[:, 1]
    return -jnp.mean(
      jax.nn.log_sigmoid(jnp.where(label > 0.5, margin, -margin))
    )

  def one(carry: tuple, _: None) -> tuple[tuple, None]:
    params, moments = carry
    updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
    return (optax.apply_updates(params, updates), moments), None

  carry = (params, optimizer.init(params))
  return jax.lax.scan(one, carry, None, length=400)[0][0]


def judge(space: Space, width: int, seed: int) -> np.ndarray:
  """Returns [Y] scores of a judge, mean 0 and deviation 1 under p_ref.

  Args:
    space: whose answers are compared.
    width: hidden units, 0 for a linear judge.
    seed: of the comparisons and of its first weights.
  """
  rng = np.random.default_rng(100 + seed)
  p = np.exp(space.log_ref)
  drawn = rng.choice(len(p), (PAIRS, 2), p=p / p.sum())
  gap = (space.gold[drawn[:, 0]] - space.gold[drawn[:, 1]]) / 0.5
  label = rng.random(PAIRS) < 1.0 / (1.0 + np.exp(-gap))
  params = _train(
    jax.random.key(seed),
    jnp.asarray(space.features[drawn]),
    jnp.asarray(label, jnp.float32),
    width,
  )
  raw = np.asarray(_scores(params, jnp.asarray(space.features)), np.float64)
  return _standard(raw, p)


def _distance(p: np.ndarray, log_ref: np.ndarray) -> float:
  """Returns the root of KL(p || p_ref)."""
  kept = p > 0
  kl = float(p[kept] @ (np.log(p[kept]) - log_ref[kept]))
  return math.sqrt(max(kl, 0.0))


def curves(space: Space, width: int, seed: int) -> list[Curve]:
  """Returns tilt and best of n of one judge, both exact.

  Args:
    space: all answers.
    width: of the judge.
    seed: of its comparisons; the curves' seed.
  """
  proxy = judge(space, width, seed)
  name = f"width {width}" if width else "linear"
  tilts = [np.exp(log_softmax(space.log_ref + s * proxy)) for s in STRENGTHS]
  bests = [exact_best_of_n(proxy, space.log_ref, n) for n in NS]
  found = []
  for method, policies in (("best_of_n", bests), ("rl", tilts)):
    found.append(
      Curve(
        judge=name,
        method=method,
        seed=seed,
        distance=[_distance(p, space.log_ref) for p in policies],
        gold=[float(p @ space.gold) for p in policies],
        proxy=[float(p @ proxy) for p in policies],
        ladders={"width": WIDTHS.index(width)},
        facts={"bound": [math.sqrt(best_of_n.kl_bound(n)) for n in NS]}
        if method == "best_of_n"
        else {},
      )
    )
  return found


def run(
  workdir: Path,
  seeds: Sequence[int],
  widths: Sequence[int] = WIDTHS,
  length: int = LENGTH,
  say: Callable[[str], None] = print,
) -> None:
  """Writes what is not there yet.

  Args:
    workdir: of the study.
    seeds: of golds and comparisons.
    widths: of judges.
    length: tokens of an answer.
    say: prints a line.

  Raises:
    UserError: the folder is of another level or size.
  """
  study.record(workdir, {"level": "exact", "length": length})
  there = {
    (x.ladders["width"], x.seed) for x in read(workdir) if x.method == "rl"
  }
  for seed in seeds:
    missing = [w for w in widths if (WIDTHS.index(w), seed) not in there]
    space = make(seed, length) if missing else None
    for width in missing:
      for curve in curves(space, width, seed):
        write(workdir, curve)
    say(f"seed {seed}: {len(missing)} judges")


def laws(table: Sequence[Row]) -> list[Claim]:
  """Returns whether the exact curves keep the laws that they must keep."""
  tilts = [c for row in table if row.method == "rl" for c in row.curves]
  ratios = []
  for curve in tilts:
    d, gain = np.asarray(curve.distance), np.asarray(curve.proxy)
    near = d < NEAR
    slope = float(np.sum(d[near] * gain[near]) / np.sum(d[near] ** 2))
    ratios.append(slope / kl_law.BEST)
  mean = float(np.mean(ratios)) if ratios else math.nan
  over_bound = [
    exact**2 - bound**2
    for row in table
    if row.method == "best_of_n"
    for c in row.curves
    for exact, bound in zip(c.distance, c.facts["bound"], strict=True)
  ]
  worst = max(over_bound, default=math.nan)
  return [
    Claim(
      "near the start the tilt's proxy rises by sqrt(2) d, within 1 %",
      abs(mean - 1.0) < 0.01,
      f"{mean:.4f} of it, the mean of {len(ratios)}",
    ),
    Claim(
      "best of n is never farther than log n - (n - 1) / n",
      worst <= 1e-9,
      f"{worst:+.5f} nats at most",
    ),
  ]
