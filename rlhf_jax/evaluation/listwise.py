"""Scores of several answers to a prompt: who is first, and is the order right?

  best of K   1 / k if the right answer is among k that score highest, else 0
  tau_b       (concordant - discordant) / sqrt(pairs untied in x * in y)
  ties score  0.3 tied + 0.3 reference accuracy + 0.2 preferred + 0.2 hard
              + 0.01 mean tanh(gap / spread - 1)

The last is of prompts with many right answers: the gap from the worst right one
to the best wrong one should be larger than the spread among right ones. As in
RewardBench 2 (Malik et al. 2025, arXiv:2506.01937) and its code; a prompt with
many right answers ("tied") has one with a single right answer beside it ("ref")
which shows how large a gap is. Kendall 1945 for tau_b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.schema import UserError

Answers = tuple[Sequence[float], Sequence[bool]]  # scores, whether it is right


def best_of(scores: Sequence[float], right: Sequence[bool]) -> float:
  """Returns how far a right answer scores highest; ties count 1 / k.

  Args:
    scores: [K].
    right: [K].

  Returns:
    the share of right answers among those that score highest.
  """
  values = np.asarray(scores, np.float64)
  highest = values == values.max()
  return float(np.mean(np.asarray(right, np.float64)[highest]))


def kendall_tau_b(scores: Sequence[float], ranks: Sequence[float]) -> float:
  """Returns Kendall's tau_b of scores and ranks, 1 for the same order.

  Args:
    scores: [K], more is better.
    ranks: [K], 0 the best; NaN is left out.

  Returns:
    tau_b; NaN where either side has no order.
  """
  x, y = np.asarray(scores, np.float64), -np.asarray(ranks, np.float64)
  known = ~np.isnan(y)
  first, second = np.triu_indices(int(known.sum()), 1)
  x, y = x[known], y[known]
  a, b = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
  scale = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
  return float(np.sum(a * b)) / scale if scale > 0 else math.nan


class Ties(NamedTuple):
  """What RewardBench 2 says of prompts with many right answers.

  reference, tied: share of prompts whose right answers all score above the
    wrong ones, where one is right and where many are.
  preferred: share of prompts whose gap is larger than the spread among right
    ones; hard: and the gap beside the single right answer too.
  margin: mean of tanh(smaller gap / spread - 1).
  score: of all of them, about 0.6 accuracy and 0.4 margins.
  prompts: that have both.
  """

  reference: float
  tied: float
  preferred: float
  hard: float
  margin: float
  score: float
  prompts: int


def _gap(answers: Answers, name: str) -> tuple[bool, float, float]:
  """Returns (is accurate, spread of right ones, gap to the best wrong one)."""
  scores, right = np.asarray(answers[0], np.float64), np.asarray(answers[1])
  if not right.any() or right.all():
    raise UserError(
      f"ties, prompt {name}: needs right and wrong answers, and has "
      f"{int(right.sum())} right of {right.size}. Remove it."
    )
  good, bad = scores[right], scores[~right]
  gap = float(good.min() - bad.max())
  return gap > 0, float(good.max() - good.min()), gap


def ties(reference: Mapping[str, Answers], tied: Mapping[str, Answers]) -> Ties:
  """Returns the ties score of RewardBench 2.

  Args:
    reference: prompt -> answers of which one is right.
    tied: prompt -> answers of which several are right.

  Raises:
    UserError: a prompt without right or without wrong answers, or a tied one
      with a single right answer.
  """
  single = {name: _gap(x, name) for name, x in reference.items()}
  many = {name: _gap(x, name) for name, x in tied.items()}
  for name, (_, right) in tied.items():
    if int(np.sum(right)) < 2:
      raise UserError(
        f"ties, prompt {name}: has one right answer, and a tied prompt has "
        "several. Name it ref:, or remove it."
      )
  both = sorted(single.keys() & many.keys())
  accurate = [
    float(np.mean([x[0] for x in those.values()])) if those else 0.0
    for those in (single, many)
  ]
  spread = np.array([many[name][1] for name in both])
  gap = np.array([many[name][2] for name in both])
  smaller = np.minimum(gap, [single[name][2] for name in both])
  with np.errstate(divide="ignore", invalid="ignore"):
    margins = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
  preferred, hard, margin = (
    (
      float(np.mean(gap > spread)),
      float(np.mean(smaller > spread)),
      float(np.mean(margins)),
    )
    if both
    else (math.nan,) * 3
  )
  score = 0.3 * accurate[1] + 0.3 * accurate[0] + 0.2 * preferred
  score += 0.2 * hard + 0.01 * margin
  return Ties(*accurate, preferred, hard, margin, score, len(both))
