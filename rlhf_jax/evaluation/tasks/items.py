"""Items of capability tasks, and what became of them.

  choice      right is the choice with the largest log-likelihood behind the
              prompt; accuracy by its sum, and by its sum a byte
  generate    the greedy answer, scored by a verifier against `answer`
  perplexity  nats of the text `answer` behind the prompt

A task is a list of items that are told alike. What a policy's outcome is worth
is one number an item, so that two policies are compared pair by pair
(tasks/outcomes.py). Left out: sampled answers (pipelines/evaluate.py has them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.schema import UserError

CHOICE, GENERATE, PERPLEXITY = "choice", "generate", "perplexity"
KINDS = (CHOICE, GENERATE, PERPLEXITY)
Prompt = str | tuple[Mapping[str, Any], ...]  # text, or messages of a dialogue


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  where: FILE:LINE, for messages.
  kind: of KINDS.
  prompt: text, or messages of a dialogue, the last of them the user's; "" for
    a text that stands alone.
  choices: texts that go on after the prompt, of a choice.
  answer: the place of the right choice; what a verifier judges against; or the
    text whose perplexity is measured.
  group: by which accuracies are told apart, such as a subject; "" for none.
  fields: whatever else is known of it.
  """

  where: str
  kind: str
  prompt: Prompt
  choices: tuple[str, ...] = ()
  answer: Any = None
  group: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(
        f"{self.where}: kind={self.kind!r}: must be one of {', '.join(KINDS)}."
      )
    if self.kind == CHOICE:
      self._check_choices()
    if self.kind == PERPLEXITY and not self.answer:
      raise UserError(f"{self.where}: the text is empty. Give it a text.")

  def _check_choices(self) -> None:
    count = len(self.choices)
    if count < 2 or not all(self.choices):
      raise UserError(
        f"{self.where}: {count} choices: there must be two or more, and none "
        "of them empty."
      )
    is_place = isinstance(self.answer, int) and 0 <= self.answer < count
    if isinstance(self.answer, bool) or not is_place:
      raise UserError(
        f"{self.where}: answer={self.answer!r}: must be the place of the right "
        f"choice, 0 to {count - 1}."
      )


@dataclasses.dataclass(frozen=True)
class Task:
  """Items that are told alike.

  name: for tables.
  items: at least one; a task may mix kinds.
  scorer: a verifier of rewards/verifiers.py, or an import path, that scores
    generated answers; "" where nothing is generated.
  settings: of the scorer.
  new_tokens: of a generated answer at most.
  stops: texts that end a generated answer and are cut off it; only of a prompt
    that is text: a dialogue's answer ends by itself.
  about: what it measures, in a line; "" for nothing to say.
  """

  name: str
  items: Sequence[Item]
  scorer: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  new_tokens: int = 128
  stops: tuple[str, ...] = ()
  about: str = ""

  def __post_init__(self) -> None:
    if not self.items:
      raise UserError(f"task {self.name!r} has no items. Give at least one.")
    for item in self.items:
      if item.kind == GENERATE and not self.scorer:
        raise UserError(
          f"{item.where}: nobody scores answers of task {self.name!r}. Set its "
          "scorer to a verifier."
        )

  def first(self, count: int) -> Task:
    """Returns the task with its first `count` items; 0 keeps all."""
    if not count:
      return self
    return dataclasses.replace(self, items=self.items[:count])


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a policy made of one item.

  logprobs: nats of each choice, or of the text alone; () of an answer.
  tokens: that they are sums over, likewise.
  sizes: bytes of these texts in UTF-8, at least 1 each.
  text: the generated answer.
  score: of it, 1.0 where it is right; None of other kinds.
  """

  item: Item
  logprobs: tuple[float, ...] = ()
  tokens: tuple[int, ...] = ()
  sizes: tuple[int, ...] = ()
  text: str = ""
  score: float | None = None

  @property
  def chosen(self) -> int:
    """The place of the likeliest choice; the first of equals."""
    return max(range(len(self.logprobs)), key=self.logprobs.__getitem__)

  @property
  def chosen_by_byte(self) -> int:
    """The place of the choice that is likeliest a byte."""
    rates = [x / n for x, n in zip(self.logprobs, self.sizes, strict=True)]
    return max(range(len(rates)), key=rates.__getitem__)
