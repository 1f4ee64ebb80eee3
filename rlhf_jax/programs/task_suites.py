"""Tasks, encoded for one model: what a policy reads and what it answers.

All that can be wrong with a task is found here, before anything compiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import sources, streams
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.tasks import loading
from rlhf_jax.evaluation.tasks.items import (
  CHOICE,
  GENERATE,
  PERPLEXITY,
  Item,
  Task,
)
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import likelihoods
from rlhf_jax.programs.likelihoods import Pair
from rlhf_jax.rewards import rows, verifiers
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.schema import UserError, check_least


@dataclasses.dataclass(frozen=True)
class Config:
  """Which tasks are measured, and how they are told."""

  tasks: str = ""  # LAYOUT:PATH with commas between; made:NAME, lm_eval:NAME
  # (evaluation/tasks/loading.py); "" for none
  shots: int = 0  # worked examples before each item, taken off its task; of
  # lm-eval's tasks 0 leaves as many as each has by itself
  limit: int = 0  # items of each task, the first of them; 0 for all
  chat: bool = False  # prompts that are text become a user's turn
  batch_size: int = 8  # rows that are read, or prompts answered, together
  window: int = 512  # tokens of a text that are predicted at a time

  def __post_init__(self) -> None:
    check_least(self, shots=0, limit=0, batch_size=1, window=1)
    _ = self.named

  @property
  def named(self) -> list[loading.Named]:
    """The tasks that it names."""
    return loading.named(self.tasks)

  @property
  def own(self) -> list[loading.Named]:
    """Those of them that are not lm-eval's."""
    return [task for task in self.named if task.kind != loading.HARNESS]

  @property
  def harness(self) -> list[loading.Named]:
    """Those of them that lm-eval runs."""
    return [task for task in self.named if task.kind == loading.HARNESS]


@dataclasses.dataclass(frozen=True)
class Suite:
  """Tasks, encoded.

  tasks: by name.
  pairs: of all choices and texts, those of an item as neighbours.
  owners: (task, item, choice or window) of each pair.
  prompts: name of a task -> ids of the prompts that are answered.
  numbers: name of a task -> the places of these items in it.
  scorers: name of a task -> what scores its answers.
  """

  tasks: dict[str, Task]
  pairs: list[Pair]
  owners: list[tuple[str, int, int]]
  prompts: dict[str, list[list[int]]]
  numbers: dict[str, list[int]]
  scorers: dict[str, Bound]

  @staticmethod
  def of(tasks: Sequence[Task], base: Base, config: Config) -> Suite:
    """Returns tasks as a model reads them.

    Args:
      tasks: with different names.
      base: whose tokenizer.
      config: how they are told.

    Raises:
      UserError: an item that does not fit, or that no answer could be scored
        by.
    """
    suite = Suite({task.name: task for task in tasks}, [], [], {}, {}, {})
    window = min(config.window, base.config.max_length - 1)
    for task in tasks:
      for n, item in enumerate(task.items):
        with sources.at(item.where):
          found = _pairs(item, base.tokenizer, config.chat, window)
        suite.pairs.extend(found)
        suite.owners.extend((task.name, n, k) for k in range(len(found)))
      suite.add_prompts(task, base, config.chat)
    for pair in suite.pairs:
      _check_room(len(pair.before) + len(pair.after), base, pair.where)
    return suite

  def add_prompts(self, task: Task, base: Base, chat: bool) -> None:
    """Adds what a policy answers of a task, and who scores it."""
    places = [i for i, x in enumerate(task.items) if x.kind == GENERATE]
    if not places:
      return
    bound = verifiers.bind_parts(task.scorer, **task.settings)
    _check_references(bound, [task.items[i] for i in places], base.tokenizer)
    ids = []
    for i in places:
      item = task.items[i]
      with sources.at(item.where):
        ids.append(prompt_ids(item, base.tokenizer, chat))
      _check_room(len(ids[-1]) + task.new_tokens, base, item.where)
    self.prompts[task.name] = ids
    self.numbers[task.name] = places
    self.scorers[task.name] = bound


def _check_references(
  bound: Bound, items: Sequence[Item], tokenizer: Tokenizer
) -> None:
  """Tries what scores answers on an empty one to each item.

  Raises:
    UserError: no answer could be judged by what an item holds; with its place.
  """
  if bound.prepare is not None:
    try:
      bound.prepare([item.answer for item in items])
    except rows.BadReference as error:
      rule = str(error).replace(f"references[{error.row}]", "answer", 1)
      raise UserError(f"{items[error.row].where}: {rule}") from error
    return
  for item in items:
    empty = rows.Answers(
      texts=[""],
      references=[item.answer],
      prompts=[str(item.prompt)],
      records=[dict(item.fields)],
      token_ids=[[tokenizer.eos_id]],
      has_ended=[True],
    )
    try:
      bound(empty)
    except ValueError as error:
      rule = str(error).replace("references[0]", "answer", 1)
      raise UserError(f"{item.where}: {rule}") from error


def read(config: Config, limit: int = 0, *, section: str) -> list[Task]:
  """Returns the tasks of a section with their items; reads no model.

  Args:
    config: the section; tasks of lm-eval are no part of it.
    limit: items of each task at most, besides config.limit; 0 for no bound.
    section: its name, for messages.

  Raises:
    UserError: see loading.load.
  """
  most = min(filter(None, (config.limit, limit)), default=0)
  return [
    loading.load(task, shots=config.shots, limit=most, section=section)
    for task in config.own
  ]


def load(config: Config, base: Base, limit: int = 0, *, section: str) -> Suite:
  """Returns the suite of a section for the tokenizer of `base`; see `read`."""
  return Suite.of(read(config, limit, section=section), base, config)


def begin_id(tokenizer: Tokenizer) -> int:
  """Returns the id behind which a text that stands alone is predicted.

  The begin token, failing that the end token, as lm-eval has it.
  """
  begin = tokenizer.bos_id
  return tokenizer.eos_id if begin is None else begin


def prompt_ids(item: Item, tokenizer: Tokenizer, chat: bool) -> list[int]:
  """Returns the ids of a prompt, at least one.

  Args:
    item: its prompt is text or messages.
    tokenizer: whose chat template marks messages.
    chat: a text becomes a user's turn.
  """
  messages = _messages(item, chat)
  if messages is not None:
    return streams.prompt(messages, tokenizer)
  ids = streams.text_prompt(item.prompt, tokenizer)
  return ids if ids else [begin_id(tokenizer)]


def _messages(item: Item, chat: bool) -> list[Any] | None:
  """Returns the dialogue of a prompt, None for plain text."""
  if not isinstance(item.prompt, str):
    return [dict(message) for message in item.prompt]
  if chat and item.prompt:
    return [{"role": "user", "content": item.prompt}]
  return None


def _pairs(
  item: Item, tokenizer: Tokenizer, chat: bool, window: int
) -> list[Pair]:
  """Returns what of an item is read: its choices, or windows of its text."""
  if item.kind == GENERATE:
    return []
  before = prompt_ids(item, tokenizer, chat)
  if item.kind == PERPLEXITY:
    return _of_text(item, before, tokenizer, window)
  messages = _messages(item, chat)
  found = []
  for choice in item.choices:
    if messages is None:
      after = streams.continued(choice, tokenizer, before)
    else:
      said = choice.strip()
      after = streams.answer(messages, said, tokenizer, item.where, False)
    found.append(Pair(before, after, item.where))
  return found


def _of_text(
  item: Item, before: list[int], tokenizer: Tokenizer, window: int
) -> list[Pair]:
  if not item.prompt:
    ids = tokenizer.encode(item.answer)
    found = likelihoods.windows(ids, begin_id(tokenizer), window)
    return [pair._replace(where=item.where) for pair in found]
  after = streams.continued(item.answer, tokenizer, before)
  return [Pair(before, after, item.where)]


def _check_room(length: int, base: Base, where: str) -> None:
  if length > base.config.max_length:
    raise UserError(
      f"{where}: {length} tokens with the answer, and the model's context has "
      f"{base.config.max_length}. Shorten the item, or take fewer shots."
    )


def texts_of(item: Item) -> tuple[str, ...]:
  """Returns the texts whose likelihoods are read."""
  return item.choices if item.kind == CHOICE else (item.answer,)


def describe(suite: Suite) -> str:
  """Returns the tasks of a suite with how many items they have, in a line."""
  parts = [f"{name} {len(x.items)}" for name, x in suite.tasks.items()]
  return ", ".join(parts) if parts else "those of lm-eval"
