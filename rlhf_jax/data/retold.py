"""Answers told again: decoded by one tokenizer, encoded by another.

A reward model may have another tokenizer than the policy that it judges. Then

  prompt   messages are rendered by its own chat template, a plain text is
           encoded by its own tokenizer (streams.py);
  answer   decoded by the policy's tokenizer behind its prompt, without the
           white space that the policy's template writes around an answer, and
           with that of the judge's template; special tokens inside an answer
           are no text, and are left out;
  end      where the policy sampled an end token stands the one that ends a turn
           (a text: that ends a text) of the judge's. An answer that the length
           limit cut, or that a stop string ended, has none.

An answer is not rendered: what a template does to an answer beyond the white
space around it (to cut out thoughts, say) is not done to what is judged.

What does not fit into the judge's context is cut, and that is counted: first
turns of a dialogue, or the left of a text, then the end of the answer, which
has no end token then. Characters that the judge has no token for are left out
and counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.data import formats, stops, streams, tokenizers
from rlhf_jax.data.examples import RatedText
from rlhf_jax.data.messages import Message
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

UNFINISHED = "\ufffd"  # what decoders write for bytes of no whole character
PROBE = (
  {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"},
)


@dataclass(frozen=True)
class Said:
  """An answer as text.

  text: without the white space of the policy's chat template.
  has_end: an end token was sampled.
  """

  text: str
  has_end: bool


@dataclass(frozen=True)
class Told:
  """A prompt and its answer in the judge's tokens.

  ids: of both.
  answer: how many of them, at the end, are the answer's.
  is_cut: not all of it fits.
  is_unspelled: it has no token for a character of the answer.
  """

  ids: list[int]
  is_cut: bool = False
  is_unspelled: bool = False
  answer: int = 0


@dataclass(frozen=True)
class Asked:
  """A prompt in the judge's tokens.

  shortened: how often its first turns are left out -> ids; None beyond the
    last turn.
  chat: it was rendered with the chat template.
  """

  shortened: Callable[[int], list[int] | None]
  chat: bool = False


def around(tokenizer: Tokenizer) -> tuple[str, str]:
  """Returns what a chat template writes before and after an answer.

  Only what is sampled, and trained, with the answer: white space, as " " of
  Llama 2's.

  Raises:
    UserError: the template cannot be trained with (streams.dialogue).
  """
  template = getattr(tokenizer, "chat_template", None)
  return _around(tokenizer, template, getattr(tokenizer, "prompt_end", ""))


@functools.lru_cache(maxsize=8)
def _around(tokenizer: Tokenizer, template: Any, end: str) -> tuple[str, str]:
  del template, end
  found = streams.dialogue(PROBE, tokenizer, f"{tokenizer.name}: a question")
  written = continuation(
    found.ids[: found.prompt], found.ids[found.prompt : -1], tokenizer
  )
  before, _, after = written.partition(PROBE[-1]["content"])
  return before, after


def continuation(
  prompt: Sequence[int], answer: Sequence[int], tokenizer: Tokenizer
) -> str:
  """Returns the text of an answer as it stands behind its prompt.

  A decoder that drops the space before the first word of a text keeps it here.

  Args:
    prompt, answer: ids; those that have no token are left out.
    tokenizer: of both.
  """
  prompt, answer = (
    [int(i) for i in ids if i < tokenizer.vocab_size]
    for ids in (prompt, answer)
  )
  before, whole = (
    tokenizer.decode(ids) for ids in (prompt, [*prompt, *answer])
  )
  if not whole.startswith(before):
    return tokenizer.decode(answer)
  return whole[len(before) :]


def said(
  prompt: Sequence[int],
  answer: Sequence[int],
  tokenizer: Tokenizer,
  ends: Sequence[int],
  *,
  has_ended: bool,
  chat: bool,
) -> Said:
  """Returns a sampled answer as text.

  Args:
    prompt: ids that it was sampled behind.
    answer: sampled ids, the end token included.
    tokenizer: of the policy.
    ends: ids that end an answer.
    has_ended: the answer ended by itself, and was not cut.
    chat: the prompt was rendered with the chat template.
  """
  answer = [int(i) for i in answer]
  has_end = bool(has_ended and answer and answer[-1] in ends)
  text = continuation(prompt, answer[:-1] if has_end else answer, tokenizer)
  if not has_ended:
    text = text.rstrip(UNFINISHED)  # the limit cut through a character
  if chat:
    before, after = around(tokenizer)
    text = text.removeprefix(before)
    text = text.removesuffix(after) if has_end else text
  return Said(text, has_end)


def asked(item: str | Sequence[Message], tokenizer: Tokenizer) -> Asked:
  """Returns a prompt, a text or messages, in a judge's tokens."""
  if isinstance(item, str):
    ids = streams.text_prompt(item, tokenizer)
    return Asked(lambda number: None if number else ids)

  def shortened(number: int) -> list[int] | None:
    for n, messages in enumerate(streams.shortened(item)):
      if n == number:
        return streams.prompt(messages, tokenizer)
    return None

  return Asked(shortened, chat=True)


def of_record(
  record: Any, tokenizer: Tokenizer, *, chat: bool, text: str
) -> Asked:
  """Returns the prompt of a record in a judge's tokens.

  Args:
    record: of dataset.records.
    tokenizer: of the judge.
    chat: prompts are rendered with chat templates.
    text: what the policy reads of a rated text, of which it is a part.
  """
  if isinstance(record, RatedText):
    return asked(text, tokenizer)
  if chat:
    return asked(formats.prompt_messages(record), tokenizer)
  return asked(formats.prompt_text(record), tokenizer)


def _spelled(text: str, encoder: Callable[[str], list[int]]) -> list[int]:
  """Returns the ids of a text without the characters that have no token."""

  def is_known(character: str) -> bool:
    try:
      encoder(character)
    except EncodingError:
      return False
    return True

  known = {c for c in set(text) if is_known(c)}
  return encoder("".join(c for c in text if c in known))


def _encoder(
  prompt: Sequence[int], tokenizer: Tokenizer, chat: bool
) -> Callable[[str], list[int]]:
  """Returns what encodes an answer behind a prompt, as in training."""
  if not chat:
    return lambda text: streams.continued(text, tokenizer, prompt)
  specials = getattr(tokenizer, "special_tokens", {}).values()
  is_marked = getattr(tokenizer, "is_marked_after_special", False)
  if is_marked and prompt and prompt[-1] in specials:
    return tokenizer.encode
  return lambda text: tokenizers.encode_inside(text, tokenizer)


def told(
  prompt: Asked,
  answer: Said,
  tokenizer: Tokenizer,
  most: int,
  *,
  end_token: bool,
) -> Told:
  """Returns a prompt and its answer in a judge's tokens, one at least.

  Args:
    prompt: in the judge's tokens.
    answer: of the policy.
    tokenizer: of the judge.
    most: tokens that the judge reads, 2 at least.
    end_token: the judge was trained on answers with an end token.
  """
  before = prompt.shortened(0)
  ids, is_unspelled = _answer_ids(before, answer, tokenizer, prompt.chat)
  if answer.has_end and end_token:
    turn = stops.end_of_turn(tokenizer) if prompt.chat else None
    ids = [*ids, tokenizer.eos_id if turn is None else turn]
  if not before and not ids:
    ids = [tokenizer.eos_id]  # of a prompt of spaces, and no answer
  number, shorter = 0, before
  while shorter is not None and len(shorter) + len(ids) > most:
    number, before = number + 1, shorter
    shorter = prompt.shortened(number)
  if shorter is not None:
    return Told([*shorter, *ids], number > 0, is_unspelled, len(ids))
  found = _cut(before, ids, tokenizer, most)
  return Told(found, True, is_unspelled, min(len(ids), most - 1))


def _answer_ids(
  prompt: Sequence[int], answer: Said, tokenizer: Tokenizer, chat: bool
) -> tuple[list[int], bool]:
  """Returns the ids of an answer without its end, and whether some lack."""
  text = answer.text
  if chat:
    before, after = around(tokenizer)
    text = before + text + (after if answer.has_end else "")
  encoder = _encoder(prompt, tokenizer, chat)
  try:
    return (encoder(text) if text else []), False
  except EncodingError:
    return _spelled(text, encoder), True


def _cut(
  prompt: list[int], answer: list[int], tokenizer: Tokenizer, most: int
) -> list[int]:
  """Returns `most` ids: the end of a prompt and the begin of its answer."""
  answer = answer[: most - 1]  # something stands before it
  first = len(streams.first_ids(tokenizer))  # what begins a text stays
  head = prompt[:first] if first + len(answer) < most else []
  rest = prompt[len(head) :]
  room = most - len(head) - len(answer)
  return [*head, *rest[max(len(rest) - room, 0) :], *answer]


def check(found: Sequence[Any], tokenizer: Tokenizer, name: str) -> None:
  """Checks that a judge's chat template can render prompts and answers.

  Args:
    found: records of prompts, which are rendered but for rated texts.
    tokenizer: of the judge.
    name: of the reward model, for the message.

  Raises:
    UserError: there is no template, or none that can be trained with.
  """
  try:
    rendered = [r for r in found if not isinstance(r, RatedText)]
    streams.check_prompts(rendered, tokenizer)
    around(tokenizer)
  except UserError as error:
    raise UserError(
      f"{name}: prompts are rendered with its own chat template, as those of "
      f"the policy are with the policy's, and {error}"
    ) from error
