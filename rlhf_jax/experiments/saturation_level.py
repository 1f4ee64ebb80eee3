"""Over-optimisation where gold is known: judges on the engineered saturation.

METHODS annex A2b and A3, on the gold of saturation.py, which turns where
samples of the reference hardly go:

  width   linear, 4 and 32 hidden units on 4,000 clean pairs
  data    8 hidden units on 250, 1,000 and 4,000 clean pairs
  noise   8 hidden units on 1,000 pairs, 40, 25 or 10 % of labels flipped
  rule    5 members on bootstraps of 1,000 pairs, a quarter flipped: mean, min,
          UWO; beside them one judge on all of these pairs
  KL      the linear judge with a penalty in the reward

Each judge is optimised by REINFORCE from the reference and by best of n. KL,
gold and everything but the proxy are exact along RL; best of n is the unbiased
estimate from SAMPLES answers, its KL the bound, which is exact but for atoms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import best_of_n, ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.experiments import saturation, study
from rlhf_jax.experiments.curves import Curve, read, write
from rlhf_jax.types import Array, PyTree

MEMBERS = 5
REFERENCES = 2_000  # bags that scores are normalised on
HELDOUT = 2_000  # clean pairs
PROXY_BAGS = 64  # of each policy, for its mean proxy score


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is computed: steps of RL, samples and largest n of best of n."""

  steps: int = 300
  samples: int = 32_768
  most: int = 8_192


SMOKE = Size(steps=60, samples=512, most=64)


@dataclasses.dataclass(frozen=True)
class Condition:
  """A judge and how it is optimised.

  width: hidden units, 0 for a linear one.
  flips: share of labels turned round.
  penalty: of the KL in the reward; such a judge is not for best of n.
  single: of an ensemble, the one judge that it is held against, which learns
    from all pairs, its members from bootstraps of them.
  """

  judge: str
  width: int = 8
  pairs: int = 4_000
  flips: float = 0.0
  members: int = 1
  rule: str = "single"
  combination: Combination = Combination()
  penalty: float = 0.0
  ladders: tuple[tuple[str, int], ...] = ()  # see Curve
  single: str = ""


def conditions() -> list[Condition]:
  """Returns the judges of the study."""
  noisy = {"pairs": 1_000, "flips": 0.25}
  one = "25 % flipped"
  several = {**noisy, "members": MEMBERS, "single": one}
  uwo = Combination("uwo", 0.5)
  return [
    Condition("linear", 0, ladders=(("width", 0),)),
    Condition("width 4", 4, ladders=(("width", 1),)),
    Condition("width 32", 32, ladders=(("width", 2),)),
    Condition("250 pairs", pairs=250, ladders=(("data", 0),)),
    Condition("1,000 pairs", pairs=1_000, ladders=(("data", 1),)),
    Condition("4,000 pairs", pairs=4_000, ladders=(("data", 2),)),
    Condition("40 % flipped", pairs=1_000, flips=0.4, ladders=(("noise", 0),)),
    Condition(one, **noisy, ladders=(("noise", 1),)),
    Condition("10 % flipped", pairs=1_000, flips=0.1, ladders=(("noise", 2),)),
    Condition("mean of 5", rule="mean", **several),
    Condition(
      "min of 5", rule="min", combination=Combination("min"), **several
    ),
    Condition("UWO of 5", rule="uwo", combination=uwo, **several),
    Condition("linear, KL penalty 0.2", 0, penalty=0.2),
  ]


def _members(
  key: Array, problem: saturation.Problem, how: Condition
) -> tuple[PyTree, Array]:
  """Returns weights of all members, stacked, and the pairs' counts."""
  keys = jax.random.split(key, 4)
  bags = saturation.sample(keys[0], problem.reference, 2 * how.pairs)
  counts = bags.reshape(how.pairs, 2, saturation.KINDS)
  pairs = saturation.compare(keys[1], problem, counts, how.flips)
  weight = jnp.ones((how.members, how.pairs))
  if how.members > 1:
    drawn = jax.random.randint(keys[2], (how.members, how.pairs), 0, how.pairs)
    weight = jax.vmap(lambda x: jnp.bincount(x, length=how.pairs))(drawn)
  train = functools.partial(saturation.train_proxy, width=how.width)
  starts = jax.random.split(keys[3], how.members)
  each = jax.vmap(lambda k, w: train(k, problem, pairs, w))
  return each(starts, weight.astype(jnp.float32)), counts


def _judge(
  key: Array, problem: saturation.Problem, params: PyTree, how: Condition
) -> Callable[[Array], Array]:
  """Returns bags [N, V] -> scores [N], of members in their own units."""

  def raw(counts: Array) -> Array:
    one = lambda p: saturation.score(p, problem, counts)  # noqa: E731
    return jax.vmap(one, out_axes=-1)(params)

  known = raw(saturation.sample(key, problem.reference, REFERENCES))
  mean, deviation = known.mean(0), known.std(0)

  def judge(counts: Array) -> Array:
    scores = raw(counts)
    shape = (1,) * (scores.ndim - 1) + (-1,)
    scores = (scores - mean.reshape(shape)) / deviation.reshape(shape)
    return ensemble.combined(scores, how.combination)

  return judge


@functools.partial(jax.jit, static_argnames=("how", "size"))
def _run(seed: Array, how: Condition, size: Size) -> dict[str, Array]:
  """Returns the curves of one seed.

  Judges of one seed share the gold, and as far as they go the pairs.
  """
  problem = saturation.make(jax.random.key(seed))
  keys = jax.random.split(jax.random.key(10_000 + seed), 6)
  params, _ = _members(keys[0], problem, how)
  judge = _judge(keys[1], problem, params, how)
  path = saturation.optimise(
    keys[2],
    judge,
    problem.reference,
    steps=size.steps,
    penalty=how.penalty,
  )
  distance, gold = saturation.curve(problem, path)
  bags = jax.vmap(saturation.sample, (0, 0, None))
  along = bags(jax.random.split(keys[3], len(path)), path, PROXY_BAGS)
  many = saturation.sample(keys[4], problem.reference, size.samples)
  fresh = saturation.sample(keys[5], problem.reference, 2 * HELDOUT)
  fresh = fresh.reshape(HELDOUT, 2, saturation.KINDS)
  known = saturation.compare(jax.random.fold_in(keys[5], 1), problem, fresh)
  scores = judge(fresh)
  is_right = (scores[:, 0] > scores[:, 1]) == (known.label > 0.5)
  return {
    "distance": distance,
    "gold": gold,
    "proxy": judge(along).mean(-1),
    "sampled_proxy": judge(many),
    "sampled_gold": saturation.gold(problem, many),
    "accuracy": jnp.mean(is_right.astype(jnp.float32)),
  }


def _curves(seed: int, how: Condition, size: Size) -> list[Curve]:
  """Returns RL and, without a penalty, best of n of one seed."""
  found = jax.device_get(_run(jnp.int32(seed), how, size))
  facts = {"accuracy": float(found["accuracy"]), "pairs": how.pairs}
  if how.single:
    facts["single"] = how.single
  common = {
    "judge": how.judge,
    "seed": seed,
    "ladders": dict(how.ladders),
    "rule": how.rule,
    "facts": facts,
  }
  rl = Curve(
    method="rl",
    distance=_numbers(found["distance"]),
    gold=_numbers(found["gold"] - found["gold"][0]),
    proxy=_numbers(found["proxy"] - found["proxy"][0]),
    probe_every=10,
    **common,
  )
  if how.penalty:
    return [rl]
  ns = [2**i for i in range(int(math.log2(size.most)) + 1)]
  proxy, gold = (
    np.asarray(found[k], np.float64)[None]
    for k in ("sampled_proxy", "sampled_gold")
  )
  curve = functools.partial(best_of_n.best_of_n_curve, proxy, ns=ns)
  return [
    rl,
    Curve(
      method="best_of_n",
      distance=[math.sqrt(best_of_n.kl_bound(n)) for n in ns],
      gold=_numbers(curve(gold)[0] - gold.mean()),
      proxy=_numbers(curve(proxy)[0] - proxy.mean()),
      **common,
    ),
  ]


def _numbers(values: np.ndarray) -> list[float]:
  return [round(float(x), 6) for x in values]


def run(
  workdir: Path,
  seeds: Sequence[int],
  size: Size,
  chosen: Sequence[Condition] | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Runs what is not there yet, a file for each judge, method and seed.

  Args:
    workdir: of the study.
    seeds: of golds, pairs, proxies and policies.
    size: how much.
    chosen: judges; None for all.
    say: prints a line.

  Raises:
    UserError: the folder is of another level or size.
  """
  study.record(workdir, {"level": "saturation", **dataclasses.asdict(size)})
  there = {(x.judge, x.seed) for x in read(workdir) if x.method == "rl"}
  for how in conditions() if chosen is None else chosen:
    missing = [seed for seed in seeds if (how.judge, seed) not in there]
    for seed in missing:
      # RL last: what is looked for above is there when all is.
      for curve in reversed(_curves(seed, how, size)):
        write(workdir, curve)
    if missing:
      say(f"{how.judge}: {len(missing)} seeds")
