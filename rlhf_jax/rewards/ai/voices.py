"""Whoever answers questions, a local model or an endpoint: what both are.

A voice yields (number of the question, Reply) as replies come, in any order, so
that each is kept before the next one is paid for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from rlhf_jax.rewards.ai.questions import Messages, Question
from rlhf_jax.schema import UserError

# What can be wrong with a reply, and what is then done: it is counted.
FORM, LONG, FAILED = "out_of_form", "too_long", "failed"
FAILURES = (FORM, LONG, FAILED)


class JudgeGone(UserError):
  """Nobody answers any more: a run ends, and the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came back.

  value: log-probabilities of the labels (-inf: none), or a text; None where
    there is a failure.
  failure: one of FAILURES, or "".
  prompt_tokens, answer_tokens: what it cost.
  has_ended: a text ended by itself, and not at the limit.
  """

  value: Any
  failure: str = ""
  prompt_tokens: int = 0
  answer_tokens: int = 0
  has_ended: bool = True


@dataclasses.dataclass(frozen=True)
class Saying:
  """How a text is drawn.

  max_new_tokens: at most.
  temperature: 0 is greedy.
  seed: with the dialogue itself, all that its randomness depends on.
  """

  max_new_tokens: int
  temperature: float = 1.0
  seed: int = 0


Replies = Iterator[tuple[int, Reply]]


class Voice(Protocol):
  """Who answers.

  name: for people, and as the annotator of what it judges.
  identity: what must be the same for a reply to be the same.
  """

  name: str
  identity: dict[str, Any]

  def label_logprobs(self, questions: Sequence[Question]) -> Replies:
    """Yields natural log-probabilities of each question's labels."""

  def say(self, dialogues: Sequence[Messages], how: Saying) -> Replies:
    """Yields a text that answers each dialogue."""
