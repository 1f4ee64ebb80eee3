"""Simple preference optimisation (SimPO): no reference, a margin.

  L = -log s(beta (a0 - a1) - gamma),   gamma = margin_ratio beta

a is the log-probability of an answer PER TOKEN, so beta is about twenty times
that of dpo.py. Meng et al. 2024, arXiv:2405.14734, eq. 6. With soft labels
both orders are mixed, each with its margin. Nothing holds the policy near its
start: watch the KL and the lengths of fresh samples.
"""

from __future__ import annotations

import dataclasses

import jax

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch

REFERENCE_FREE = True


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of SimPO."""

  beta: float = 2.5  # slope of the loss in log-probability per token; 2.0 to
  # 2.5 in the paper, up to 10 for instruct models
  margin_ratio: float = 0.55  # gamma / beta, the margin that is asked for; 0.3
  # to 1 in the paper

  def __post_init__(self) -> None:
    pairs.check_positive(beta=self.beta)
    pairs.check_not_negative(margin_ratio=self.margin_ratio)


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in nats, and metrics (see pairs.metrics).

  The scores of the metrics are beta a; the margin gamma is not taken off.

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: reference_logprobs are not read.
    config: settings.

  Raises:
    ValueError: K is not 2.
  """
  pairs.check_pair(batch, "simpo")
  rewards = config.beta * pairs.averages(logprobs, batch)
  difference = rewards[:, 0] - rewards[:, 1]
  gamma = config.margin_ratio * config.beta
  losses = pairs.mixed(
    batch.label,
    -jax.nn.log_sigmoid(difference - gamma),
    -jax.nn.log_sigmoid(-difference - gamma),
  )
  return losses, pairs.metrics(rewards, logprobs, batch)
