"""Llama 2's switch: the safety score where it matters, else helpfulness.

  R_c = R_s  where the prompt is tagged or R_s < threshold, else R_h
  score = whiten(logit(clip(R_c, e, 1 - e)))

Touvron et al. 2023, section 3.2.3 (arXiv:2307.09288): threshold 0.15, which
has a precision of 0.89 and a recall of 0.55 on their safety test. R is the
sigmoid of a reward model's score. Here that score is in deviations of the
reference policy, so 0.15 is 1.73 deviations below its mean: only the scale that
a reward model was trained on could say more, and its zero means nothing (only
differences are trained). A verifier or a function in either place gives a
probability, a number in [0, 1], itself.

The logits are computed without the sigmoid between, which would round them.
whiten takes the mean off and divides by the deviation, both of all answers
so far, this batch included; Llama 2 does not say over what.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from rlhf_jax.algorithms.combination import components
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.types import Array, Components, Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the switch."""

  safety: str = "safe"  # the judge whose score is R_s
  helpfulness: str = "helpful"  # the judge whose score is R_h
  threshold: float = 0.15  # R_s below it decides; Touvron 2023
  tagged_by: str = ""  # field of a prompt that is true where R_s always
  # decides; "" for none
  epsilon: float = 1e-6  # e, how near to 0 and 1 a score may come
  whitens: bool = True  # subtract the mean of the logits and divide by their
  # deviation, over all answers so far

  def __post_init__(self) -> None:
    if self.safety == self.helpfulness:
      raise ValueError(
        f"safety={self.safety!r}: is helpfulness too. Name two judges."
      )
    if not 0.0 <= self.threshold <= 1.0:
      raise ValueError(f"threshold={self.threshold}: must be in [0, 1].")
    if not 0.0 < self.epsilon < 0.5:
      raise ValueError(f"epsilon={self.epsilon}: must be in (0, 0.5).")


def check(judges: components.Judges, config: Config) -> None:
  """Raises ValueError unless the judges are the two of the switch."""
  names = {judge.name for judge in judges}
  if names != {config.safety, config.helpfulness}:
    raise ValueError(
      f"combination: judges are {', '.join(sorted(names))}, and the switch is "
      f"between safety={config.safety!r} and helpfulness="
      f"{config.helpfulness!r}. Name these two; others can watch as monitors."
    )
  components.check_unread(
    judges,
    ("weight", "scale"),
    "the switch takes one of the two scores as a probability. Leave it out, or "
    "set combination.name='sum'.",
  )


def init(judges: components.Judges, config: Config) -> PyTree:
  """Returns what a run carries from rollout to rollout."""
  del judges, config
  return {"moments": shaping.init_moments()}


def logits(values: Array, epsilon: float, *, is_model: bool) -> Array:
  """Returns [N] logit(clip(R, e, 1 - e)) of scores.

  Args:
    values: [N], of a reward model (R is their sigmoid), or R itself.
    epsilon: e.
    is_model: which of the two.
  """
  if is_model:
    limit = math.log((1.0 - epsilon) / epsilon)
    return jnp.clip(values, -limit, limit)
  clipped = jnp.clip(values, epsilon, 1.0 - epsilon)
  return jnp.log(clipped) - jnp.log1p(-clipped)


def _both(
  found: Components, judges: components.Judges, config: Config
) -> tuple[Array, Array]:
  """Returns [N] logits of the answers, and [N] bool where safety decides."""
  columns = []
  for name in (config.safety, config.helpfulness):
    k = components.place(judges, name)
    is_model = judges[k].is_model
    columns.append(
      logits(found.values[:, k], config.epsilon, is_model=is_model)
    )
  safe, helpful = columns
  bound = -math.inf
  if config.threshold > 0.0:
    share = config.threshold
    bound = math.inf if share == 1.0 else math.log(share / (1.0 - share))
  decides = (found.tagged > 0) | (safe < bound)
  return jnp.where(decides, safe, helpful), decides


def observe(
  state: PyTree,
  found: Components,
  counts: Array,
  judges: components.Judges,
  config: Config,
) -> PyTree:
  """Returns the state with the scores of a batch seen.

  Args: as in weighted_sum.observe.
  """
  chosen, _ = _both(found, judges, config)
  moments = shaping.update_moments(state["moments"], chosen, counts)
  return {"moments": moments}


def combine(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Array:
  """Returns [N] float32 scores; args as in weighted_sum.combine."""
  chosen, _ = _both(found, judges, config)
  if not config.whitens:
    return chosen
  return components.standardised(chosen, state["moments"])


def details(
  found: Components, state: PyTree, judges: components.Judges, config: Config
) -> Metrics:
  """Returns {name: [N]} to log: where the safety score decides."""
  del state
  _, decides = _both(found, judges, config)
  return {"by_safety": decides * 1.0}
