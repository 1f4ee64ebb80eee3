"""The KL to the reference over a run: its coefficient, and what is too much.

  beta <- beta (1 + n / horizon clip(KL / target - 1, -c, c))

Ziegler et al. 2019, section 2.2 (arXiv:1909.08593). The settings are those of
shaping.py, where beta enters the reward.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.policy_gradient.shaping import Config
from rlhf_jax.types import Array


def update_kl_coefficient(
  kl_coefficient: Array | float,
  sequence_kl: Array | float,
  batch_size: int,
  config: Config,
) -> Array:
  """Returns beta (1 + n / horizon clip(KL / target - 1, -c, c)), or beta.

  Ziegler et al. 2019, section 2.2, with K_beta = n / horizon. Call once per
  rollout, after its update. The factor is always positive.

  Args:
    kl_coefficient: beta so far, > 0 if it is to move.
    sequence_kl: nats per ANSWER (rollout/kl_k1_sum), not per token.
    batch_size: n, answers in the rollout.
    config: settings; "fixed" returns beta unchanged.

  Raises:
    ValueError: n / horizon is so large that beta could turn negative.
  """
  kl_coefficient = jnp.asarray(kl_coefficient, jnp.float32)
  if config.kl_controller == "fixed":
    return kl_coefficient
  gain = batch_size / config.kl_horizon
  if gain * config.kl_clip >= 1.0:
    raise ValueError(
      f"kl_horizon={config.kl_horizon}: with {batch_size} answers per rollout "
      "one step could make the KL coefficient negative. Set kl_horizon > "
      f"{batch_size * config.kl_clip}."
    )
  return _moved(kl_coefficient, sequence_kl, gain, config)


@functools.partial(jax.jit, static_argnames=("gain", "config"))
def _moved(beta: Array, sequence_kl: Array, gain: float, config: Config):
  error = jnp.clip(
    sequence_kl / config.kl_target - 1.0, -config.kl_clip, config.kl_clip
  )
  return beta * (1.0 + gain * error)


def check_kl(
  sequence_kl: float, config: Config, standard_error: float | None = None
) -> str:
  """Returns "ok", "warn" or "halt" for the KL to the reference, in Python.

  Args:
    sequence_kl: nats per answer; NaN means "halt".
    config: settings.
    standard_error: rollout/kl_k1_standard_error; given, a KL further below 0
      than it is "warn": sampler and trainer disagree on log-probabilities.
  """
  if not sequence_kl <= config.halt_nats:
    return "halt"
  if sequence_kl > config.warn_nats:
    return "warn"
  if standard_error is not None and sequence_kl < -standard_error:
    return "warn"
  return "ok"
