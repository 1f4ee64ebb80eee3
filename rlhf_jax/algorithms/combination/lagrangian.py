"""A reward under a constraint: Safe RLHF's Lagrange multiplier.

  max E r  s.t.  E c <= d:   score = (r - lambda c) / (1 + lambda)
  clipped    lambda <- clip(lambda + rate (E c - d), 0, most)
  softplus   lambda = log(1 + e^x),  x <- x + rate (E c - d) sigmoid(x)

once a rollout, from the mean of its costs. Dai et al. 2023, arXiv:2310.12773,
equations 9 to 11 (their code: lambda starts at 1, rate 0.1, at most 5).
METHODS 27.2. c is the score of one judge on its own scale, as `limit` is; r is
the weighted sum of the others (weighted_sum.py).

The optimum with the KL in the reward is p_ref exp((r - lambda* c) / beta') / Z
with E c = d, or lambda* = 0 where the constraint does not bind. Without the
division beta' is beta, and that is the optimum of the constrained problem. With
it, which keeps scores of one size while lambda grows, beta' is
beta (1 + lambda*): the constraint holds, at a larger KL penalty.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms.combination import components, weighted_sum
from rlhf_jax.types import Array, Components, Metrics, PyTree

BOUNDS = ("at_most", "at_least")
FORMS = ("clipped", "softplus")


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the constraint and of its multiplier."""

  cost: str = "cost"  # the judge whose mean score is bounded
  bound: str = "at_most"  # "at_most" the limit (a cost), or "at_least" (a score
  # of safety, say)
  limit: float = 0.0  # d, of the mean score of `cost`, on its own scale
  form: str = "clipped"  # of the multiplier: "clipped" at 0, or the "softplus"
  # of a free number
  start: float = 1.0  # lambda before the first rollout; Dai 2023
  rate: float = 0.1  # step of lambda a rollout; Dai 2023
  most: float | None = None  # lambda at most, where it is clipped; 5 in Dai
  # 2023; None for no bound
  divides: bool = True  # the score by 1 + lambda; Dai 2023, equation 11
  by: str = ""  # field of a prompt that says of what kind it is, where judges
  # have `kinds`; "": all judge all

  def __post_init__(self) -> None:
    for name, allowed in (("bound", BOUNDS), ("form", FORMS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: must be one of "
          f"{', '.join(allowed)}."
        )
    if self.rate < 0.0 or not math.isfinite(self.rate):
      raise ValueError(f"rate={self.rate}: must be >= 0 and finite.")
    least = "> 0" if self.form == "softplus" else ">= 0"
    if self.start < 0.0 or (self.form == "softplus" and self.start == 0.0):
      raise ValueError(f"start={self.start}: must be {least}.")
    if self.most is not None and self.form == "softplus":
      raise ValueError(
        f"most={self.most}: the softplus has no bound. Set None, or "
        "form='clipped'."
      )
    if self.most is not None and self.most < self.start:
      raise ValueError(
        f"most={self.most}: must be >= start={self.start}. Raise it."
      )


def check(judges: components.Judges, config: Config) -> None:
  """Raises ValueError unless one judge is bounded and another rewards."""
  names = [judge.name for judge in judges]
  if config.cost not in names:
    raise ValueError(
      f"combination.cost={config.cost!r}: must be one of the judges "
      f"{', '.join(names)}."
    )
  cost = judges[names.index(config.cost)]
  components.check_unread(
    (cost,),
    ("weight", "scale"),
    "the score of `cost` is compared with combination.limit on its own scale, "
    "and the multiplier is its weight. Leave it out.",
  )
  others = [j for j in judges if j.name != config.cost]
  if not any(judge.weight for judge in others):
    raise ValueError(
      f"judges: beside combination.cost={config.cost!r} no judge has a weight, "
      "so there is nothing to maximise. Add one."
    )


def init(judges: components.Judges, config: Config) -> PyTree:
  """Returns what a run carries from rollout to rollout."""
  free = config.start
  if config.form == "softplus":
    free = config.start + math.log(-math.expm1(-config.start))
  return weighted_sum.init(judges, weighted_sum.Config()) | {
    "multiplier": jnp.float32(free)
  }


def multiplier(state: PyTree, config: Config) -> Array:
  """Returns [] lambda."""
  free = state["multiplier"]
  return jax.nn.softplus(free) if config.form == "softplus" else free


def _sign(config: Config) -> float:
  return 1.0 if config.bound == "at_most" else -1.0


def observe(
  state: PyTree,
  found: Components,
  counts: Array,
  judges: components.Judges,
  config: Config,
) -> PyTree:
  """Returns the state with the scores of a batch seen, lambda as it was.

  Args: as in weighted_sum.observe.
  """
  del config
  sum_ = weighted_sum.Config()
  return state | weighted_sum.observe(state, found, counts, judges, sum_)


def combine(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Array:
  """Returns [N] float32 scores; args as in weighted_sum.combine."""
  k = components.place(judges, config.cost)
  z = components.scaled(found, state["moments"], judges)
  weights = components.weights(judges).at[k].set(0.0)
  reward = jnp.sum(weights[None] * z, axis=1)
  cost = _sign(config) * found.values[:, k] * found.mask[:, k]
  force = multiplier(state, config)
  score = reward - force * cost
  return score / (1.0 + force) if config.divides else score


def details(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Metrics:
  """Returns {name: [N]} to log: lambda as it was used."""
  del judges
  force = multiplier(state, config)
  return {"multiplier": jnp.broadcast_to(force, found.tagged.shape)}


def update(
  state: PyTree,
  found: Components,
  counts: Array,
  judges: components.Judges,
  config: Config,
) -> tuple[PyTree, Metrics]:
  """Returns the state with lambda moved, once a rollout, and metrics.

  Where the rollout has no answer that `cost` judges, lambda stays.

  Metrics:
    combination/violation: E c - d, or d - E of a score that is bounded from
      below. Above 0 is bad: the constraint does not hold, and lambda grows.
    combination/violation_standard_error: of the former, as if answers were
      independent.

  Args:
    state: before.
    found: conditioned, of all answers of the rollout.
    counts: [N], 1 on answers that count.
    judges: K.
    config: settings.
  """
  k = components.place(judges, config.cost)
  mask = found.mask[:, k] * counts
  number = jnp.sum(mask)
  mean = ops.masked_mean(found.values[:, k], mask)
  violation = _sign(config) * (mean - config.limit)
  violation = jnp.where(number > 0, violation, 0.0)
  free = state["multiplier"]
  if config.form == "softplus":
    moved = free + config.rate * violation * jax.nn.sigmoid(free)
  else:
    moved = jnp.clip(free + config.rate * violation, 0.0, config.most)
  variance = ops.masked_variance(found.values[:, k], mask)
  error = jnp.sqrt(variance / jnp.maximum(number, 1.0))
  return state | {"multiplier": moved}, {
    "combination/violation": violation,
    "combination/violation_standard_error": error,
  }
