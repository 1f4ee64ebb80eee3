"""Who judges the answers of all policies: scores on disk, or somebody named.

  gold, proxy, verifier   scores that the runs' evaluations wrote
  vader                   a lexicon of sentiment (evaluation/lexicon.py)
  length                  characters: what no judge should follow
  runs/reward             a reward model, which reads the answers now
  FILE.py:NAME            a reward function, see docs/extending.md
  ai:MODEL                a language model's score from 1 to 10, of any
                          model.source; see docs/ai_feedback.md

Scores on disk count where every policy has them from the same judge: two reward
models of one name in two runs are two judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import imported
from rlhf_jax.comparisons.sources import JUDGES, Key, Policy
from rlhf_jax.evaluation import lexicon
from rlhf_jax.schema import UserError

Scores = np.ndarray  # [policies, prompts]
_OWN = ("vader", "length")
_AI = "ai:"


def on_disk(
  policies: Sequence[Policy], prompts: Sequence[Key]
) -> tuple[dict[str, Scores], list[str]]:
  """Returns the scores of each judge that judged all, and what is left out.

  Args:
    policies: two or more.
    prompts: that all of them answered.
  """
  found: dict[str, Scores] = {}
  left: list[str] = []
  names = dict.fromkeys(name for policy in policies for name in policy.scores)
  for name in names:
    without = [
      x.name
      for x in policies
      if any(key not in x.scores.get(name, {}) for key in prompts)
    ]
    if without:
      left.append(f"{name}: no scores of {', '.join(without)}")
      continue
    files = frozenset().union(*(policy.files for policy in policies))
    if name in JUDGES and len(files) > 1:
      kinds = {policy.judges.get(name, "") for policy in policies}
      if len(kinds) > 1 or "" in kinds:
        left.append(
          f"{name}: not the same judge in all runs, so far as their "
          "evaluation.json says. Score all by one: --judge=runs/reward"
        )
        continue
    found[name] = np.array(
      [[policy.scores[name][key] for key in prompts] for policy in policies]
    )
  return found, left


def named(
  judge: str,
  policies: Sequence[Policy],
  prompts: Sequence[Key],
  known: dict[str, Scores],
) -> Scores:
  """Returns the scores of a judge that the command line names.

  Args:
    judge: see the module's docstring.
    policies: whose answers are judged.
    prompts: that all of them answered.
    known: from `on_disk`.

  Raises:
    UserError: there is no such judge, or it cannot judge these answers.
  """
  if judge in known:
    return known[judge]
  texts = [[policy.answers[key] for key in prompts] for policy in policies]
  asked = [prompt for prompt, _ in prompts]
  if judge == "length":
    return np.array([[float(len(x)) for x in row] for row in texts])
  if judge == "vader":
    return _each(texts, lambda row: lexicon.vader_scores(_joined(asked, row)))
  if judge.startswith(_AI):
    return _each(texts, _language_model(judge, asked))
  if imported.is_path(judge):
    return _each(texts, _function(judge, asked))
  if Path(judge).expanduser().is_dir():
    return _each(texts, _reward_model(judge, asked))
  names = [*known, *_OWN]
  raise UserError(
    f"--judge={judge}: no such judge. Name one of {', '.join(names)}, the "
    "folder of a reward run, a function, FILE.py:NAME, or a language model, "
    f"ai:MODEL.{imported.nearest(judge, names)}"
  )


def _joined(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
  return [a + b for a, b in zip(prompts, texts, strict=True)]


def _each(
  texts: Sequence[list[str]], score: Callable[[list[str]], np.ndarray]
) -> Scores:
  return np.array([np.asarray(score(row), np.float64) for row in texts])


def _function(
  path: str, prompts: list[str]
) -> Callable[[list[str]], np.ndarray]:
  """Returns what a reward function says of one answer to each prompt."""
  from rlhf_jax.rewards import functions

  try:
    function = imported.load(path, "--judge")
    bound = functions.bind(function, {}, "--judge", path)
  except ValueError as error:
    raise UserError(str(error)) from error
  lacks = sorted(bound.needs - {"texts", "prompts"})
  if lacks:
    raise UserError(
      f"--judge={path}: reads {', '.join(lacks)}, which texts on disk do not "
      "have. Judge by texts and prompts alone, or when evaluating "
      "(configs/evaluate.py)."
    )
  return _scores_of(bound, prompts)


def _language_model(
  judge: str, prompts: list[str]
) -> Callable[[list[str]], np.ndarray]:
  """Returns what a language model says of one answer to each prompt."""
  from rlhf_jax.rewards import verifiers

  try:
    bound = verifiers.bind_parts("ai_judge", source=judge.removeprefix(_AI))
  except ValueError as error:
    raise UserError(f"--judge={judge}: {error}") from error
  return _scores_of(bound, prompts)


def _scores_of(
  bound: Any, prompts: list[str]
) -> Callable[[list[str]], np.ndarray]:
  """Returns the scores of one answer to each prompt, by a reward function."""
  from rlhf_jax.rewards import rows

  def score(texts: list[str]) -> np.ndarray:
    none = [None] * len(texts)
    answers = rows.Answers(texts=texts, references=none, prompts=prompts)
    return bound(answers)[0]

  return score


def _reward_model(
  folder: str, prompts: list[str]
) -> Callable[[list[str]], np.ndarray]:
  """Returns what a reward model says of one answer to each prompt."""
  from rlhf_jax import lab
  from rlhf_jax.notebook.models import RewardModel

  model = lab.load(folder)
  if not isinstance(model, RewardModel):
    raise UserError(
      f"--judge={folder}: is a policy. Name the folder of a reward run."
    )
  return lambda texts: model.score(prompts, texts)
