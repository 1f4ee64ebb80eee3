"""One rollout becomes optimizer steps: every policy-gradient method.

  for each epoch: permute the rows; for each minibatch: one optimizer step

Two nested scans, so one jit holds them all. A minibatch is cut into
microbatches with its own denominators (accumulate.py) and makes one guarded
step: one that is not finite is refused and counted. An epoch whose mean
KL(p_old || p) passes the limit is the last one (METHODS 4.10): the rest is
skipped by lax.cond, at no cost. With a pre-training batch the gradient of
PPO-ptx is added (ptx.py).

An algorithm is a module with `loss` and `denominators` (see ppo.py, and
surrogate.py for those without a critic) and a Config that has
`update_kl_limit` and `ptx_coefficient`; registry.py lists them. `objective`
changes the loss of one where no module is wanted.

Metrics of `update`: those of the algorithm's loss, of ppo.critic_metrics
(none without a critic), of ptx.add with a batch of text, and those below. The
area "ppo/" is that of every policy-gradient method, so that curves of two
methods share an axis.
  ppo/first_ratio_error: max |rho - 1| on the first minibatch, before any step.
    Above 1e-4 is a bug: sampler and trainer disagree (METHODS N11).
  ppo/first_clip_fraction: on the same minibatch. Above 0 is a bug. (These two
    where the loss reports those of objectives.ratio_metrics.)
  ppo/gradient_norm: of all weights, before clipping. Sudden growth is bad.
  ppo/gradient_norm_policy, ppo/gradient_norm_value: of params["policy"],
    without the ptx term, and of params["value"]. Sudden growth is bad.
  ppo/epochs: epochs run. Below the set number, the KL limit was hit.
  sys/skipped_updates: steps refused as not finite. Above 0 is bad.
Means (maxima for *_max) are over the steps that were applied; NaN if all were
refused, and 0 if all were passed over.

Left out: an exponential average of the weights.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import accumulate, signatures
from rlhf_jax.algorithms.policy_gradient import objectives, ppo, ptx
from rlhf_jax.types import (
  Array,
  Metrics,
  PyTree,
  Rollout,
  TokenBatch,
  TrainState,
)

Step = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]

# Of the first minibatch, where the loss reports the metrics they are sums of.
FIRST = {
  "ppo/first_ratio_error": ("ppo/ratio_error_max",),
  "ppo/first_clip_fraction": (
    "ppo/clip_fraction_high",
    "ppo/clip_fraction_low",
  ),
}
GRADIENT_NORMS = {
  "policy": "ppo/gradient_norm_policy",
  "value": "ppo/gradient_norm_value",
}


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
  when rows are packed, and `further` has rows of its own; no loss reads them,
  nor the components: they become zeros [rows], {} and None. All else can then
  be permuted and split by row.
  """
  rows = rollout.tokens.shape[0]
  return rollout.replace(
    score=jnp.zeros((rows,), jnp.float32),
    finish_reason=jnp.zeros((rows,), jnp.int32),
    further={},
    components=None,
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
    name: jnp.where(
      count > 0, jnp.max(jnp.where(applied, x, -jnp.inf)), jnp.nan
    )
    if name.endswith("_max")
    else jnp.sum(jnp.where(applied, x, 0.0)) / count
    for name, x in metrics.items()
  }
  was_idle = ~jnp.any(executed)
  result = {name: jnp.where(was_idle, 0.0, x) for name, x in result.items()}
  result["ppo/epochs"] = jnp.sum(jnp.any(executed, axis=1) * 1.0)
  result["sys/skipped_updates"] = jnp.sum((executed & ~applied) * 1.0)
  return result


def _bound_loss(
  algorithm: Any, objective: objectives.Objective | None
) -> Callable[..., tuple[Array, Metrics]]:
  """Returns the algorithm's loss, with an objective bound where given."""
  if objective is None:
    return algorithm.loss
  objectives.checked(objective)
  if "objective" not in inspect.signature(algorithm.loss).parameters:
    raise ValueError(
      f"objective={signatures.name_of(objective)}: the loss of "
      f"{signatures.name_of(algorithm)} has no parameter `objective`, so it "
      "would not be used. Leave it None, or take surrogate.loss or ppo.loss."
    )
  return functools.partial(algorithm.loss, objective=objective)


def _step(
  state: TrainState,
  minibatch: Rollout,
  ptx_part: TokenBatch | None,
  *,
  frozen: PyTree,
  contribution: Callable[..., tuple[Array, Metrics]],
  denominators: Callable[[Rollout], Metrics],
  add_text: Callable[..., tuple[PyTree, Array, Metrics]],
  config: Config,
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one minibatch, and its metrics.

  A gradient of exactly 0 (all groups of equal scores, and no KL yet) changes
  nothing: momentum and weight decay would move the weights for nothing.
  """
  grads, loss, metrics = accumulate.accumulate(
    contribution,
    state.params,
    minibatch,
    config.microbatches,
    frozen,
    denominators(minibatch),
  )
  for key, name in GRADIENT_NORMS.items():
    if key in grads:
      metrics[name] = accumulate.global_norm(grads[key])
  if ptx_part is not None:
    grads, text_loss, found = add_text(grads, state.params, frozen, ptx_part)
    loss = loss + text_loss
    metrics |= found
  tokens = jnp.sum(minibatch.response_mask)
  is_idle = (accumulate.global_norm(grads) == 0.0) & jnp.isfinite(loss)
  state, flags = accumulate.take_step(
    state,
    grads,
    loss,
    optimizer,
    jnp.where(is_idle, 0.0, tokens),
    "ppo/gradient_norm",
  )
  flags["executed"] = tokens > 0
  flags["applied"] |= is_idle & (tokens > 0)
  return state, metrics | flags


def update(
  state: TrainState,
  frozen: PyTree,
  rollout: Rollout,
  rng: Array,
  ptx_batch: TokenBatch | None = None,
  *,
  algorithm: Any,
  algorithm_config: Any,
  config: Config,
  apply: Callable[..., tuple[Array, Array, Array | None]],
  optimizer: Any,
  ptx_apply: Callable[..., tuple[Array, Array]] | None = None,
  constrain: Callable[[PyTree], PyTree] = identity,
  objective: objectives.Objective | None = None,
) -> tuple[TrainState, Metrics]:
  """Trains on one rollout: epochs x minibatches optimizer steps.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train.

  Args:
    state: params {"policy": ..., "value": ...} ("value" absent without a
      critic); donate it.
    frozen: weights that do not train.
    rollout: [N, L] with advantages; rows may be packed.
    rng: permutes the rows.
    ptx_batch: [B, L] pre-training text; each minibatch takes the same part of
      it in every epoch.
    algorithm: the module, e.g. ppo.
    algorithm_config: its Config.
    config: epochs and portions.
    apply: (params, frozen, rollout rows) -> (logprobs, entropies, values or
      None), each [rows, L] float32, aligned by invariant 1, under the
      temperature of the sampler, without dropout.
    optimizer: an optax.GradientTransformation.
    ptx_apply: (params, frozen, TokenBatch) -> (logprobs, entropies).
    constrain: places a minibatch's rows on the mesh (a sharding constraint);
      without it a gather of permuted rows may be replicated on all devices.
    objective: handed to the algorithm's loss, in place of its own
      (objectives.py); None for its own.

  Raises:
    ValueError: rows do not divide, the ptx arguments do not agree, or the
      algorithm's loss takes no objective.
  """
  coefficient = algorithm_config.ptx_coefficient
  if coefficient > 0.0 or ptx_batch is not None:
    parts = config.minibatches * config.microbatches
    ptx.check(coefficient, ptx_batch, ptx_apply, parts)
  loss_of = _bound_loss(algorithm, objective)

  def contribution(params, rows, frozen, counts):
    outputs = apply(params, frozen, rows)
    return loss_of(*outputs, rows, algorithm_config, counts)

  step = functools.partial(
    _step,
    frozen=frozen,
    contribution=contribution,
    denominators=lambda rows: algorithm.denominators(rows, algorithm_config),
    add_text=functools.partial(
      ptx.add,
      coefficient=coefficient,
      microbatches=config.microbatches,
      apply=ptx_apply,
    ),
    config=config,
    optimizer=optimizer,
  )
  if ptx_batch is not None:
    ptx_batch = accumulate.split_rows(ptx_batch, config.minibatches)
  state, metrics = run_epochs(
    step,
    state,
    token_fields(rollout),
    ptx_batch,
    rng,
    config=config,
    kl_limit=algorithm_config.update_kl_limit,
    constrain=constrain,
  )
  first = {
    name: sum(metrics[part][0, 0] for part in parts)
    for name, parts in FIRST.items()
    if all(part in metrics for part in parts)
  }
  return state, summarise(metrics) | first | ppo.critic_metrics(rollout)
