"""Direct preference optimisation (DPO) and its variants by setting.

  L = p l(beta h) + (1 - p) l(-beta h)
  h = log[pi(y0) / pi_ref(y0)] - log[pi(y1) / pi_ref(y1)]

  link "logistic"        l(x) = -log s(x)          Rafailov et al. 2023, eq. 7
  link "hinge"           l(x) = max(0, 1 - x)      SLiC-HF, Zhao et al. 2023
  label_smoothing e      p = label (1 - e) + (1 - label) e      cDPO
  and is_robust          p = (label - e) / (1 - 2 e)            robust DPO
  is_length_normalised   each log-ratio over its number of tokens (Tulu 3)

arXiv:2305.18290, 2305.10425, 2403.00409, 2411.15124; cDPO: Mitchell 2023, "A
note on DPO with noisy preferences & relationship to IPO".

With comparisons drawn from a Bradley-Terry reward r the optimum is
pi_ref exp(r / beta) / Z. cDPO bounds h at logit(1 - e) / beta but keeps the
bias of flipped labels; robust DPO removes it where e is the share of flips,
and its loss can be negative. Where the labels are certain (no two people
disagree) h grows without bound whatever beta is; see ipo.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.preference import pairs
from rlhf_jax.types import Array, PreferenceBatch

LINKS = {
  "logistic": lambda x: -jax.nn.log_sigmoid(x),
  "hinge": lambda x: jnp.maximum(0.0, 1.0 - x),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of DPO."""

  beta: float = 0.1  # strength of the reference; 0.5 for TL;DR in the paper
  link: str = "logistic"  # loss of a margin: -log s(x), or max(0, 1 - x), SLiC
  label_smoothing: float = 0.0  # epsilon, the assumed share of flipped labels
  is_robust: bool = False  # debias by epsilon instead of smoothing
  is_length_normalised: bool = (
    False  # log-ratios over their tokens; Tulu 3, there
  )
  # with beta=5

  def __post_init__(self) -> None:
    pairs.check_positive(beta=self.beta)
    if self.link not in LINKS:
      raise ValueError(
        f"link={self.link!r}: must be one of {', '.join(LINKS)}."
      )
    if not 0.0 <= self.label_smoothing < 0.5:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 0.5); at 0.5 "
        "labels say nothing."
      )


def target(label: Array, config: Config) -> Array:
  """Returns [B], the weight of "0 beats 1"; outside [0, 1] when robust."""
  epsilon = config.label_smoothing
  if config.is_robust:
    return (label - epsilon) / (1.0 - 2.0 * epsilon)
  return label * (1.0 - epsilon) + (1.0 - label) * epsilon


def loss(
  logprobs: Array, batch: PreferenceBatch, config: Config
) -> tuple[Array, pairs.Counted]:
  """Returns [B] losses in nats, and metrics (see pairs.metrics).

  Args:
    logprobs: [B, 2, L] float32, of the policy.
    batch: with reference_logprobs.
    config: settings.

  Raises:
    ValueError: K is not 2, or there are no reference_logprobs.
  """
  pairs.check_pair(batch, "dpo")
  rewards = config.beta * pairs.log_ratios(
    logprobs, batch, is_average=config.is_length_normalised
  )
  margin = rewards[:, 0] - rewards[:, 1]
  link = LINKS[config.link]
  losses = pairs.mixed(target(batch.label, config), link(margin), link(-margin))
  return losses, pairs.metrics(rewards, logprobs, batch)
