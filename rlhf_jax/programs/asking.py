"""Puts the requests of a suite to those who answer, through a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.evaluation.behaviour.suites import (
  ATTACKER,
  Choose,
  Requests,
  Say,
  Score,
  Suite,
)
from rlhf_jax.rewards.ai.judging import Judge
from rlhf_jax.rewards.ai.questions import Messages, Question
from rlhf_jax.rewards.ai.voices import Saying

CHUNK = 32  # texts that are asked for together, between lines of progress
# Dialogues and answers -> [N] scores.
Scorer = Callable[[Sequence[Messages], Sequence[str]], np.ndarray]


def drive(
  suite: Suite,
  asked: Mapping[str, Judge],
  how: Saying,
  *,
  attack: Saying | None = None,
  score: Scorer | None = None,
  shown: str = "",
) -> tuple[Any, int]:
  """Runs a suite to its end.

  Args:
    suite: a generator (evaluation/behaviour/suites.py).
    asked: POLICY, GRADER, ATTACKER -> who answers, of those that the suite
      asks.
    how: texts are drawn.
    attack: those of the attacker are; None: likewise.
    score: a reward model, where the suite asks one.
    shown: first words of a line of progress through the texts of a request;
      "" where another one is shown.

  Returns:
    what it returns, and how many requests got no reply.
  """
  missing, request = 0, next(suite)
  while True:
    replies = _replies(request, asked, how, attack, score, shown)
    missing += sum(reply is None for reply in replies)
    try:
      request = suite.send(replies)
    except StopIteration as done:
      return done.value, missing


def _replies(
  request: Requests,
  asked: Mapping[str, Judge],
  how: Saying,
  attack: Saying | None,
  score: Scorer | None,
  shown: str,
) -> list[Any]:
  """Returns texts, probabilities of labels, or scores; None for no reply."""
  if not request:
    return []
  if isinstance(request[0], Score):
    found = score([x.messages for x in request], [x.answer for x in request])
    return [float(x) for x in found]
  if isinstance(request[0], Choose):
    return _chosen(request, asked[request[0].who])
  who = request[0].who
  usual = attack if who == ATTACKER and attack is not None else how
  if not shown:
    return _said(request, asked[who], usual, lambda done: None)
  title = f"{shown} ({who})" if len(asked) > 1 else shown
  with terminal.Progress(title, len(request), unit="text") as progress:
    return _said(request, asked[who], usual, progress.update)


def _said(
  request: Sequence[Say],
  judge: Judge,
  how: Saying,
  told: Callable[[int], None],
) -> list[str | None]:
  """Returns texts; requests of one draw are answered together.

  told: is called with how many there are.
  """
  found: list[str | None] = [None] * len(request)
  done = 0
  for draw in sorted({item.draw for item in request}):
    drawn = dataclasses.replace(how, seed=how.seed + draw)
    places = [n for n, item in enumerate(request) if item.draw == draw]
    for start in range(0, len(places), CHUNK):
      part = places[start : start + CHUNK]
      replies = judge.texts([request[n].messages for n in part], drawn)
      for n, reply in zip(part, replies, strict=True):
        found[n] = None if reply.failure else reply.value
      done += len(part)
      told(done)
  return found


def _chosen(request: Sequence[Choose], judge: Judge) -> list[Any]:
  questions = [
    Question(x.messages, x.prefix, x.labels, x.space) for x in request
  ]
  replies = judge.choices(questions)
  return [None if x.failure else _shares(x.value) for x in replies]


def _shares(logprobs: Sequence[float]) -> np.ndarray:
  """Returns the probabilities of labels among each other."""
  found = np.asarray(logprobs, np.float64)
  weights = np.exp(found - np.max(found))
  return weights / np.sum(weights)
