"""One rollout, used several times: epochs x minibatches in one program.

  for each epoch: permute the rows; for each minibatch: one optimizer step

Two nested scans, so one jit holds them all. An epoch whose mean KL(p_old || p)
passes the limit is the last one (METHODS 4.10): the rest is skipped by
lax.cond, at no cost. A step that is not finite is refused and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import accumulate
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, TrainState

Step = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Config:
  """How often, and in what portions, a rollout is used."""

  epochs: int = 2  # passes over a rollout; 4 Ziegler 2019, 1 Ouyang 2022
  minibatches: int = 2  # optimizer steps per epoch
  microbatches: int = 1  # parts of a minibatch; bounds activation memory

  def __post_init__(self) -> None:
    for name in ("epochs", "minibatches", "microbatches"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: must be >= 1.")


def identity(tree: PyTree) -> PyTree:
  """Returns its argument: where a minibatch's rows lie on one device."""
  return tree


def token_fields(rollout: Rollout) -> Rollout:
  """Returns the rollout with nothing but fields indexed by row.

  score and finish_reason have one entry per sample, which is not one per row
  when rows are packed, and `further` has rows of its own; no loss reads them:
  they become zeros [rows] and {}. All else can then be permuted and split by
  row.
  """
  rows = rollout.tokens.shape[0]
  return rollout.replace(
    score=jnp.zeros((rows,), jnp.float32),
    finish_reason=jnp.zeros((rows,), jnp.int32),
    further={},
  )


def run_epochs(
  step: Step,
  state: TrainState,
  rollout: Rollout,
  extra: PyTree,
  rng: Array,
  *,
  config: Config,
  kl_limit: float | None,
  constrain: Callable[[PyTree], PyTree],
) -> tuple[TrainState, Metrics]:
  """Returns the state after all steps and metrics [epochs, minibatches].

  A minibatch is gathered inside the scan: no permuted copy of the whole
  rollout, with its hidden states, ever exists.

  Args:
    step: (state, minibatch, part of extra) -> (state, metrics); the metrics
      have those of accumulate.take_step, and where kl_limit is set
      "ppo/approximate_kl".
    state: before the first step.
    rollout: all leaves [rows, ...], see `token_fields`.
    extra: leaves [minibatches, ...], the same parts in every epoch, or None.
    rng: permutes the rows, anew in every epoch.
    config: epochs and portions.
    kl_limit: nats per token; None never stops early.
    constrain: places a minibatch on the mesh.

  Raises:
    ValueError: the rows do not divide, leaves differ in rows, or there is a
      kl_limit and no KL.
  """
  rows = accumulate.row_count(rollout)
  accumulate.check_divides("minibatches", config.minibatches, rows)
  accumulate.check_divides(
    "microbatches", config.microbatches, rows // config.minibatches
  )
  orders = jax.vmap(lambda key: jax.random.permutation(key, rows))(
    jax.random.split(rng, config.epochs)
  ).reshape(config.epochs, config.minibatches, -1)

  def minibatch_step(state: TrainState, portion: tuple[Array, PyTree]):
    order, extra_part = portion
    minibatch = constrain(jax.tree.map(lambda x: x[order], rollout))
    return step(state, minibatch, extra_part)

  def epoch(state: TrainState, order: Array):
    return jax.lax.scan(minibatch_step, state, (order, extra))

  if kl_limit is None:
    return jax.lax.scan(epoch, state, orders)

  def guarded_epoch(carry: tuple[TrainState, Array], order: Array):
    state, is_stopped = carry
    _, shapes = jax.eval_shape(epoch, state, order)
    if "ppo/approximate_kl" not in shapes:
      raise ValueError(
        f"update_kl_limit={kl_limit}: the loss reports no ppo/approximate_kl "
        "to compare it with. Report it (objectives.ratio_metrics), or set None."
      )
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    state, metrics = jax.lax.cond(
      is_stopped,
      lambda state, order: (state, blank),
      epoch,
      state,
      order,
    )
    is_over = jnp.mean(metrics["ppo/approximate_kl"]) > kl_limit
    return (state, is_stopped | is_over), metrics

  (state, _), metrics = jax.lax.scan(
    guarded_epoch, (state, jnp.zeros((), bool)), orders
  )
  return state, metrics


def summarise(metrics: Metrics) -> Metrics:
  """Returns means (or maxima, for *_max) over the steps that were applied."""
  metrics = dict(metrics)
  executed, applied = metrics.pop("executed"), metrics.pop("applied")
  count = jnp.sum(applied)
  result = {
    name: jnp.max(jnp.where(applied, x, -jnp.inf))
    if name.endswith("_max")
    else jnp.sum(jnp.where(applied, x, 0.0)) / count
    for name, x in metrics.items()
  }
  result["ppo/epochs"] = jnp.sum(jnp.any(executed, axis=1) * 1.0)
  result["sys/skipped_updates"] = jnp.sum((executed & ~applied) * 1.0)
  return result
