"""Best of n, its KL, its distillation (BOND, J-BOND) and its iteration (RAFT).

  python -m tests.proofs.selection

prints one line per claim, the worst of seeds 0, 1 and 2, and fails (exit code
1) where a distance exceeds its tolerance or a control does not miss.

One prompt, one token of K = 64 arms, a table of logits as the policy; best of
n is then known exactly (METHODS 7, annex A12).

  bond        pi_4, by samples of best of 4 and of the policy, with exact
              quantiles, or with those of 64 reference samples
  j-bond      with a fixed anchor, the minimum of its own expected loss,
                (1 - b) CE(pi_2, pi) + b (KL(pi || p_ref) - E_pi R)
                R(y) = -log 16 (1 - F(y))^2;
              with one that is moved to where that ended, a second round ends
              near pi_4; with one that follows, it passes by pi_4 on its way up
  raft        three rounds of "keep the best of 4 and imitate": mean reward of
              the best of 4 of the best of 4 of the best of 4, as a share of
              what that gains
  best of 64  the KL by bound, estimate and enumeration, without and with atoms

Controls: the scores' sign turned; an anchor that stays; a winner drawn at
random; the bound where there are atoms.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from rlhf_jax import ops
from rlhf_jax.algorithms import best_of_n, bond, sft
from rlhf_jax.types import TokenBatch, TrainState
from tests import plain
from tests.algorithms import exact_best_of_n
from tests.proofs.fixed_points import kl, log_softmax, problem, total_variation
from tests.proofs.rows import Row, show

ARMS = 64
N = 4
SEEDS = (0, 1, 2)
STEPS = 600
COUNT = 1024  # samples a step
REFERENCES = 64  # reference samples that stand for a quantile
exact = exact_best_of_n.probabilities_of_best


def best_log(log_p: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
  """Returns log of the exact best of n, float64; -inf where p is 0."""
  with np.errstate(divide="ignore"):
    return np.log(exact(np.exp(log_softmax(log_p)), reward, n))


def exact_ratios(reward: np.ndarray, log_ref: np.ndarray) -> jax.Array:
  """Returns [K], log(pi_N / p_ref) by the package's formula."""
  p = np.exp(log_softmax(log_ref))
  at_most = np.array([p[reward <= r].sum() for r in reward])
  below = np.array([p[reward < r].sum() for r in reward])
  with np.errstate(divide="ignore"):
    logs = np.log(np.minimum(at_most, 1.0)), np.log(below)
  return bond.log_best_of_n_ratio(jnp.asarray(logs[0]), N, jnp.asarray(logs[1]))


def sampled(log_p: jax.Array, key: jax.Array, *shape: int) -> jax.Array:
  """Returns arms drawn from a table, by inversion: one uniform number each."""
  cumulative = jnp.cumsum(jax.nn.softmax(log_p))
  arm = jnp.searchsorted(cumulative, jax.random.uniform(key, shape))
  return jnp.minimum(arm, log_p.shape[0] - 1)


def jeffreys(logits, anchor, best, own, ratio, config: bond.Config):
  """Returns the package's loss on arms `best` and `own` [B]."""
  log_p, log_anchor = jax.nn.log_softmax(logits), jax.nn.log_softmax(anchor)
  mask = jnp.ones((own.shape[0], 1))
  return bond.loss(
    log_p[best][:, None],
    mask,
    log_p[own][:, None],
    mask,
    log_anchor[own][:, None],
    ratio,
    config,
  )[0]


def bond_step(logits, anchor, problem_, key, kind: str):
  """Returns one gradient; `kind` says who makes log_target_ratio."""
  reward, log_ref, ratios = problem_
  keys = jax.random.split(key, 3)
  own = sampled(logits, keys[0], COUNT)
  source = anchor if kind == "anchor" else log_ref
  drawn = sampled(source, keys[1], COUNT, 2 if kind == "anchor" else N)
  best = jnp.take_along_axis(
    drawn, best_of_n.select_best(reward[drawn])[:, None], axis=1
  )[:, 0]
  if kind == "anchor":
    ratio = bond.j_bond_ratio(reward[own], reward[drawn])
  elif kind == "exact":
    ratio = ratios[own]
  else:
    others = reward[sampled(log_ref, keys[2], COUNT, REFERENCES)]
    at_most = bond.log_quantile(reward[own], others)
    ratio = bond.log_best_of_n_ratio(at_most, N)
  loss = functools.partial(jeffreys, config=bond.Config())
  return jax.grad(loss)(logits, source, best, own, ratio)


@functools.partial(jax.jit, static_argnames=("kind", "anchor_rate"))
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None, None))
def distil(reward, log_ref, ratios, seed, kind, anchor_rate):
  """Returns [steps, K], log p after every step of Adam, per lane."""
  decay = optax.cosine_decay_schedule(0.05, STEPS)
  optimizer = optax.adam(0.05 if anchor_rate else decay)

  def one(carry, key):
    logits, anchor, moments = carry
    found = bond_step(logits, anchor, (reward, log_ref, ratios), key, kind)
    updates, moments = optimizer.update(found, moments)
    logits = optax.apply_updates(logits, updates)
    anchor = bond.move_anchor(anchor, logits, anchor_rate)
    return (logits, anchor, moments), jax.nn.log_softmax(logits)

  keys = jax.random.split(jax.random.key(seed), STEPS)
  start = (log_ref, log_ref, optimizer.init(log_ref))
  _, path = jax.lax.scan(one, start, keys)
  return path


def distilled(
  seeds: Sequence[int],
  kind: str,
  *,
  start: np.ndarray | None = None,
  sign: float = 1.0,
  anchor_rate: float = 0.0,
) -> np.ndarray:
  """Returns [seeds, steps, K] of log p; `sign` turns the scores.

  Args:
    seeds: of the problems.
    kind: "exact", "sampled" or, for J-BOND, "anchor".
    start: [seeds, K] log p to start from and, unless it moves, the anchor;
      None for p_ref.
    sign: 1 or -1.
    anchor_rate: of J-BOND's anchor.
  """
  rewards, references = zip(*[problem(s, ARMS) for s in seeds], strict=True)
  scores = sign * np.stack(rewards)
  ratios = [exact_ratios(r, p) for r, p in zip(scores, references, strict=True)]
  start = np.stack(references) if start is None else start
  path = distil(
    jnp.asarray(scores),
    jnp.asarray(start, jnp.float32),
    jnp.stack(ratios),
    jnp.asarray(seeds),
    kind,
    anchor_rate,
  )
  return np.asarray(path, np.float64)


def bond_row(kind: str, tolerance: float, seeds: Sequence[int] = SEEDS) -> Row:
  """Returns the row of BOND: nearer to best of 4 than to best of 3 or 5."""
  since = time.perf_counter()
  found = distilled(seeds, kind)[:, -1]
  wrong = distilled(seeds, kind, sign=-1.0)[:, -1]
  distances = {n: [] for n in (N - 1, N, N + 1)}
  missed = []
  for lane, seed in enumerate(seeds):
    reward, log_ref = problem(seed, ARMS)
    for n, list_ in distances.items():
      list_.append(total_variation(found[lane], best_log(log_ref, reward, n)))
    missed.append(total_variation(wrong[lane], best_log(log_ref, reward, N)))
  nearest = min(min(distances[N - 1]), min(distances[N + 1]))
  return Row(
    f"bond N={N}, {kind} quantiles",
    f"best of {N}",
    "TV",
    max(distances[N]),
    tolerance,
    min(missed),
    0.3,
    time.perf_counter() - since,
    max(distances[N]) < nearest,
  )


def j_bond_optimum(reward: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
  """Returns the minimum of J-BOND's expected loss, anchor p_ref, as log p."""
  log_ref = log_softmax(log_ref)
  p_ref = np.exp(log_ref)
  best_of_2 = exact(p_ref, reward, 2)
  above = np.array([p_ref[reward > r].sum() for r in reward])
  earned = bond.WORSE_THAN_BOTH * above**2
  b = bond.Config().backward_weight

  def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
    log_p = log_softmax(logits)
    p, gap = np.exp(log_p), log_p - log_ref - earned
    value = -(1.0 - b) * np.sum(best_of_2 * log_p) + b * np.sum(p * gap)
    slope = (1.0 - b) * (p - best_of_2) + b * p * (gap - np.sum(p * gap))
    return float(value), slope

  return log_softmax(optimize.minimize(loss, log_ref, jac=True).x)


def j_bond_rows(seeds: Sequence[int] = SEEDS) -> Iterator[Row]:
  """Yields J-BOND with an anchor that stays, is moved once, and follows."""
  problems = [problem(seed, ARMS) for seed in seeds]
  own = [j_bond_optimum(*x) for x in problems]
  best = [best_log(log_ref, reward, N) for reward, log_ref in problems]

  def row(name, wanted, targets, found, tolerance, missed, floor, also=True):
    # found, missed: [seeds, any, K]; the nearest of each counts.
    distance, control = (
      [
        min(total_variation(p, target) for p in lane)
        for lane, target in zip(lanes, targets, strict=True)
      ]
      for lanes in (found, missed)
    )
    spent = time.perf_counter() - since
    numbers = max(distance), tolerance, min(control), floor, spent, also
    return Row(f"j-bond, anchor {name}", wanted, "TV", *numbers)

  since = time.perf_counter()
  stays = distilled(seeds, "anchor")
  wrong = distilled(seeds, "anchor", sign=-1.0)
  yield row("stays", "own", own, stays[:, -1:], 0.02, wrong[:, -1:], 0.2)
  since = time.perf_counter()
  second = distilled(seeds, "anchor", start=stays[:, -1])[:, -1:]
  wanted = f"best of {N}"
  yield row("moved once", wanted, best, second, 0.05, stays, 0.1)
  since = time.perf_counter()
  moves = distilled(seeds, "anchor", anchor_rate=0.02)
  beyond = [
    np.exp(path[-1]) @ reward > np.exp(best_log(log_ref, reward, 16)) @ reward
    for path, (reward, log_ref) in zip(moves, problems, strict=True)
  ]
  wanted = f"passes best of {N}"
  yield row("follows", wanted, best, moves, 0.06, stays, 0.1, all(beyond))


def apply(params, frozen, batch: TokenBatch):
  """Returns log-probabilities and entropies [B, 2] of a table of logits."""
  del frozen
  logits = jnp.broadcast_to(params, (*batch.tokens.shape, params.shape[-1]))
  return plain.logprobs_of_logits(logits, batch.tokens), ops.entropy(logits)


@functools.partial(jax.jit, static_argnames=("rounds", "is_blind"))
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
def raft(reward, log_ref, seed, rounds: int, is_blind: bool):
  """Returns [K], log p after rounds of 4096 prompts; blind: any one wins."""
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))
  config = best_of_n.Config("per_prompt")

  def one_round(logits, key):
    keys = jax.random.split(key)
    drawn = sampled(logits, keys[0], 4096, N)
    scores = reward[drawn]
    if is_blind:
      scores = jax.random.uniform(keys[1], scores.shape)
    valid = jnp.ones((1, *scores.shape))
    kept = best_of_n.rejection_sample(scores[None], valid, config)[0]
    winner = jnp.sum(jnp.where(kept, drawn, 0), axis=1)
    mask = jnp.tile(jnp.array([[0.0, 1.0]]), (4096, 1))
    batch = TokenBatch(
      tokens=jnp.stack([jnp.zeros_like(winner), winner], axis=1),
      valid_mask=jnp.ones_like(mask),
      loss_mask=mask,
    )

    def step(state, _):
      return sft.update(
        state,
        {},
        batch,
        key,
        config=sft.Config(),
        apply=plain.weighted(apply),
        optimizer=optimizer,
      )[0], None

    state = TrainState(
      jnp.int32(0), logits, optimizer.init(logits), jnp.int32(0)
    )
    state, _ = jax.lax.scan(step, state, None, length=300)
    return state.params, None

  keys = jax.random.split(jax.random.key(seed), rounds)
  logits, _ = jax.lax.scan(one_round, log_ref, keys)
  return jax.nn.log_softmax(logits)


def raft_row(rounds: int = 3, seeds: Sequence[int] = SEEDS) -> Row:
  """Returns the row of RAFT: the gain that is missing, as a share."""
  since = time.perf_counter()
  rewards, references = zip(*[problem(s, ARMS) for s in seeds], strict=True)
  data = (jnp.asarray(np.stack(x)) for x in (rewards, references))
  data = *data, jnp.asarray(seeds)
  learnt = np.asarray(raft(*data, rounds, False), np.float64)
  blind = np.asarray(raft(*data, rounds, True), np.float64)
  missing, control = [], []
  for lane, (reward, log_ref) in enumerate(
    zip(rewards, references, strict=True)
  ):
    start = np.exp(log_softmax(log_ref))
    wanted = start
    for _ in range(rounds):
      wanted = exact(wanted, reward, N)
    gain = wanted @ reward - start @ reward
    for found, list_ in ((learnt, missing), (blind, control)):
      list_.append(abs(np.exp(found[lane]) @ reward - wanted @ reward) / gain)
  return Row(
    f"raft, {rounds} rounds of {N}",
    "best of 4 of ...",
    "share",
    max(missing),
    0.03,
    min(control),
    0.5,
    time.perf_counter() - since,
  )


def three_kls(log_p: np.ndarray, reward: np.ndarray, n: int):
  """Returns the KL of best of n by enumeration, by estimate, by bound."""
  p = np.exp(log_p)
  best = exact(p, reward, n)
  kept = best > 0
  counted = kl(np.log(best[kept]), log_p[kept])
  estimate = best @ best_of_n.kl_estimates(log_p, n)
  return counted, float(estimate), best_of_n.kl_bound(n)


def kl_rows(n: int = 64) -> Iterator[Row]:
  """Yields best of 64 without atoms, and of four answers (METHODS 7.1)."""
  since = time.perf_counter()
  rng = np.random.default_rng(0)
  fine = three_kls(
    log_softmax(rng.normal(size=1 << 18)), rng.normal(size=1 << 18), n
  )
  small = three_kls(log_softmax(rng.normal(size=64)), rng.normal(size=64), n)
  yield Row(
    f"best of {n}, no atoms",
    "bound, estimate",
    "KL",
    max(abs(fine[0] - other) for other in fine[1:]),
    1e-3,
    abs(small[0] - small[2]),
    0.02,
    time.perf_counter() - since,
    abs(fine[2] - 3.175) < 1e-3,
  )
  since = time.perf_counter()
  top = np.exp(-0.888)
  p = np.array([0.3, 0.2, 0.5 - top, top])
  four = three_kls(np.log(p), np.arange(4.0), n)
  yield Row(
    f"best of {n} of four answers",
    "estimate 0.888",
    "KL",
    max(abs(four[0] - four[1]), abs(four[0] - 0.888)),
    1e-3,
    abs(four[0] - four[2]),
    2.0,
    time.perf_counter() - since,
  )


def rows() -> Iterator[Row]:
  """Yields the table."""
  parts: list[Callable[[], Row]] = [
    functools.partial(bond_row, "exact", 0.03),
    functools.partial(bond_row, "sampled", 0.05),
    raft_row,
  ]
  for part in parts:
    yield part()
  yield from j_bond_rows()
  yield from kl_rows()


if __name__ == "__main__":
  sys.exit(show(rows()))
