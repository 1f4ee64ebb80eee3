"""Contrastive preference optimisation (CPO): DPO without a reference.

  L = -log s(beta (log pi(y0) - log pi(y1))) - alpha log pi(y0)

The reference of dpo.py is taken as uniform and falls out; the likelihood of
the preferred answer holds the policy instead. Xu et al. 2024,
arXiv:2401.08417, eq. 3 to 5. Log-probabilities in the first term are sums over
tokens, unlike simpo.py. The second is a sum in the paper's equation and a mean
over tokens in its published code; `nll` chooses.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch

REFERENCE_FREE = True

NLL = {"mean": pairs.averages, "sum": pairs.sums}


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of CPO."""

  beta: float = 0.1  # slope of the preference term
  nll_weight: float = 1.0  # alpha of the likelihood of the preferred answer
  nll: str = "mean"  # that likelihood: over the tokens of an answer, or summed

  def __post_init__(self) -> None:
    pairs.check_positive(beta=self.beta)
    pairs.check_not_negative(nll_weight=self.nll_weight)
    if self.nll not in NLL:
      raise ValueError(f"nll={self.nll!r}: must be one of {', '.join(NLL)}.")


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in nats, and metrics (see pairs.metrics).

  The scores of the metrics are beta log pi. Beside those:
    preference/nll: of the preferred answer, as config.nll says. Up is bad.

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: reference_logprobs are not read.
    config: settings.

  Raises:
    ValueError: K is not 2.
  """
  pairs.check_pair(batch, "cpo")
  rewards = config.beta * pairs.sums(logprobs, batch)
  difference = rewards[:, 0] - rewards[:, 1]
  preference = pairs.mixed(
    batch.label,
    -jax.nn.log_sigmoid(difference),
    -jax.nn.log_sigmoid(-difference),
  )
  likelihood = NLL[config.nll](logprobs, batch)
  nll = -pairs.mixed(batch.label, likelihood[:, 0], likelihood[:, 1])
  found = pairs.metrics(rewards, logprobs, batch)
  found["preference/nll"] = (nll, jnp.ones_like(nll))
  return preference + config.nll_weight * nll, found
