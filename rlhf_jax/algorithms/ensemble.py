"""Ensembles of reward models: how M scores of an answer become one.

  mean  mu = sum_i r_i / M
  min   min_i r_i                       worst-case optimisation (WCO)
  uwo   mu - lambda sum_i (r_i - mu)^2 / M   uncertainty-weighted (UWO)

Coste et al. 2023, arXiv:2310.02743, section 3.2, with lambda = 0.5 for best of
n and 0.1 for PPO. Scores must be in units of each member's own deviation
(METHODS 2.5b, 2.6): otherwise the member with the widest scale decides both the
minimum and the variance. Members that differ in their head alone agree where
they are wrong; prompts drawn anew for each (bootstrap, Breiman 1996) or whole
runs apart make them differ (Eisenstein et al. 2023, arXiv:2312.09244).

Members train in one step, each on the loss of reward.py with weights of its
own. Left out: weight averaging, which makes one model (models/averaging.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import reward
from rlhf_jax.algorithms.accumulate import accumulate, apply_gradients
from rlhf_jax.types import Array, Metrics, PreferenceBatch, PyTree, TrainState

COMBINATIONS = ("mean", "min", "uwo")
KINDS = ("heads", "adapters")
SUBSETS = ("bootstrap", "share", "all")


@dataclasses.dataclass(frozen=True)
class Config:
  """The members that a reward run trains in one pass."""

  members: int = 1  # reward models in one; 3 to 5 are usual
  kind: str = "heads"  # on one trunk, or "adapters": LoRA factors of each too
  subsets: str = "bootstrap"  # prompts that each learns from: as many, drawn
  # with replacement; "share": a part of them; "all"
  share: float | None = None  # of the prompts, for subsets="share"

  def __post_init__(self) -> None:
    if self.members < 1:
      raise ValueError(f"members={self.members}: must be >= 1.")
    if self.kind not in KINDS:
      raise ValueError(
        f"kind={self.kind!r}: must be one of {', '.join(KINDS)}."
      )
    if self.subsets not in SUBSETS:
      raise ValueError(
        f"subsets={self.subsets!r}: must be one of {', '.join(SUBSETS)}."
      )
    if (self.share is None) == (self.subsets == "share"):
      raise ValueError(
        f"share={self.share} with subsets={self.subsets!r}: is the part of the "
        "prompts that subsets='share' takes. Set both, or None."
      )
    if self.share is not None and not 0.0 < self.share <= 1.0:
      raise ValueError(f"share={self.share}: must be in (0, 1].")
    if self.members == 1 and (self.kind, self.subsets) != (
      "heads",
      "bootstrap",
    ):
      raise ValueError(
        f"members=1: kind={self.kind!r} and subsets={self.subsets!r} are of "
        "several members. Set members=4, or leave them out."
      )

  @property
  def own_factors(self) -> bool:
    """Whether each member has LoRA factors of its own."""
    return self.members > 1 and self.kind == "adapters"


@dataclasses.dataclass(frozen=True)
class Combination:
  """How the scores of members become one score.

  uncertainty_weight: lambda of "uwo", >= 0; None elsewhere.
  """

  combine: str = "mean"
  uncertainty_weight: float | None = None

  def __post_init__(self) -> None:
    weight = self.uncertainty_weight
    if self.combine not in COMBINATIONS:
      raise ValueError(
        f"combine={self.combine!r}: must be one of {', '.join(COMBINATIONS)}."
      )
    if self.combine == "uwo" and weight is None:
      raise ValueError(
        "uncertainty_weight=None: combine='uwo' takes so many variances off "
        "the mean. Set 0.1 for policy gradients, 0.5 for best of n (Coste et "
        "al. 2023)."
      )
    if self.combine != "uwo" and weight is not None:
      raise ValueError(
        f"uncertainty_weight={weight}: combine={self.combine!r} does not read "
        "it. Set combine='uwo', or None."
      )
    if weight is not None and not 0.0 <= weight < math.inf:
      raise ValueError(
        f"uncertainty_weight={weight}: a variance is taken off. Set it >= 0."
      )


def combined(scores: Array, how: Combination) -> Array:
  """Returns [...], one score for the M of each answer.

  Args:
    scores: [..., M], each in units of its member's deviation.
    how: see `Combination`.
  """
  if how.combine == "min":
    return scores.min(-1)
  if how.combine == "uwo":
    return scores.mean(-1) - how.uncertainty_weight * scores.var(-1)
  return scores.mean(-1)


def deviation(scores: Array) -> Array:
  """Returns [...], the population deviation of the M scores of each answer."""
  return scores.std(-1)


def agreement(scores: Array) -> Array:
  """Returns [], Spearman's rank correlation, the mean over pairs of members.

  Equal scores share the mean of their ranks. A member whose scores are all
  equal agrees with nobody: 0.

  Args:
    scores: [N, M].
  """
  members = scores.shape[-1]

  def standard(column: Array) -> Array:
    order = jnp.sort(column)
    low = jnp.searchsorted(order, column, side="left")
    high = jnp.searchsorted(order, column, side="right")
    rank = 0.5 * (low + high).astype(jnp.float32)
    rank = rank - jnp.mean(rank)
    scale = jnp.sqrt(jnp.mean(jnp.square(rank)))
    return jnp.where(scale > 0, rank / jnp.where(scale > 0, scale, 1.0), 0.0)

  ranks = jax.vmap(standard, in_axes=1, out_axes=1)(scores)
  # The sum over all pairs i != j is (sum_i)^2 - sum_i^2.
  both = jnp.square(jnp.sum(ranks, -1)) - jnp.sum(jnp.square(ranks), -1)
  return jnp.mean(both) / (members * (members - 1))


def member_weights(
  groups: np.ndarray,
  members: int,
  subsets: str,
  seed: int,
  share: float = 1.0,
) -> np.ndarray:
  """Returns float32 [P, M], how often each comparison counts for a member.

  "bootstrap" draws as many prompts as there are, with replacement; "share"
  takes a part of them once; "all" takes all. A comparison of answers to two
  prompts (rated sentences) counts as the product of its prompts' weights.

  Args:
    groups: [P, 1 or 2] number of the prompt, or prompts, of each comparison.
    members: M.
    subsets: see SUBSETS.
    seed: of what is drawn; member i draws the same whatever M is.
    share: of the prompts that "share" takes.
  """
  names, index = np.unique(groups, return_inverse=True)
  index = index.reshape(len(groups), -1)
  drawn = np.ones((len(names), members), np.float32)
  for member in range(members):
    rng = np.random.default_rng([seed, member])
    if subsets == "bootstrap":
      chosen = rng.integers(len(names), size=len(names))
      drawn[:, member] = np.bincount(chosen, minlength=len(names))
    elif subsets == "share":
      left_out = len(names) - max(1, round(share * len(names)))
      drawn[rng.permutation(len(names))[:left_out], member] = 0.0
  found = drawn[index[:, 0]]
  for column in index.T[1:]:
    is_other = (column != index[:, 0])[:, None]
    found = np.where(is_other, found * drawn[column], found)
  return found


def loss(
  scores: Array,
  batch: PreferenceBatch,
  config: reward.Config,
  denominators: Metrics,
  *,
  is_shared: bool,
) -> tuple[Array, Metrics]:
  """Returns the loss of all members, as a contribution to the batch's.

  Metrics: those of reward.loss, the mean over members, and
    ensemble/deviation: deviation over members of the scores of one prompt's
      answers around their mean, nats. Near 0 is bad: members are alike.

  Args:
    scores: [B, K, M] float32.
    batch: these prompts, with member_weight [B, M].
    config: settings.
    denominators: of the whole batch, see `denominators`.
    is_shared: weights below the heads are one for all: the mean over members,
      so that they move as for one. Otherwise the sum: each member moves as if
      it were alone.
  """
  plain = batch.replace(member_weight=None)

  def one(scores: Array, weight: Array, counts: Metrics):
    part = plain.replace(weight=plain.weight * weight)
    return reward.loss(scores, part, config, counts)

  counts = {k: x for k, x in denominators.items() if k != "rows"}
  values, metrics = jax.vmap(one, in_axes=(-1, -1, 0))(
    scores, batch.member_weight, counts
  )
  metrics = {name: jnp.mean(x) for name, x in metrics.items()}
  exists = (batch.weight[:, None] > 0) & jnp.any(batch.loss_mask > 0, axis=-1)
  kept = jnp.where(exists[..., None], scores, 0.0)
  count = jnp.maximum(jnp.sum(exists, -1), 1)[:, None]
  centred = kept - (jnp.sum(kept, 1) / count)[:, None]
  spread = jnp.sum(deviation(centred) * exists, -1) / count[:, 0]
  metrics["ensemble/deviation"] = jnp.sum(spread * batch.weight) / jnp.maximum(
    denominators["rows"], 1e-8
  )
  return jnp.mean(values) if is_shared else jnp.sum(values), metrics


def denominators(batch: PreferenceBatch, config: reward.Config) -> Metrics:
  """Returns what `loss` divides by: reward.denominators [M], and "rows"."""
  plain = batch.replace(member_weight=None)

  def one(weight: Array) -> Metrics:
    part = plain.replace(weight=plain.weight * weight)
    return reward.denominators(part, config)

  found = jax.vmap(one, in_axes=-1)(batch.member_weight)
  return found | {"rows": jnp.sum(batch.weight)}


def update(
  state: TrainState,
  frozen: PyTree,
  batch: PreferenceBatch,
  rng: Array,
  *,
  config: reward.Config,
  apply: Callable[..., Array],
  optimizer: Any,
  is_shared: bool,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step of all members on one batch of comparisons.

  Metrics: those of `loss`, and
    reward_model/gradient_norm: of all members, before clipping. Sudden growth
      is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: [B, K, L], with member_weight [B, M].
    rng: unused.
    config: settings.
    apply: (params, frozen, batch) -> scores [B, K, M] float32.
    optimizer: an optax.GradientTransformation; it clips the norm of all
      members together.
    is_shared: see `loss`.
  """
  del rng

  def contribution(params, microbatch, frozen, counts):
    scores = apply(params, frozen, microbatch)
    return loss(scores, microbatch, config, counts, is_shared=is_shared)

  grads, value, metrics = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    denominators(batch, config),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics |= {
    "reward_model/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
