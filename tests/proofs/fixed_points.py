"""Where each policy-gradient method settles, on a bandit of known optimum.

  python -m tests.proofs.fixed_points [ROLLOUTS]

prints one line per method, trained on 800 rollouts unless told otherwise: its
optimum, how far the learnt policy is from it, the tolerance, how far the
control is (the same run with the sign of the KL turned), how far p_ref exp(r /
beta) / Z is, and seconds. It fails (exit code 1) where a distance exceeds its
tolerance or a control does not miss.

One prompt token, one response token of K arms, a table of logits; the package's
own shaping, advantages, loss and update in between, from samples (METHODS 3.6,
annex A1). With s the sign, p_ref is replaced by p_old (p_ref / p_old)^s, which
at ratio 1 turns the gradient of every estimator of the KL.
"""

from __future__ import annotations

import dataclasses
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
  dr_grpo,
  grpo,
  ppo,
  reinforce,
  reinforce_pp,
  remax,
  rloo,
  shaping,
  update,
)
from rlhf_jax.types import Rollout, TrainState
from tests import plain
from tests.proofs.rows import Row

SHAPING = shaping.Config(clip=None)
UPDATE = update.Config(epochs=1, minibatches=1)
ARMS = 16
STEPS = 800


@dataclasses.dataclass(frozen=True)
class Method:
  """A method, its settings, and the name of its optimum (see `optimum`)."""

  name: str
  module: ModuleType
  config: Any
  beta: float
  optimum: str = "tilt"
  tolerance: float = 5e-3  # nats of KL(p || optimum)
  misses_tilt: float | None = None  # total variation to "tilt" at least

  @property
  def in_loss(self) -> bool:
    """Whether the KL is in the loss, not in the reward."""
    return getattr(self.config, "kl_loss", "none") != "none"


def in_loss(kind: str, group_size: int, beta: float, **kwargs) -> grpo.Config:
  """Returns GRPO without scaling, unless kwargs say so, and a KL loss."""
  settings = {"scale_rewards": "none"} | kwargs
  return grpo.Config(
    group_size=group_size,
    kl_loss=kind,
    kl_loss_coefficient=beta,
    **settings,
  )


def methods(beta: float) -> list[Method]:
  """Returns the rows of the table for one KL coefficient."""
  free = {"kl_loss": "none", "kl_loss_coefficient": 0.0}
  centred = {"scales_advantages": False}
  return [
    Method("ppo", ppo, ppo.Config(), beta),
    Method("reinforce", reinforce, reinforce.Config(), beta),
    Method("rloo G=2", rloo, rloo.Config(group_size=2), beta),
    Method("remax", remax, remax.Config(), beta),
    Method("reinforce_pp", reinforce_pp, reinforce_pp.Config(**centred), beta),
    Method("reinforce_pp scaled", reinforce_pp, reinforce_pp.Config(), beta),
    Method(
      "reinforce_pp groups, k2",
      reinforce_pp,
      reinforce_pp.Config(
        group_size=64, kl_loss="k2", kl_loss_coefficient=beta, **centred
      ),
      beta,
    ),
    Method(
      "dr_grpo, k1 in reward",
      dr_grpo,
      dr_grpo.Config(group_size=4, aggregation_tokens=1, **free),
      beta,
    ),
    Method("grpo k2, G=64", grpo, in_loss("k2", 64, beta), beta),
    Method("grpo k3+, G=64", grpo, in_loss("k3+", 64, beta), beta),
    Method("grpo k2, G=4", grpo, in_loss("k2", 4, beta), beta, "shrunk tilt"),
    Method(
      "grpo k3, G=64",
      grpo,
      in_loss("k3", 64, beta),
      beta,
      "forward",
      misses_tilt=0.04,
    ),
    Method(
      "grpo k2 / batch std",
      grpo,
      in_loss("k2", 64, 2.0, scale_rewards="batch"),
      2.0,
      "own scale",
    ),
    Method(
      "grpo k2 / group std",
      grpo,
      in_loss("k2", 64, 2.0, scale_rewards="group"),
      2.0,
      "own scale",
      tolerance=2e-2,
    ),
  ]


def problem(seed: int, arms: int = ARMS) -> tuple[np.ndarray, np.ndarray]:
  """Returns rewards and log p_ref of the arms, float32."""
  rng = np.random.default_rng(seed)
  reward = rng.normal(size=arms).astype(np.float32)
  logits = rng.normal(0, 0.7, size=arms)
  return reward, log_softmax(logits).astype(np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
  """Returns log softmax in float64."""
  x = np.asarray(x, np.float64)
  x = x - x.max()
  return x - np.log(np.exp(x).sum())


def forward_form(reward: np.ndarray, log_ref: np.ndarray, beta: float):
  """Returns log of beta p_ref / (lambda - r), lambda by bisection."""
  reference = np.exp(np.asarray(log_ref, np.float64))
  low, high = reward.max() + 1e-12, reward.max() + beta
  for _ in range(200):
    middle = (low + high) / 2
    is_over = np.sum(beta * reference / (middle - reward)) > 1.0
    low, high = (middle, high) if is_over else (low, middle)
  return log_softmax(np.log(beta * reference / (high - reward)))


def optimum(
  method: Method, reward: np.ndarray, log_ref: np.ndarray, log_p: np.ndarray
) -> np.ndarray:
  """Returns log of the policy where the method should settle.

  tilt: p_ref exp(r / beta) / Z.
  shrunk tilt: r (1 - 1/G) for r: the group mean contains the own reward.
  forward: beta p_ref / (lambda - r), sum 1: the KL is KL(p_ref || p).
  own scale: r / s(p) for r, s the deviation of r under p, the policy itself.

  Args:
    method: the row.
    reward: [K].
    log_ref: [K].
    log_p: [K] what was learnt; only "own scale" reads it.
  """
  beta = method.beta
  size = getattr(method.config, "group_size", None)
  share = 1.0 if size is None else 1.0 - 1.0 / size
  if method.optimum == "tilt":
    return log_softmax(log_ref + reward / beta)
  if method.optimum == "shrunk tilt":
    return log_softmax(log_ref + share * reward / beta)
  if method.optimum == "forward":
    return forward_form(reward, log_ref, beta / share)
  p = np.exp(log_p)
  deviation = np.sqrt(np.sum(p * reward**2) - np.sum(p * reward) ** 2)
  return log_softmax(log_ref + reward / (beta * deviation))


def kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
  """Returns KL(p || q) in nats."""
  log_p = np.asarray(log_p, np.float64)
  return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def total_variation(log_p: np.ndarray, log_q: np.ndarray) -> float:
  """Returns half the sum of |p - q|."""
  return float(0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum())


def apply(params, frozen, rows):
  """The policy is a table of logits; a critic, if there is one, a number."""
  del frozen
  logits = jnp.broadcast_to(
    params["policy"], (*rows.tokens.shape, params["policy"].shape[-1])
  )
  logprobs = plain.logprobs_of_logits(logits, rows.tokens)
  values = None
  if "value" in params:
    values = jnp.broadcast_to(params["value"], rows.tokens.shape)
  return logprobs, ops.entropy(logits), values


def sample(params, reward, log_ref, sign, key, count: int) -> Rollout:
  """Returns `count` judged answers; column 0 is the prompt."""
  arm = jax.random.categorical(key, params["policy"], shape=(count,))
  tokens = jnp.stack([jnp.zeros_like(arm), arm], axis=1)
  mask = jnp.tile(jnp.array([[0.0, 1.0]]), (count, 1))
  rollout = Rollout(
    tokens=tokens,
    valid_mask=jnp.ones_like(mask),
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(count, jnp.int32),
    reference_logprobs=mask,
    score=reward[arm],
  )
  behaviour, _, values = apply(params, {}, rollout)
  reference = behaviour - sign * (behaviour - log_ref[tokens])
  return rollout.replace(
    behaviour_logprobs=behaviour, reference_logprobs=reference, values=values
  )


@functools.partial(
  jax.jit, static_argnames=("method", "steps", "count", "rate")
)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, None, None, None))
def train(method, reward, log_ref, sign, seed, steps, count, rate):
  """Returns log p [K] after `steps` rollouts of `count` answers, per lane."""
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
  params = {"policy": log_ref}
  if method.module is ppo:
    params["value"] = jnp.zeros(())
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  beta = jnp.float32(0.0 if method.in_loss else method.beta)

  def one(state: TrainState, key):
    rollout = sample(state.params, reward, log_ref, sign, key, count)
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), beta, SHAPING
    )
    if method.module is remax:
      greedy = reward[jnp.argmax(state.params["policy"])]
      rollout = rollout.replace(
        further={"greedy": rollout.replace(score=greedy[None])}
      )
    state, _ = update.update(
      state,
      {},
      method.module.advantages(rollout, method.config),
      key,
      algorithm=method.module,
      algorithm_config=method.config,
      config=UPDATE,
      apply=apply,
      optimizer=optimizer,
    )
    return state, None

  keys = jax.random.split(jax.random.key(seed), steps)
  state, _ = jax.lax.scan(one, state, keys)
  return jax.nn.log_softmax(state.params["policy"])


@dataclasses.dataclass(frozen=True)
class Result:
  """Distances of one method, the worst over seeds.

  distance: KL(p || optimum), nats. control: the same with the KL's sign
  turned, the least over seeds. to_tilt: total variation to p_ref exp(r/beta).
  start: KL(p_ref || optimum), the least over seeds.
  """

  distance: float
  control: float
  to_tilt: float
  start: float
  seconds: float

  def is_good(self, method: Method) -> bool:
    """Whether the method settled where it should, and only so."""
    is_near = self.distance < method.tolerance
    is_caught = self.control > 20 * method.tolerance
    has_moved = self.start > 4 * method.tolerance
    is_apart = method.misses_tilt is None or self.to_tilt > method.misses_tilt
    return is_near and is_caught and has_moved and is_apart


def measure(
  method: Method,
  seeds: tuple[int, ...],
  *,
  steps: int,
  count: int = 1024,
  rate: float = 0.05,
) -> Result:
  """Trains on each seed with both signs of the KL, and measures."""
  begin = time.perf_counter()
  reward, log_ref = (
    np.stack(x) for x in zip(*map(problem, seeds), strict=True)
  )
  lanes = len(seeds)
  learnt = train(
    method,
    jnp.tile(reward, (2, 1)),
    jnp.tile(log_ref, (2, 1)),
    jnp.repeat(jnp.array([1.0, -1.0]), lanes),
    jnp.tile(jnp.array(seeds), 2),
    steps,
    count,
    rate,
  )
  learnt = np.asarray(learnt, np.float64).reshape(2, lanes, -1)
  seconds = time.perf_counter() - begin
  rows = []
  for lane in range(lanes):
    problem_ = reward[lane], log_ref[lane]
    right, wrong = learnt[:, lane]
    target = optimum(method, *problem_, right)
    tilt = log_softmax(log_ref[lane] + reward[lane] / method.beta)
    rows.append(
      (
        kl(right, target),
        kl(wrong, target),
        total_variation(right, tilt),
        kl(log_ref[lane], target),
      )
    )
  distance, control, to_tilt, start = zip(*rows, strict=True)
  return Result(max(distance), min(control), min(to_tilt), min(start), seconds)


def rows(steps: int = STEPS) -> Iterator[Row]:
  """Yields the table without its column of the tilt; see `main`."""
  for beta in (0.5, 1.0):
    for method in methods(beta):
      if beta == 0.5 or method.beta == beta:
        found = measure(method, (0, 1, 2), steps=steps)
        yield Row(
          f"{method.name}, beta {method.beta:g}",
          method.optimum,
          "KL",
          found.distance,
          method.tolerance,
          found.control,
          20 * method.tolerance,
          found.seconds,
          found.is_good(method),
        )


def main(steps: int) -> int:
  """Prints the table of runs of `steps` rollouts; returns the exit code."""
  print(
    f"{'method':26}{'beta':>5} {'optimum':12}{'KL to it':>10}{'tolerance':>10}"
    f"{'control':>9}{'TV tilt':>9}{'seconds':>9}"
  )
  is_good = True
  for beta in (0.5, 1.0):
    for method in methods(beta):
      if beta != 0.5 and method.beta != beta:
        continue
      found = measure(method, (0, 1, 2), steps=steps)
      is_good &= found.is_good(method)
      print(
        f"{method.name:26}{method.beta:5.2f} {method.optimum:12}"
        f"{found.distance:10.5f}{method.tolerance:10.3f}{found.control:9.2f}"
        f"{found.to_tilt:9.3f}{found.seconds:9.1f}"
        f"{'' if found.is_good(method) else '  FAILS'}",
        flush=True,
      )
  return 0 if is_good else 1


if __name__ == "__main__":
  sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS))
