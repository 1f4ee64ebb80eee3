"""The tables of a comparison: settings, numbers, and policies by each judge."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.comparisons.sources import Key, Policy, Run
from rlhf_jax.evaluation import diversity, rankings, win_rate
from rlhf_jax.schema import UserError

RESAMPLES = 2000
ABSENT = None  # a setting or a number that a run has not


@dataclasses.dataclass(frozen=True)
class Judged:
  """A policy as one judge sees it, against the first policy.

  score: mean over prompts.
  difference, low, high: mean of score - score of the first, paired by prompt,
    with its 95 % bootstrap interval; None of the first.
  wins, wins_low, wins_high: share of prompts on which it beats the first.
  ranked: among all policies.
  """

  name: str
  score: float
  difference: float | None
  low: float | None
  high: float | None
  wins: float | None
  wins_low: float | None
  wins_high: float | None
  ranked: rankings.Ranked


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What one judge says.

  rows: of the policies, in their order.
  matrix: [P, P] share of prompts on which the row beats the column.
  """

  judge: str
  prompts: int
  rows: Sequence[Judged]
  matrix: np.ndarray


def judgement(
  judge: str,
  policies: Sequence[Policy],
  prompts: Sequence[Key],
  scores: np.ndarray,
) -> Judgement:
  """Returns how policies compare by a judge.

  Args:
    judge: its name.
    policies: the first is what the others are compared with.
    prompts: of the columns; several answers to one are one unit.
    scores: [policies, prompts].

  Raises:
    UserError: a score that is not finite.
  """
  bad = np.argwhere(~np.isfinite(scores))
  if bad.size:
    who, which = bad[0]
    raise UserError(
      f"{judge}: the score of {policies[who].name} on "
      f"{prompts[which][0]!r:.60} is {scores[who, which]}. Score it again, or "
      "leave the judge out."
    )
  numbers = {prompt: i for i, (prompt, _) in enumerate(prompts)}
  groups = [numbers[prompt] for prompt, _ in prompts]
  ranked = rankings.rank(scores, groups=groups)
  rows = []
  for i, policy in enumerate(policies):
    compared = [None] * 6
    if i:
      compared = _against(scores[i], scores[0], groups)
    rows.append(
      Judged(policy.name, float(scores[i].mean()), *compared, ranked[i])
    )
  matrix = rankings.win_matrix(scores, groups)
  return Judgement(judge, len(numbers), rows, matrix)


def _against(
  own: np.ndarray, first: np.ndarray, groups: Sequence[int]
) -> list[float]:
  """Returns difference and win rate, each with its interval.

  Where all prompts agree who wins, resampling them says nothing of others: the
  interval of the win rate is Wilson's then.
  """
  found: list[float] = []
  for each in (own - first, win_rate.outcomes(own, first)):
    values = rankings.by_group(each, groups)
    interval = win_rate.bootstrap_interval(values, seed=0, resamples=RESAMPLES)
    found += [float(np.mean(values)), *interval]
  wins = found[3]
  if wins in (0.0, 1.0):
    count = len(values)
    found[4:] = win_rate.wilson_interval(wins * count, count)
  return found


def settings(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
  """Returns the fields of config.json that differ: (field, value of each run).

  Args:
    runs: those without a config.json have ABSENT everywhere.
  """
  names = dict.fromkeys(name for run in runs for name in run.config)
  found = []
  for name in names:
    values = [run.config.get(name, ABSENT) for run in runs]
    if len({json.dumps(x, sort_keys=True, default=str) for x in values}) > 1:
      found.append((name, values))
  return found


def results(runs: Sequence[Run]) -> list[tuple[str, list[float | None]]]:
  """Returns the numbers of results: (name, value of each run)."""
  return _rows([run.results for run in runs])


def last_values(runs: Sequence[Run]) -> list[tuple[str, list[float | None]]]:
  """Returns the last value of each metric: (name, value of each run)."""
  return _rows(
    [{name: x[-1][1] for name, x in run.columns.items()} for run in runs]
  )


def _rows(
  columns: Sequence[Mapping[str, float]],
) -> list[tuple[str, list[float | None]]]:
  names = dict.fromkeys(name for column in columns for name in column)
  return [
    (name, [column.get(name, ABSENT) for column in columns]) for name in names
  ]


def texts(
  policies: Sequence[Policy], prompts: Sequence[Key]
) -> list[tuple[str, list[float]]]:
  """Returns what the answers are like, without a judge: (name, of each policy).

  Distinct bigrams of equal numbers of answers; down is more alike.
  """
  each = [[policy.answers[key] for key in prompts] for policy in policies]
  measures = {
    "words of an answer": _words,
    "distinct bigrams": lambda answers: diversity.distinct_n(answers, 2),
    "repeated trigrams": diversity.repeated_ngram_rate,
    "answers that are another's": diversity.duplicate_share,
  }
  return [(name, [f(x) for x in each]) for name, f in measures.items()]


def _words(answers: Sequence[str]) -> float:
  return float(np.mean([len(text.split()) for text in answers]))
