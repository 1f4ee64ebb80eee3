"""One rollout becomes optimizer steps: every policy-gradient method.

Each minibatch of each epoch (epochs.py) is cut into microbatches with the
minibatch's own denominators (accumulate.py) and makes one guarded step. With a
pre-training batch the gradient of PPO-ptx is added: L + gamma_ptx CE(text)
(Ouyang et al. 2022, eq. 2, arXiv:2203.02155).

An algorithm is a module with `loss` and `denominators` (see ppo.py, and
surrogate.py for those without a critic) and a Config that has
`update_kl_limit` and `ptx_coefficient`; registry.py lists them. `objective`
changes the loss of one where no module is wanted.

Metrics of `update`: those of the algorithm's loss and of `critic_metrics` (none
without a critic), and those below. The area "ppo/" is that of every
policy-gradient method, so that curves of two methods share an axis.
  ppo/first_ratio_error: max |rho - 1| on the first minibatch, before any step.
    Above 1e-4 is a bug: sampler and trainer disagree (METHODS N11).
  ppo/first_clip_fraction: on the same minibatch. Above 0 is a bug. (These two
    where the loss reports those of objectives.ratio_metrics.)
  ppo/gradient_norm: of all weights, before clipping. Sudden growth is bad.
  ppo/gradient_norm_policy, ppo/gradient_norm_value: of params["policy"],
    without the ptx term, and of params["value"]. Sudden growth is bad.
  ppo/ptx_loss: nats per token of pre-training text. Up is bad: forgetting.
  ppo/gradient_norm_ptx_ratio: norm of the weighted ptx gradient over that of
    the rest. Far above 1 is bad: the reward is not being learnt.
  ppo/epochs: epochs run. Below the set number, the KL limit was hit.
  sys/skipped_updates: steps refused as not finite. Above 0 is bad.
Means (maxima for *_max) are over the steps that were applied, and NaN if none
was.

Left out: an exponential average of the weights.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import accumulate, sft, signatures
from rlhf_jax.algorithms.policy_gradient import objectives, ppo
from rlhf_jax.algorithms.policy_gradient.epochs import (
  Config,
  identity,
  run_epochs,
  summarise,
  token_fields,
)
from rlhf_jax.types import (
  Array,
  Metrics,
  PyTree,
  Rollout,
  TokenBatch,
  TrainState,
)

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


def explained_variance(rollout: Rollout) -> Array:
  """Returns [] 1 - Var(R - V) / Var(R) over response tokens.

  1 is a perfect critic, 0 one that is no better than a constant.

  Args:
    rollout: with values and returns.
  """
  mask = rollout.response_mask
  error = ops.neutral(rollout.returns, mask) - ops.neutral(rollout.values, mask)
  variance = ops.masked_variance(rollout.returns, mask)
  return 1.0 - ops.masked_variance(error, mask) / jnp.maximum(variance, 1e-8)


def critic_metrics(rollout: Rollout) -> Metrics:
  """Returns what the critic of the rollout was worth, before any step.

  Metrics:
    ppo/explained_variance: down is bad; below 0 after 50 steps is an alarm.
    ppo/advantage_mean_raw, ppo/advantage_std_raw: of advantages before
      whitening. A mean far from 0 is a biased critic; a std towards 0 leaves
      noise to whiten.

  Args:
    rollout: with values and returns; {} comes back without values.
  """
  if rollout.values is None or rollout.returns is None:
    return {}
  mask = rollout.response_mask
  raw = ops.neutral(rollout.returns, mask) - ops.neutral(rollout.values, mask)
  return {
    "ppo/explained_variance": explained_variance(rollout),
    "ppo/advantage_mean_raw": ops.masked_mean(raw, mask),
    "ppo/advantage_std_raw": jnp.sqrt(ops.masked_variance(raw, mask)),
  }


def _check_ptx(
  coefficient: float, batch: TokenBatch | None, apply: Any, config: Config
) -> None:
  """Raises ValueError unless coefficient, batch and apply agree."""
  is_ptx = coefficient > 0.0
  if (batch is not None) != is_ptx or (is_ptx and apply is None):
    raise ValueError(
      f"ptx_coefficient={coefficient}, ptx_batch given: {batch is not None}, "
      f"ptx_apply given: {apply is not None}. PPO-ptx needs all three; plain "
      "PPO needs ptx_coefficient=0 and no ptx_batch."
    )
  if batch is not None:
    accumulate.check_divides(
      "minibatches * microbatches",
      config.minibatches * config.microbatches,
      accumulate.row_count(batch),
    )


def _bound_loss(
  algorithm: Any, objective: objectives.Objective | None
) -> Callable[..., tuple[Array, Metrics]]:
  """Returns the algorithm's loss, with an objective bound where given."""
  if objective is None:
    return algorithm.loss
  objectives.check_objective(objective)
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
  ptx: Callable[..., tuple[PyTree, Array, Metrics]],
  config: Config,
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one minibatch, and its metrics."""
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
    grads, ptx_loss, ptx_metrics = ptx(grads, state.params, frozen, ptx_part)
    loss = loss + ptx_loss
    metrics |= ptx_metrics
  tokens = jnp.sum(minibatch.response_mask)
  state, flags = accumulate.take_step(
    state, grads, loss, optimizer, tokens, "ppo/gradient_norm"
  )
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
  _check_ptx(coefficient, ptx_batch, ptx_apply, config)
  loss_of = _bound_loss(algorithm, objective)

  def contribution(params, rows, frozen, counts):
    outputs = apply(params, frozen, rows)
    return loss_of(*outputs, rows, algorithm_config, counts)

  step = functools.partial(
    _step,
    frozen=frozen,
    contribution=contribution,
    denominators=lambda rows: algorithm.denominators(rows, algorithm_config),
    ptx=functools.partial(
      _add_ptx, coefficient=coefficient, config=config, apply=ptx_apply
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
  return state, summarise(metrics) | first | critic_metrics(rollout)


def _add_ptx(
  grads: PyTree,
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  *,
  coefficient: float,
  config: Config,
  apply: Callable[..., tuple[Array, Array]],
) -> tuple[PyTree, Array, Metrics]:
  """Returns grads plus the weighted ptx gradient, the ptx loss, metrics."""
  sft_config = sft.Config()

  def contribution(params, rows, frozen, counts):
    value, _ = sft.loss(*apply(params, frozen, rows), rows, sft_config, counts)
    return value, {}

  ptx_grads, ptx_loss, _ = accumulate.accumulate(
    contribution,
    params,
    batch,
    config.microbatches,
    frozen,
    sft.denominators(batch, sft_config),
  )
  ptx_grads = jax.tree.map(lambda g: g * coefficient, ptx_grads)
  ratio = accumulate.global_norm(ptx_grads) / jnp.maximum(
    accumulate.global_norm(grads), 1e-20
  )
  total = jax.tree.map(jnp.add, grads, ptx_grads)
  metrics = {"ppo/ptx_loss": ptx_loss, "ppo/gradient_norm_ptx_ratio": ratio}
  return total, ptx_loss, metrics


def value_update(
  state: TrainState,
  frozen: PyTree,
  rollout: Rollout,
  rng: Array,
  *,
  config: Config,
  apply: Callable[..., Array],
  optimizer: Any,
  constrain: Callable[[PyTree], PyTree] = identity,
) -> tuple[TrainState, Metrics]:
  """Trains the critic alone on a rollout of a policy that stays frozen.

  Value pre-training before the first policy update (METHODS 4.5; Zheng et al.
  2023, arXiv:2307.04964). The loss is not clipped: old values are what is
  being replaced. Stop when ppo/explained_variance of fresh rollouts stops
  rising.

  Metrics: ppo/value_loss, ppo/gradient_norm_value, sys/skipped_updates,
  ppo/epochs and `critic_metrics`, with the meanings given there and in
  `update`.

  Args:
    state: params is the value tree itself; donate it.
    frozen: weights that do not train ({} when all do).
    rollout: [N, L] with values and returns (ppo.advantages).
    rng: permutes the rows.
    config: epochs and portions.
    apply: (value params, frozen, rollout rows) -> values [rows, L] float32.
    optimizer: an optax.GradientTransformation.
    constrain: as in `update`.

  Raises:
    ValueError: values or returns are missing, or rows do not divide.
  """
  if rollout.values is None or rollout.returns is None:
    raise ValueError(
      "rollout.values or rollout.returns is None: value pre-training regresses "
      "on returns. Run ppo.advantages first."
    )

  def contribution(params, rows, frozen, tokens):
    values = apply(params, frozen, rows)
    mask = rows.response_mask
    ops.check_same_shape(values=values, returns=rows.returns)
    value, _ = ppo.value_loss(
      values, rows.values, rows.returns, mask, tokens, None
    )
    return value, {"ppo/value_loss": value}

  def step(state: TrainState, minibatch: Rollout, extra: None):
    del extra
    tokens = jnp.sum(minibatch.response_mask)
    grads, loss, metrics = accumulate.accumulate(
      contribution,
      state.params,
      minibatch,
      config.microbatches,
      frozen,
      tokens,
    )
    state, flags = accumulate.take_step(
      state, grads, loss, optimizer, tokens, "ppo/gradient_norm_value"
    )
    return state, metrics | flags

  state, metrics = run_epochs(
    step,
    state,
    token_fields(rollout),
    None,
    rng,
    config=config,
    kl_limit=None,
    constrain=constrain,
  )
  return state, summarise(metrics) | critic_metrics(rollout)
