"""Self-play fine-tuning (SPIN): demonstrations against the policy's own.

  L = -log s(lambda (u(y) - u(y'))),   u = log pi - log pi_t
  y from the demonstrations, y' sampled from pi_t

pi_t, the policy of the round before, is opponent and reference at once; a
round is a run that starts from it. Chen et al. 2024, arXiv:2401.01335, eq. 4.7
with the logistic loss, which makes it DPO with other data: candidate 0 is the
demonstration, candidate 1 the sample, and no label is anything but 1.

Trained to the end, a round gives pi_t (p_data / pi_t)^(1 / lambda) / Z: only
pi = p_data stays where it is, and the distance to it shrinks from round to
round for lambda > 1/2 alone. The paper's 0.1 relies on rounds that stop early.

Left out: sampling y', which pipelines/self_play.py does.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of SPIN."""

  beta: float = 0.1  # lambda, strength of the reference; 5 in the paper's last
  # round

  def __post_init__(self) -> None:
    pairs.check_positive(beta=self.beta)


def check_labels(labels: np.ndarray) -> None:
  """Raises ValueError unless labels [P] are all 1."""
  other = labels[labels != 1.0]
  if other.size:
    raise ValueError(
      f"name='spin': {other.size} of {labels.size} labels are not 1 (for "
      f"example {other[0]:g}), and a demonstration always beats a sample. "
      "Leave `label` out of the data."
    )


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in nats, and metrics (see pairs.metrics).

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: with reference_logprobs, of the policy of the round before.
    config: settings.

  Raises:
    ValueError: K is not 2, or there are no reference_logprobs.
  """
  pairs.check_pair(batch, "spin")
  rewards = config.beta * pairs.log_ratios(logprobs, batch)
  losses = -jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1])
  return losses, pairs.metrics(rewards, logprobs, batch)
