"""Where each preference method settles, on a bandit whose optimum is known.

  python -m tests.proofs.preference_optima [COMPARISONS]

prints one line per method, on 500,000 comparisons unless told otherwise: its
optimum, how far the learnt policy is from it, the worst of seeds 0, 1 and 2,
the tolerance, what must miss, and seconds. It fails (exit code 1) where a
distance exceeds its tolerance or a control does not miss.

One prompt token, one answer token of K arms, a table of logits as the policy;
comparisons of arms drawn uniformly, decided by a Bradley-Terry reward, some
with flipped labels (METHODS annex A1, A12, A15). The package's own loss and
update train on the whole sample at once: equal comparisons are one row whose
weight is their number.

Optima (preference_targets.py) and controls:
  tilt     p_ref exp(r / beta) / Z: DPO; robust DPO on flipped labels. Controls:
           the same with labels of chance; cDPO on the same flipped labels
  uniform  exp(r / beta) / Z: SimPO without margin, CPO without likelihood
  own      the minimiser of the method's own expected loss
  data     the distribution of the demonstrations: SPIN after five rounds of
           new samples. Control: a scale of 0.3, which leads away from it
Where the optimum is not the tilt, the control is the distance to the tilt.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms.preference import (
  cpo,
  dpo,
  ipo,
  kto,
  orpo,
  simpo,
  spin,
  update,
)
from rlhf_jax.types import PreferenceBatch, TrainState
from tests import plain
from tests.proofs import preference_targets as targets
from tests.proofs.fixed_points import kl, log_softmax, total_variation
from tests.proofs.preference_data import (
  Bandit,
  draw,
  make_bandit,
  make_batch,
  pairs_batch,
  sigmoid,
)
from tests.proofs.rows import Row, show

BETA = 0.5
FLIPS = 0.2
COUNT = 500_000
SEEDS = (0, 1, 2)


def apply(params, frozen, batch: PreferenceBatch) -> jax.Array:
  """Returns log-probabilities [B, K, 2] of a table of logits."""
  del frozen
  logits = jnp.broadcast_to(
    params["logits"], (*batch.tokens.shape, params["logits"].shape[0])
  )
  return plain.logprobs_of_logits(logits, batch.tokens)


def train(
  params: Any,
  batch: PreferenceBatch,
  *,
  algorithm: ModuleType,
  config: Any,
  steps: int,
  rate: float,
  forward: Callable = apply,
) -> Any:
  """Returns the parameters after so many steps on the whole sample."""
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))

  def one(state, _):
    state, _ = update.update(
      state,
      {},
      batch,
      jax.random.key(0),
      algorithm=algorithm,
      algorithm_config=config,
      config=update.Config(),
      apply=forward,
      optimizer=optimizer,
    )
    return state, None

  state, _ = jax.lax.scan(one, state, None, length=steps)
  return state.params


@functools.partial(
  jax.jit, static_argnames=("algorithm", "config", "steps", "rate")
)
def train_lanes(params, batches, algorithm, config, steps, rate):
  """Trains several tables on a sample each, side by side."""
  run = functools.partial(
    train, algorithm=algorithm, config=config, steps=steps, rate=rate
  )
  return jax.vmap(run)(params, batches)


def learn(
  batches: Sequence[PreferenceBatch],
  starts: Sequence[np.ndarray],
  algorithm: ModuleType,
  config: Any,
  *,
  steps: int = 1500,
  rate: float = 0.05,
) -> list[np.ndarray]:
  """Returns the learnt log-probabilities [K], float64, of each sample."""
  params = {"logits": jnp.asarray(np.stack(starts), jnp.float32)}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  params = train_lanes(params, stacked, algorithm, config, steps, rate)
  return [log_softmax(x) for x in np.asarray(params["logits"], np.float64)]


@dataclasses.dataclass(frozen=True)
class Case:
  """A method on comparisons, and what it must and must not reach.

  optimum: bandit -> log p. tolerance: KL(p || optimum), nats. misses: nats of
  KL(p || tilt) at least, None where the optimum is the tilt.
  """

  name: str
  module: ModuleType
  config: Any
  optimum: Callable[[Bandit], np.ndarray]
  shown: str
  misses: float | None = None
  flips: float = 0.0
  tolerance: float = 1e-3


def tilt(bandit: Bandit) -> np.ndarray:
  """Returns log of p_ref exp(r / BETA) / Z."""
  return targets.tilt(bandit, BETA)


def cases() -> list[Case]:
  """Returns the rows of the table that are trained on comparisons."""
  smooth = dpo.Config(beta=BETA, label_smoothing=FLIPS)
  robust = dataclasses.replace(smooth, is_robust=True)
  fit, flat = functools.partial, targets.uniform
  no_margin = simpo.Config(beta=BETA, margin_ratio=0.0)
  no_likelihood = cpo.Config(beta=BETA, nll_weight=0.0)
  noisy = {"beta": BETA, "flips": FLIPS}
  return [
    Case("dpo", dpo, dpo.Config(beta=BETA), tilt, "tilt"),
    Case("robust, flips", dpo, robust, tilt, "tilt", None, FLIPS),
    Case(
      "dpo, flips",
      dpo,
      dpo.Config(beta=BETA),
      fit(targets.dpo, **noisy),
      "own",
      0.05,
      FLIPS,
    ),
    Case(
      "cdpo, flips", dpo, smooth, fit(targets.cdpo, **noisy), "own", 0.1, FLIPS
    ),
    Case(
      "ipo", ipo, ipo.Config(tau=0.3), fit(targets.ipo, tau=0.3), "own", 0.01
    ),
    Case(
      "orpo",
      orpo,
      orpo.Config(odds_weight=1.0),
      fit(targets.orpo, weight=1.0),
      "own",
      0.1,
    ),
    Case(
      "simpo, no margin",
      simpo,
      no_margin,
      fit(flat, beta=BETA),
      "uniform",
      0.05,
    ),
    Case(
      "simpo",
      simpo,
      simpo.Config(beta=1.0, margin_ratio=0.4),
      fit(targets.simpo, beta=1.0, margin=0.4),
      "own",
      0.05,
    ),
    Case(
      "cpo, no likelihood",
      cpo,
      no_likelihood,
      fit(flat, beta=BETA),
      "uniform",
      0.05,
    ),
    Case(
      "cpo", cpo, cpo.Config(beta=BETA), fit(targets.cpo, beta=BETA), "own", 0.1
    ),
  ]


def run_case(
  case: Case, seeds: Sequence[int], count: int
) -> tuple[list[Bandit], list[np.ndarray]]:
  """Returns the bandit and the learnt log p of each seed."""
  bandits = [make_bandit(seed) for seed in seeds]
  batches = [
    pairs_batch(draw(bandit, count, seed + 100, case.flips), bandit.reference)
    for bandit, seed in zip(bandits, seeds, strict=True)
  ]
  starts = [bandit.reference for bandit in bandits]
  return bandits, learn(batches, starts, case.module, case.config)


def errors(case: Case, seeds: Sequence[int], count: int) -> list[float]:
  """Returns KL(p || optimum) of each seed."""
  found = zip(*run_case(case, seeds, count), strict=True)
  return [kl(log_p, case.optimum(bandit)) for bandit, log_p in found]


def case_row(
  name: str, seeds: Sequence[int] = SEEDS, count: int = COUNT
) -> Row:
  """Returns the row of one case, by its name."""
  since = time.perf_counter()
  known = {case.name: case for case in cases()}
  case = known[name]
  bandits, found = run_case(case, seeds, count)
  pairs = list(zip(bandits, found, strict=True))
  control = found
  if name == "dpo":
    chance = dataclasses.replace(case, flips=0.5)
    _, control = run_case(chance, seeds, count)
  elif name == "robust, flips":
    _, control = run_case(known["cdpo, flips"], seeds, count)
  missed = [
    kl(log_p, tilt(bandit))
    for bandit, log_p in zip(bandits, control, strict=True)
  ]
  return Row(
    name,
    case.shown,
    "KL",
    max(kl(log_p, case.optimum(bandit)) for bandit, log_p in pairs),
    case.tolerance,
    min(missed),
    0.1 if case.misses is None else case.misses,
    time.perf_counter() - since,
  )


def kto_row(seeds: Sequence[int] = SEEDS, count: int = COUNT) -> Row:
  """Returns the row of KTO, whose answers come from the reference.

  Its optimum hangs on whether an arm is liked more often than not, so it feels
  the noise of the sample more than the others': total variation 0.011 at
  500,000 answers, falling as one over the square root. Beside the population's
  optimum, that of the drawn frequencies must be met within 0.001.
  """
  since = time.perf_counter()
  bandits = [make_bandit(seed) for seed in seeds]
  batches, optima, drawn = [], [], []
  for seed, bandit in zip(seeds, bandits, strict=True):
    rng = np.random.default_rng(seed)
    liked = sigmoid(bandit.reward)
    shown = rng.multinomial(count, np.exp(bandit.reference))
    good = rng.binomial(shown, liked)
    arm = np.arange(len(liked))
    batches.append(
      make_batch(
        np.tile(np.stack([arm, arm], axis=1), (2, 1)),
        np.concatenate([good, shown - good]).astype(np.float64),
        np.repeat([1.0, 0.0], len(arm)),
        bandit.reference,
      )
    )
    shares = np.exp(bandit.reference)
    optima.append(targets.kto(shares, liked, bandit.reference, BETA))
    frequencies = shown / shown.sum(), good / shown
    drawn.append(targets.kto(*frequencies, bandit.reference, BETA))
  starts = [bandit.reference for bandit in bandits]
  found = learn(
    batches, starts, kto, kto.Config(beta=BETA), steps=4000, rate=0.1
  )
  return Row(
    "kto",
    "own",
    "TV",
    max(map(total_variation, found, optima)),
    0.02,
    min(map(total_variation, found, map(tilt, bandits))),
    0.1,
    time.perf_counter() - since,
    max(map(total_variation, found, drawn)) < 1e-3,
  )


def spin_distances(
  scale: float, rounds: int, seeds: Sequence[int], count: int
) -> np.ndarray:
  """Returns [rounds + 1, seeds], total variation to p_data after each round.

  A round draws demonstrations, and samples of the policy before it, and trains
  to the end from there.
  """
  bandits = [make_bandit(seed) for seed in seeds]
  rng = np.random.default_rng(seeds[0])
  data = [log_softmax(b.reference + 0.7 * b.reward) for b in bandits]
  log_p = [bandit.reference for bandit in bandits]
  distances = [list(map(total_variation, log_p, data))]
  for _ in range(rounds):
    batches = []
    for own, real in zip(log_p, data, strict=True):
      counts = np.zeros((len(own), len(own)))
      first = rng.choice(len(real), count, p=np.exp(real))
      second = rng.choice(len(own), count, p=np.exp(own))
      np.add.at(counts, (first, second), 1.0)
      batches.append(pairs_batch(counts, own))
    log_p = learn(batches, log_p, spin, spin.Config(beta=scale))
    distances.append(list(map(total_variation, log_p, data)))
  return np.array(distances)


def spin_row(
  scale: float,
  rounds: int = 5,
  seeds: Sequence[int] = SEEDS,
  count: int = COUNT,
) -> Row:
  """Returns the row of SPIN; the control is its distance at scale 0.3."""
  since = time.perf_counter()
  found = spin_distances(scale, rounds, seeds, count)
  away = spin_distances(0.3, 3, seeds, count)
  return Row(
    f"spin, scale {scale:g}",
    "data",
    "TV",
    found[-1].max(),
    0.05,
    away[-1].min(),
    0.1,
    time.perf_counter() - since,
    bool(np.all(away[-1] > 1.5 * away[0])),
  )


def rows(count: int = COUNT) -> Iterator[Row]:
  """Yields the table."""
  for case in cases():
    yield case_row(case.name, count=count)
  yield kto_row(count=count)
  for scale in (1.0, 2.0):
    yield spin_row(scale, count=count)


if __name__ == "__main__":
  sys.exit(show(rows(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)))
