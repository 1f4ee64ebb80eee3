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

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.data import chat, formats, sources, stops, tokenizers
from rlhf_jax.data.messages import TOOLS, Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

PROBE = {"role": "assistant", "content": "a"}
SYSTEM = ("system", "developer")  # roles that stay when turns are cut


@dataclass(frozen=True)
class Dialogue:
  """An answered dialogue, up to the last token that is learned.

  ids, mask: tokens, and 1 on those that are learned.
  prompt: how many of the ids come before the last answer.
  skipped: see chat.Rendered.
  """

  ids: list[int]
  mask: list[int]
  prompt: int
  skipped: int = 0


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
  return tokenizers.encode_inside(text, tokenizer)


def rated(
  prompt: str, text: str, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
  """Returns the ids of what stands before a rated text, and of the text."""
  ids = tokenizers.encode_inside(" " + text, tokenizer)
  return text_prompt(prompt, tokenizer), ids


def _rendered(messages: Sequence[Message], tokenizer: Tokenizer) -> Dialogue:
  """Returns an answered dialogue, unchecked."""
  rendered = chat.render(messages, tokenizer)
  mask = rendered.assistant_mask
  size = len(mask) - mask[::-1].index(1)
  size = _end(rendered.ids, size, tokenizer)
  ids, mask = rendered.ids[:size], mask[:size]
  before = size - mask[::-1].index(0) if 0 in mask else 0
  return Dialogue(ids, mask, before, rendered.skipped)


def _end(ids: Sequence[int], size: int, tokenizer: Tokenizer) -> int:
  """Returns where an answer ends that its template marks up to `size`.

  A line break behind the end token, which some templates mark too, is never
  sampled.
  """
  ends = stops.end_ids(tokenizer)
  last = next((n for n in range(size, 0, -1) if ids[n - 1] in ends), size)
  behind = tokenizer.decode(ids[last:size], skip_special=False)
  return size if behind.strip() else last


def prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
  """Returns the ids after which the assistant answers a dialogue."""
  end = getattr(tokenizer, "prompt_end", "template")
  template = getattr(tokenizer, "chat_template", None)
  return list(_prompt(json.dumps(messages), tokenizer, template, end))


@functools.lru_cache(maxsize=64)  # all answers to a prompt are checked by it
def _prompt(
  spelt: str, tokenizer: Tokenizer, template: str | None, end: str
) -> tuple[int, ...]:
  """Returns the ids of `prompt`; spelt: messages as JSON.

  A template and an end of prompts that are changed make another prompt.
  """
  del template
  messages = json.loads(spelt)
  if end == "answer":
    found = _rendered([*messages, PROBE], tokenizer)
    return tuple(found.ids[: found.prompt])
  rendered = chat.render(messages, tokenizer, add_generation_prompt=True)
  return tuple(rendered.ids)


def dialogue(
  messages: Sequence[Message], tokenizer: Tokenizer, where: str
) -> Dialogue:
  """Returns the ids of a dialogue up to its last answer, checked.

  Args:
    messages: the last of them is the assistant's.
    tokenizer: whose chat template.
    where: file:line, for messages.

  Raises:
    UserError: what the answer is sampled behind is not what it is trained
      behind, or it ends with no token that ends sampling.
  """
  found = _rendered(messages, tokenizer)
  if len(messages) > 1:
    before = prompt(messages[:-1], tokenizer)
    if before != found.ids[: found.prompt]:
      raise UserError(_two_streams(before, found, tokenizer, where))
  last = found.ids[-1]
  if last != tokenizer.eos_id and last not in stops.end_ids(tokenizer):
    raise UserError(
      f"{where}: the chat template of {tokenizer.name} ends an answer with "
      f"{tokenizer.decode([last], skip_special=False)!r}, which ends no "
      "sampling, so answers would never stop. Close the turn with an end token "
      "inside {% generation %}, or give model.chat_template."
    )
  return found


def _two_streams(
  before: list[int], found: Dialogue, tokenizer: Tokenizer, where: str
) -> str:
  """Returns what is wrong with a template, in words."""

  def tail(ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special=False)[-40:]

  remedy = (
    "Set model.prompt_end='answer' (prompts end where the template writes the "
    "answer), or "
  )
  if getattr(tokenizer, "prompt_end", "") == "answer":
    remedy = (
      "With model.prompt_end='answer' it must write the same before all "
      "answers: give all of them thoughts, or none, set prompt_end='template', "
      "or "
    )
  return (
    f"{where}: the chat template of {tokenizer.name} ends a prompt with "
    f"{tail(before)!r}, and what is trained before the answer with "
    f"{tail(found.ids[: found.prompt])!r}: an answer would be sampled behind "
    f"another text than it is trained behind. {remedy}give a template of your "
    "own as model.chat_template."
  )


def answer(
  messages: Sequence[Message],
  text: str,
  tokenizer: Tokenizer,
  where: str,
  end_token: bool,
) -> list[int]:
  """Returns the ids of an answer to a dialogue, none of an empty one.

  Args:
    messages: the dialogue so far.
    text: of the answer.
    tokenizer: whose chat template.
    where: file:line, for messages.
    end_token: with what ends the turn.

  Raises:
    UserError: see `dialogue`.
  """
  said = {"role": "assistant", "content": text}
  found = dialogue([*messages, said], tokenizer, where)
  *ids, last = found.ids[found.prompt :]
  return [*ids, last] if ids and end_token else ids


def check_prompts(found: Sequence[Any], tokenizer: Tokenizer) -> None:
  """Checks that answers to prompts would be trained as they are sampled.

  A template looks at who speaks: one record of each order of roles is checked.

  Args:
    found: records of prompts.
    tokenizer: whose chat template.

  Raises:
    UserError: see `dialogue`.
  """
  orders: set[tuple[str, ...]] = set()
  for record in found:
    messages = formats.prompt_messages(record)
    order = tuple(message["role"] for message in messages)
    if order not in orders and order[-1] != "assistant":
      with sources.at(record.where):
        dialogue([*messages, PROBE], tokenizer, record.where)
    orders.add(order)


def shortened(messages: Sequence[Message]) -> Iterator[list[Message]]:
  """Yields a dialogue, then without its first turns, ever shorter.

  A shorter one goes on at a turn of the user's; system messages at the start
  stay, and the tools. The last turn of the user's, and what follows it, is in
  all of them.
  """
  yield list(messages)
  head = 0
  while head < len(messages) and messages[head]["role"] in SYSTEM:
    head += 1
  tools = {name: messages[0][name] for name in {TOOLS} & set(messages[0])}
  for n in range(head + 1, len(messages)):
    if messages[n]["role"] == "user":
      first, *rest = [*messages[:head], *messages[n:]]
      yield [{**first, **tools}, *rest]
