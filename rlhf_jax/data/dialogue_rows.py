"""Whole dialogues that are compared -> rows of tokens.

They differ in more than a last answer, so each is rendered by itself; what all
of them begin with has no loss mask, and gives way where one is too long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data import encode, formats, streams, transcripts
from rlhf_jax.data.examples import Ranking
from rlhf_jax.data.messages import Message
from rlhf_jax.data.tokenizers import Tokenizer


def encode_dialogues(
  example: Ranking,
  dialogues: Sequence[list[Message]],
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> dict:
  """Encodes dialogues of which people preferred one.

  Args:
    example: its prompt is what all of them begin with, perhaps nothing.
    dialogues: how each goes on, up to a message of the assistant's.
    tokenizer: encodes them.
    max_length: tokens of the longest; the first turns of the prompt give way,
      for all alike.
    chat: use the chat template; else they are HH transcripts.
    end_token: each ends with the end token.

  Returns:
    answers (tokens, loss_mask each: 1 behind what all begin with), prompt, key,
    is_cut.

  Raises:
    DroppedExample: a dialogue does not fit, or two of them are equal.
  """
  prompt = formats.prompt_messages(example)
  for shorter in streams.shortened(prompt) if prompt else [[]]:
    ids = [
      _ids([*shorter, *turns], tokenizer, chat, end_token, example.where)
      for turns in dialogues
    ]
    if max(map(len, ids)) <= max_length:
      is_cut = len(shorter) < len(prompt)
      return _rows(example, ids, tokenizer) | {"is_cut": is_cut}
  raise encode.DroppedExample(encode.NO_ROOM_FOR_TURN, example.where)


def _ids(
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  chat: bool,
  end_token: bool,
  where: str,
) -> list[int]:
  """Returns the tokens of a dialogue up to its last message."""
  if chat:
    before = streams.prompt(messages[:-1], tokenizer)
    text = str(messages[-1]["content"])
    return before + streams.answer(
      messages[:-1], text, tokenizer, where, end_token
    )
  before = streams.text_prompt(transcripts.write(messages[:-1]), tokenizer)
  answer = streams.continued(f" {messages[-1]['content']}", tokenizer, before)
  return before + answer + [tokenizer.eos_id] * end_token


def _rows(
  example: Ranking, dialogues: Sequence[list[int]], tokenizer: Tokenizer
) -> dict:
  """Returns rows whose mask begins where the dialogues part."""
  shared = 0
  for column in zip(*dialogues, strict=False):
    if len(set(column)) > 1:
      break
    shared += 1
  rows = []
  for ids in dialogues:
    if len(ids) <= shared:
      raise encode.DroppedExample(
        "a dialogue that is the beginning of another", example.where
      )
    encode.validate_token_ids(ids, tokenizer.vocab_size, example.where)
    mask = np.float32(np.arange(len(ids)) >= max(shared, 1))
    rows.append({"tokens": np.asarray(ids, np.int32), "loss_mask": mask})
  return {
    "prompt": tuple(dialogues[0][:shared]),
    "key": formats.prompt_key(example),
    "answers": rows,
  }
