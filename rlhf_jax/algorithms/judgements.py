"""Labels of a judge that sees two answers, without what position does to it.

  z1 = log P("A") - log P("B"),  the first answer stands as A
  z2 = the same,                 the first answer stands as B
  s  = (z1 - z2) / 2,  b = (z1 + z2) / 2,  label = sigma(s)

A judge with z1 = s + b and z2 = -s + b, a planted position bias b, gives s back
exactly. The mean of the two probabilities (Lee et al. 2023, arXiv:2309.00267)
is 1/2 at s = 0 as well, but smaller than sigma(|s|) elsewhere. A position bias
is all that two orders remove: one for length, or for the judge's own answers,
is the same in both (labelling/judge_audit.py measures them).

A judge that gives no probabilities votes: z is +inf or -inf, and two votes that
disagree leave 1/2.
"""

from __future__ import annotations

import numpy as np

from rlhf_jax.types import Array

CLAMP = 0.4  # labels after reasoning are in [CLAMP, 1 - CLAMP]


def unswapped(first: Array, swapped: Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns s and b, [N] float64: what is of the answers, and of positions.

  Args:
    first: [N] logits of "A" over "B" where the first answer stands as A.
    swapped: [N], where the first answer stands as B.

  Returns:
    s, which is 0 for two votes that disagree, and b, which is NaN where a vote
    has no size.
  """
  first, swapped = (np.asarray(x, np.float64) for x in (first, swapped))
  is_vote = ~(np.isfinite(first) & np.isfinite(swapped))
  with np.errstate(invalid="ignore"):
    difference, total = first - swapped, first + swapped
  s = np.where(np.isnan(difference), 0.0, 0.5 * difference)
  return s, np.where(is_vote, np.nan, 0.5 * total)


def labels(s: Array, clamp: float = 0.0) -> np.ndarray:
  """Returns [N] float64, the probability that the first answer is better.

  Args:
    s: [N] logits, from `unswapped`.
    clamp: labels are cut to [clamp, 1 - clamp]. Bai et al. 2022
      (arXiv:2212.08073) take 0.4 after reasoning, which makes a judge too sure.

  Raises:
    ValueError: clamp is not in [0, 0.5].
  """
  if not 0.0 <= clamp <= 0.5:
    raise ValueError(f"clamp={clamp}: must be in [0, 0.5]; 0 cuts nothing.")
  s = np.asarray(s, np.float64)
  found = 0.5 * (1.0 + np.tanh(0.5 * s))
  return np.clip(found, clamp, 1.0 - clamp)


def masses(logprobs: Array) -> np.ndarray:
  """Returns [N], the probability of all labels together.

  A judge that means to say something else leaves them little.

  Args:
    logprobs: [N, K] of the labels; -inf for one that has none.
  """
  return np.sum(np.exp(np.asarray(logprobs, np.float64)), axis=-1)


def expected_scores(logprobs: Array, values: Array) -> np.ndarray:
  """Returns [N], sum_k p_k v_k / sum_k p_k scaled to [-1, 1].

  Direct RLAIF, Lee et al. 2023 section 2.2.2: a score from 1 to 10 is the mean
  over the probabilities of its labels, and 1 becomes -1, 10 becomes 1.

  Args:
    logprobs: [N, K] of the labels, one of each row above -inf.
    values: [K] that the labels stand for.
  """
  logprobs = np.asarray(logprobs, np.float64)
  values = np.asarray(values, np.float64)
  top = np.max(logprobs, axis=-1, keepdims=True)
  weights = np.exp(logprobs - top)
  means = (weights @ values) / np.sum(weights, axis=-1)
  low, high = np.min(values), np.max(values)
  return 2.0 * (means - low) / (high - low) - 1.0


def entropies(label: Array) -> np.ndarray:
  """Returns [N] nats, the entropy of labels in [0, 1]."""
  p = np.asarray(label, np.float64)
  with np.errstate(divide="ignore", invalid="ignore"):
    parts = [np.where(x > 0.0, -x * np.log(x), 0.0) for x in (p, 1.0 - p)]
  return parts[0] + parts[1]
