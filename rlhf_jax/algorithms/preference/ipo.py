"""Identity preference optimisation (IPO).

  L = p (h - 1/(2 tau))^2 + (1 - p) (h + 1/(2 tau))^2
  h = log[pi(y0) / pi_ref(y0)] - log[pi(y1) / pi_ref(y1)]

Azar et al. 2023, arXiv:2310.12036, eq. 17. Differs from dpo.py in the link
function only: the target of h is finite, so tau keeps its meaning where
labels are certain. The optimum is h = (2 p - 1) / (2 tau) for each pair, where
some policy has these differences, and their least-squares fit else.

h is a sum over tokens, as in the paper. `is_length_normalised` divides each
log-ratio by its number of tokens first, which is what the authors run (by
their word to the TRL project); tau is then per token, about 0.1, and 0.01 to
1 otherwise.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of IPO."""

  tau: float = 0.1  # strength of the reference: the margin aims at 1 / (2 tau)
  is_length_normalised: bool = False  # h of averages over tokens, not of sums

  def __post_init__(self) -> None:
    pairs.check_positive(tau=self.tau)


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in squared nats, and metrics (see pairs.metrics).

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: with reference_logprobs.
    config: settings.

  Raises:
    ValueError: K is not 2, or there are no reference_logprobs.
  """
  pairs.check_pair(batch, "ipo")
  ratios = pairs.log_ratios(
    logprobs, batch, is_average=config.is_length_normalised
  )
  h = ratios[:, 0] - ratios[:, 1]
  goal = 1.0 / (2.0 * config.tau)
  losses = pairs.mixed(batch.label, jnp.square(h - goal), jnp.square(h + goal))
  return losses, pairs.metrics(config.tau * ratios, logprobs, batch)
