"""One token stream: what a model is trained on is what it is sampled after.

  row = prompt ids + answer ids,   prompt ids: those that sampling starts from

Demonstrations, pairs, judged answers and prompts for sampling all come from
here, so the ids of an answer are the same in each of them. A template that
writes a prompt otherwise once it is answered is refused, with the record.

A text begins as the tokenizer's own post-processor begins one, and what goes on
a text carries no mark of a word's start that is not in it: "2+2=" and "4" are
"2+2=4", not "2+2= 4".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_jax.data import chat
from rlhf_jax.data.chat import Message
from rlhf_jax.data.tokenizers import Tokenizer

SYSTEM = ("system", "developer")  # roles that stay when turns are cut


@dataclass(frozen=True)
class Dialogue:
  """An answered dialogue, up to the last token that is learned.

  ids, mask: tokens, and 1 on those that are learned.
  prompt: how many of the ids come before the last answer.
  """

  ids: list[int]
  mask: list[int]
  prompt: int


def first_ids(tokenizer: Tokenizer) -> list[int]:
  """Returns the ids that every plain text begins with."""
  return list(getattr(tokenizer, "first_ids", ()))


def text_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
  """Returns the ids of a plain text that is to be gone on with."""
  return first_ids(tokenizer) + tokenizer.encode(text)


def continued(
  text: str, tokenizer: Tokenizer, before: Sequence[int]
) -> list[int]:
  """Returns the ids of a plain text that goes on after other ids."""
  if len(before) == len(first_ids(tokenizer)):  # nothing stands before it
    return tokenizer.encode(text)
  return chat.encode_inside(text, tokenizer)


def rated(
  prompt: str, text: str, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
  """Returns the ids of what stands before a rated text, and of the text."""
  ids = chat.encode_inside(" " + text, tokenizer)
  return text_prompt(prompt, tokenizer), ids


def prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
  """Returns the ids after which the assistant answers a dialogue."""
  return chat.render(messages, tokenizer, add_generation_prompt=True).ids


def dialogue(
  messages: Sequence[Message], tokenizer: Tokenizer, where: str
) -> Dialogue:
  """Returns the ids of a dialogue up to its last answer.

  Args:
    messages: at least one of them is the assistant's.
    tokenizer: whose chat template.
    where: file:line, for messages.
  """
  del where
  rendered = chat.render(messages, tokenizer)
  mask = rendered.assistant_mask
  size = len(mask) - mask[::-1].index(1)
  ids, mask = rendered.ids[:size], mask[:size]
  before = size - 1 - mask[::-1].index(0) if 0 in mask else -1
  return Dialogue(ids, mask, before + 1)


def answer(
  messages: Sequence[Message],
  text: str,
  tokenizer: Tokenizer,
  where: str,
  end_token: bool,
) -> list[int]:
  """Returns the ids of an answer to a dialogue.

  Args:
    messages: the dialogue so far.
    text: of the answer.
    tokenizer: whose chat template.
    where: file:line, for messages.
    end_token: with what ends the turn.
  """
  del messages, where
  ids = tokenizer.encode(text)
  return ids + [tokenizer.eos_id] * (end_token and bool(ids))


def shortened(messages: Sequence[Message]) -> Iterator[list[Message]]:
  """Yields a dialogue, then without its first turns, ever shorter.

  A shorter one goes on at a turn of the user's; system messages at the start
  stay. The last turn of the user's, and what follows it, is in all of them.
  """
  yield list(messages)
  head = 0
  while head < len(messages) and messages[head]["role"] in SYSTEM:
    head += 1
  for n in range(head + 1, len(messages)):
    if messages[n]["role"] == "user":
      yield [*messages[:head], *messages[n:]]
