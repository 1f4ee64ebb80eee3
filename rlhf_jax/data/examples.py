"""What records become: the examples of every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.data.messages import Message


@dataclass(frozen=True)
class Demonstration:
  """What a person wrote: a dialogue, or a prompt and its response.

  where: file:line.
  prompt, response: plain text, joined as they are; used if messages is None.
  messages: a dialogue whose assistant turns are learned, or None.
  fields: as of a Prompt.
  """

  where: str
  prompt: str = ""
  response: str = ""
  messages: list[Message] | None = None
  fields: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Comparison:
  """Two answers to one prompt, and which of them people preferred.

  where: file:line.
  prompt: text, or the dialogue so far; "" compares texts without a prompt.
  chosen, rejected: the answers.
  label: probability in [0, 1] that `chosen` wins; 0.5 is a tie.
  margin: by how much the better one should win, in nats, or None.
  fields: as of a Prompt.
  """

  where: str
  prompt: str | list[Message]
  chosen: str
  rejected: str
  label: float = 1.0
  margin: float | None = None
  fields: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Ranking:
  """K answers to one prompt, and what people or judges said of them.

  where: file:line.
  prompt: text, or the dialogue so far.
  answers: K texts; or the rests of K dialogues, which differ in more than their
    last message.
  ranks: K numbers, 0 the best, equal ones tie, None is not ranked; or None.
    Of a choice they are 0 for the chosen one and 1 for the others.
  scores: name of the objective ("" for the answer as a whole) -> K numbers,
    more is better, None where there is none.
  objectives: name of the objective -> K ranks.
  strength: of the preference between two answers, one of rankings.STRENGTHS or
    a number >= 0; or None.
  strengths: name of the objective -> the same of the preference by it.
  acceptable: whether each answer is good by itself, or None.
  label: of two answers, probability that the first is better, or None.
  fields: the whole record: annotator, time, guideline and whatever else.
  """

  where: str
  prompt: str | list[Message]
  answers: tuple[str, ...] | tuple[list[Message], ...]
  ranks: tuple[int | None, ...] | None = None
  scores: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
  objectives: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
  strength: str | float | None = None
  strengths: dict[str, str | float] = field(default_factory=dict)
  acceptable: tuple[bool | None, ...] | None = None
  label: float | None = None
  fields: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Labelled:
  """One answer and what was thought of it: the data of KTO.

  where: file:line.
  prompt: text, or the dialogue so far.
  response: the answer.
  label: 1.0 desirable, 0.0 undesirable.
  """

  where: str
  prompt: str | list[Message]
  response: str
  label: float


@dataclass(frozen=True)
class Prompt:
  """Something to answer: text, or the dialogue so far.

  where: file:line.
  prompt: text or messages.
  reference: what a verifier judges answers against, or None.
  fields: every field of the record as it was read, for reward functions;
    formats.load fills it in.
  """

  where: str
  prompt: str | list[Message]
  reference: Any = None
  fields: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Steps:
  """An answer in steps, each judged or not.

  where: file:line.
  prompt: text, or the dialogue so far.
  steps: their texts, in order.
  labels: of each the probability that it is right, None where nobody said.
  """

  where: str
  prompt: str | list[Message]
  steps: tuple[str, ...]
  labels: tuple[float | None, ...]

  @property
  def response(self) -> str:
    """All steps, a line each."""
    return "\n".join(self.steps)


@dataclass(frozen=True)
class RatedText:
  """A text, or a dialogue, with the ratings that people gave it.

  where: file:line.
  text: of a dialogue all that is said.
  ratings: one of each person.
  messages: of a dialogue, else None.
  objectives: of a dialogue, name -> rating; () are then its ratings until an
    objective is chosen.
  """

  where: str
  text: str
  ratings: tuple[float, ...]
  messages: list[Message] | None = None
  objectives: dict[str, float] = field(default_factory=dict, compare=False)


Example = (
  Demonstration | Comparison | Ranking | Labelled | Prompt | RatedText | Steps
)
