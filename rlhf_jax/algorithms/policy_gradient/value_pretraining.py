"""The critic alone, before the policy trains: value pre-training.

METHODS 4.5; Zheng et al. 2023, arXiv:2307.04964. The loss is ppo.value_loss
without its clip, the epochs are those of update.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.algorithms import accumulate
from rlhf_jax.algorithms.policy_gradient import ppo
from rlhf_jax.algorithms.policy_gradient.update import (
  Config,
  identity,
  run_epochs,
  summarise,
  token_fields,
)
from rlhf_jax.types import Array, Metrics, PyTree, Rollout, TrainState


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

  The loss is not clipped: old values are what is being replaced. Stop when
  ppo/explained_variance of fresh rollouts stops rising.

  Metrics: ppo/value_loss, ppo/gradient_norm_value, sys/skipped_updates,
  ppo/epochs and those of ppo.critic_metrics, with the meanings given there and
  in update.py.

  Args:
    state: params is the value tree itself; donate it.
    frozen: weights that do not train ({} when all do).
    rollout: [N, L] with values and returns (ppo.advantages).
    rng: permutes the rows.
    config: epochs and portions.
    apply: (value params, frozen, rollout rows) -> values [rows, L] float32.
    optimizer: an optax.GradientTransformation.
    constrain: as in update.update.

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
  return state, summarise(metrics) | ppo.critic_metrics(rollout)
