"""Records -> what a judge of texts compares: prompts with K answers.

  comparison, hh       two answers, and what people said of them
  ranking              K answers, and perhaps what people said of them
  demonstration,       answers of policies, a line each; lines of one prompt are
  messages             an item (answers.jsonl of configs/generate.py)

The order in which two answers are compared is drawn by seed, so that it says
nothing of which one people prefer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import formats, transcripts
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Comparison, Demonstration, Ranking
from rlhf_jax.data.messages import Message
from rlhf_jax.schema import UserError

# Fields of records that are judgements, or are written anew.
_WRITTEN = frozenset(
  "prompt answers chosen rejected response messages label ranks choice scores "
  "objectives strength margin acceptable annotator shown seconds time gold "
  "policies policy reason item adjudicated chosen_by".split()
)


@dataclasses.dataclass(frozen=True)
class Item:
  """Answers to one prompt.

  prompt: text or messages, as it was read.
  answers: K texts.
  gold: of people, more is better; None where they said nothing, of an answer
    or of all.
  soft: of two answers: probability that the first is better, or None.
  policies: where each comes from; "" for unknown.
  fields: of the record that are kept.
  """

  where: str
  prompt: str | list[Message]
  answers: tuple[str, ...]
  gold: tuple[float | None, ...]
  soft: float | None = None
  policies: tuple[str, ...] = ()
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def text(self) -> str:
    """The prompt as a judge reads it."""
    if isinstance(self.prompt, str):
      return self.prompt.strip()
    return transcripts.write(self.prompt).removesuffix("\n\nAssistant:").strip()

  def taken(self, places: Sequence[int]) -> Item:
    """Returns the item of some answers, in this order."""
    soft = self.soft
    if soft is not None and list(places) == [1, 0]:
      soft = 1.0 - soft
    return dataclasses.replace(
      self,
      answers=tuple(self.answers[i] for i in places),
      gold=tuple(self.gold[i] for i in places),
      soft=soft,
      policies=tuple(self.policies[i] for i in places if self.policies),
    )

  @property
  def label(self) -> float | None:
    """People's probability that the first of two answers is better."""
    if self.soft is not None:
      return self.soft
    first, second = self.gold
    if first is None or second is None:
      return None
    return 0.5 * (1.0 + float(np.sign(first - second)))

  @property
  def name(self) -> str:
    """A digest of prompt and answers, in whatever order."""
    parts = [self.text, *sorted(self.answers)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

  def row(self) -> dict[str, Any]:
    """Returns the fields of a record that are of the item."""
    found = {"prompt": self.prompt, "answers": list(self.answers)}
    if any(self.policies):
      found["policies"] = list(self.policies)
    return found | self.fields | {"item": self.name}


def items_of(found: Sequence[Any], data: Data) -> list[Item]:
  """Returns the items of records, each with two answers or more.

  Raises:
    UserError: records without answers, or a prompt with a single one.
  """
  items: dict[str, Item] = {}
  for number, record in enumerate(found):
    if isinstance(record, Comparison):
      items[str(number)] = _of_pair(record)
    elif isinstance(record, Ranking):
      items[str(number)] = _of_ranking(record)
    elif isinstance(record, Demonstration):
      _add(items, record)
    else:
      raise UserError(
        f"{record.where}: data.format={data.format!r} has no answers to "
        "compare. Use 'comparison', 'hh', 'ranking', 'demonstration' or "
        "'messages'."
      )
  for item in items.values():
    if len(item.answers) < 2:
      raise UserError(
        f"{item.where}: the only answer to its prompt, so there is nothing to "
        "compare. Sample more (generate.num_samples), leave it out, or score "
        "single answers: configs/score.py with verifier.name='ai_judge'."
      )
  return list(items.values())


def _kept(record: Any) -> dict[str, Any]:
  return {n: x for n, x in record.fields.items() if n not in _WRITTEN}


def _of_pair(record: Comparison) -> Item:
  told = record.fields.get("policies") or ()
  return Item(
    record.where,
    record.prompt,
    (record.chosen, record.rejected),
    (None, None),
    soft=record.label,
    policies=tuple(map(str, told)) if len(told) == 2 else (),
    fields=_kept(record),
  )


def _of_ranking(record: Ranking) -> Item:
  """Returns the item of a ranking, with people's ranks if there are any."""
  ranks = (
    record.ranks if record.ranks is not None else [None] * len(record.answers)
  )
  return Item(
    record.where,
    record.prompt,
    tuple(record.answers),
    tuple(None if rank is None else -float(rank) for rank in ranks),
    soft=record.label,
    policies=tuple(map(str, record.fields.get("policies") or ())),
    fields=_kept(record),
  )


def _add(items: dict[str, Item], record: Demonstration) -> None:
  """Adds an answer to the item of its prompt."""
  prompt: str | list[Message] = record.prompt
  text = record.response
  if record.messages is not None:
    *prompt, last = record.messages
    if last["role"] != "assistant":
      raise UserError(
        f"{record.where}: ends with a turn of {last['role']!r}, so there is no "
        "answer to judge. Remove it, or add the answer."
      )
    text = last["content"]
  policy = str(record.fields.get("policy", ""))
  key = formats.prompt_key(record)
  if record.messages is None:
    key = f"text {key}"
  item = items.get(key)
  if item is None:
    fields = {
      name: x
      for name, x in _kept(record).items()
      if name not in ("sample", "length", "has_ended")
    }
    item = Item(record.where, prompt, (), (), fields=fields)
  items[key] = dataclasses.replace(
    item,
    answers=(*item.answers, text),
    gold=(*item.gold, None),
    policies=(*item.policies, policy),
  )


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
  """Returns items whose answers stand in a drawn order."""
  found = []
  for number, item in enumerate(items):
    random = np.random.default_rng([seed, number])
    found.append(item.taken(random.permutation(len(item.answers)).tolist()))
  return found


def pairs_of(
  items: Sequence[Item], most: int, seed: int
) -> tuple[list[Item], int]:
  """Returns items of two answers, in a drawn order, and how many were equal.

  Args:
    items: of K answers.
    most: pairs of an item at most, drawn; 0 for all K (K - 1) / 2.
    seed: of the draw.
  """
  result, equal = [], 0
  for number, item in enumerate(items):
    random = np.random.default_rng([seed, number])
    count = len(item.answers)
    all_pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if most and most < len(all_pairs):
      drawn = sorted(random.choice(len(all_pairs), most, replace=False))
      all_pairs = [all_pairs[n] for n in drawn]
    for pair in all_pairs:
      places = pair if random.random() < 0.5 else pair[::-1]
      found = item.taken(places)
      if found.answers[0].strip() == found.answers[1].strip():
        equal += 1
      else:
        result.append(found)
  return result, equal
