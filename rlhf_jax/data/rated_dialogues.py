"""Dialogues that people rated as a whole, by one objective or several.

  {"messages": [...], "ratings": {"witty": 7, "upbeat": 5}}

They become rated texts with messages: pairs are drawn of whole dialogues
against each other, by one objective or by the mean of all, and equal ratings
are ties. A dialogue is read from its start: a row that is too long loses its
last turns and ends with an answer of the assistant, as a policy's would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import encode, streams
from rlhf_jax.data.examples import Prompt, RatedText
from rlhf_jax.data.messages import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import FieldError

NO_ROOM = "the first turns do not fit in max_length"


def by_objective(found: Sequence[RatedText], objective: str) -> list[RatedText]:
  """Returns the dialogues with their ratings by one objective.

  Those that nobody rated by it are left out.

  Args:
    found: of parsers.parse_rated_dialogue.
    objective: its name; "" for the mean of all ratings of a dialogue.

  Raises:
    FieldError: no dialogue is rated by it.
  """
  kept = []
  for record in found:
    if not objective:
      mean = float(np.mean(list(record.objectives.values())))
      kept.append(dataclasses.replace(record, ratings=(mean,)))
    elif objective in record.objectives:
      rating = record.objectives[objective]
      kept.append(dataclasses.replace(record, ratings=(rating,)))
  if not kept:
    names = sorted(set().union(*(record.objectives for record in found)))
    raise FieldError(
      f"data.objective={objective!r}: no dialogue is rated by it. They have "
      f"{', '.join(names)}; '' is their mean."
    )
  return kept


def shortened(record: Any, most: int) -> Any:
  """Returns a record with the first turns of its dialogue.

  System messages are not counted. A prompt ends with what is to be answered.

  Args:
    record: a demonstration, a prompt or a rated text; texts stay as they are.
    most: turns.
  """
  field = "prompt" if isinstance(record, Prompt) else "messages"
  messages = getattr(record, field, None)
  if not isinstance(messages, list):
    return record
  head = [m for m in messages if m["role"] in streams.SYSTEM]
  turns = [m for m in messages if m["role"] not in streams.SYSTEM][:most]
  while field == "prompt" and turns and turns[-1]["role"] == "assistant":
    turns.pop()
  return dataclasses.replace(record, **{field: [*head, *turns]})


def answered(messages: Sequence[Message]) -> list[Message]:
  """Returns a dialogue up to its last answer, [] without one."""
  last = max(
    (n for n, m in enumerate(messages) if m["role"] == "assistant"), default=-1
  )
  return list(messages[: last + 1])


def encode_one(
  record: RatedText,
  tokenizer: Tokenizer,
  max_length: int,
  *,
  end_token: bool,
) -> dict:
  """Encodes the beginning of a dialogue, up to an answer of the assistant.

  Args:
    record: of parsers.parse_rated_dialogue.
    tokenizer: whose chat template.
    max_length: tokens; the last turns give way.
    end_token: with what ends the last turn.

  Returns:
    tokens [n] int32, loss_mask [n] float32 (all but the first), is_cut.

  Raises:
    encode.DroppedExample: not even the first answer fits, or there is none.
  """
  messages, is_cut = record.messages, False
  while messages := answered(messages):
    found = streams.dialogue(messages, tokenizer, record.where)
    ids = found.ids if end_token else found.ids[:-1]
    if len(ids) <= max_length:
      mask = np.ones(len(ids), np.float32)
      mask[0] = 0.0
      tokens = np.asarray(ids, np.int32)
      return {"tokens": tokens, "loss_mask": mask, "is_cut": is_cut}
    # About as many turns as fit, one less at least.
    share = int(len(messages) * max_length / len(ids)) + 1
    messages, is_cut = messages[: min(share, len(messages) - 1)], True
  raise encode.DroppedExample(NO_ROOM, record.where)
