"""Odds-ratio preference optimisation (ORPO): SFT and preference in one.

  L = -a0 - lambda log s(log odds(a0) - log odds(a1))
  odds(a) = e^a / (1 - e^a)

a is the log-probability of an answer PER TOKEN. Hong et al. 2024,
arXiv:2403.07691, eq. 6 and 7. No reference policy: the likelihood term holds
the policy, and the run starts from a base model, not from SFT. Soft labels mix
both orders.

The likelihood is that of the answer's tokens, as in the paper; TRL counts the
prompt's too. a above -1e-6 (an answer that is certain in float32) counts as
-1e-6, where the odds end.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch

REFERENCE_FREE = True

_CERTAIN = -1e-6  # nats a token


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of ORPO."""

  odds_weight: float = 0.1  # lambda of the odds-ratio term beside the
  # likelihood; 0.1 Mistral, 0.2 Llama-2 in the paper

  def __post_init__(self) -> None:
    pairs.check_not_negative(odds_weight=self.odds_weight)


def log_odds(a: Array) -> Array:
  """Returns a - log(1 - e^a), exact in float32 near 0 and far from it.

  Args:
    a: log-probabilities, nats; above -1e-6 they count as -1e-6.
  """
  a = jnp.minimum(a, _CERTAIN)
  is_near = a > -jnp.log(2.0)
  near = jnp.log(-jnp.expm1(jnp.where(is_near, a, -1.0)))
  far = jnp.log1p(-jnp.exp(jnp.where(is_near, -1.0, a)))
  return a - jnp.where(is_near, near, far)


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in nats, and metrics (see pairs.metrics).

  The scores of the metrics are the log odds. Beside those:
    preference/nll: nats a token of the preferred answer. Up is bad.

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: reference_logprobs are not read.
    config: settings.

  Raises:
    ValueError: K is not 2.
  """
  pairs.check_pair(batch, "orpo")
  a = pairs.averages(logprobs, batch)
  odds = log_odds(a)
  margin = odds[:, 0] - odds[:, 1]
  nll = pairs.mixed(batch.label, -a[:, 0], -a[:, 1])
  preference = pairs.mixed(
    batch.label, -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
  )
  found = pairs.metrics(odds, logprobs, batch)
  found["preference/nll"] = (nll, jnp.ones_like(nll))
  return nll + config.odds_weight * preference, found
