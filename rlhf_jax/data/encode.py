"""Examples -> token ids, with masks that never look at an id.

An encoded example is a dict of numpy arrays:
  demonstration: tokens [n] int32, loss_mask [n] float32
  comparison:    chosen and rejected (each tokens, loss_mask), label, prompt,
                 the tuple of ids that both start with, and key, what records
                 of the same whole prompt share
  ranking:       answers (tokens, loss_mask each), prompt and key; what was said
                 of them is added by rankings.py
  labelled:      answer (tokens, loss_mask), label, prompt and key

loss_mask is aligned with targets (types.py): 1 at t says that token t is
predicted from the tokens before it; the first token of a row has none before
it and is never a target.

A prompt that is too long gives way, for both candidates alike, and is counted:
a text loses its left, a dialogue its first turns, up to one of the user's. An
example that does not fit even so is left out and counted (METHODS 1).

What tokens a prompt and an answer are is in streams.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import formats, sources, streams, transcripts
from rlhf_jax.data.formats import (
  Comparison,
  Demonstration,
  Dropped,
  Labelled,
  Ranking,
)
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

Row = dict[str, np.ndarray]
CUT = "prompts cut to fit max_length"  # these are not left out
SKIPPED = (
  "with an earlier answer that is context only, as the chat template shows it "
  "behind another text than it would be sampled behind"
)
NO_TOKEN = "a character has no token"
NO_ROOM = "response does not fit in max_length"
NO_ROOM_FOR_WHOLE = (
  "does not fit in max_length whole, and its first turn says what its last "
  "answer is to be"
)
NO_ROOM_FOR_TURN = "last turn and its answer do not fit in max_length"


class DroppedExample(ValueError):
  """An example that does not fit; `reason` is countable."""

  def __init__(self, reason: str, where: str):
    super().__init__(f"{where}: {reason}")
    self.reason = reason


def validate_token_ids(ids: Iterable[int], vocab_size: int, where: str) -> None:
  """Raises ValueError unless 0 <= id < vocab_size for every id.

  A gather inside jit clamps an id that is too large without a word.

  Args:
    ids: token ids.
    vocab_size: rows of the model's embedding.
    where: file:line, for the message.
  """
  ids = np.asarray(ids)
  bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
  if bad.size:
    raise UserError(
      f"{where}: token {bad[0]} has id {ids[bad[0]]}, outside [0, "
      f"{vocab_size}). Use the tokenizer that belongs to the model."
    )


def _row(
  tokens: Sequence[int], mask: Sequence[int], vocab_size: int, where: str
) -> Row:
  validate_token_ids(tokens, vocab_size, where)
  loss_mask = np.asarray(mask, np.float32)
  loss_mask[0] = 0.0
  return {"tokens": np.asarray(tokens, np.int32), "loss_mask": loss_mask}


def _check_length(max_length: int) -> None:
  if max_length < 2:
    raise UserError(
      f"max_length={max_length}: a row holds at least one token before the "
      "response. Set max_length >= 2."
    )


def encode_prompt(
  example: formats.Prompt | Comparison | Ranking | Demonstration | Labelled,
  tokenizer: Tokenizer,
  *,
  chat: bool = False,
) -> list[int]:
  """Returns the ids that come before a response.

  Args:
    example: its prompt is text or a dialogue.
    tokenizer: encodes it.
    chat: render with the chat template, up to the assistant's header; else
      plain text (a dialogue as an HH transcript).
  """
  if not chat:
    return streams.text_prompt(formats.prompt_text(example), tokenizer)
  return streams.prompt(formats.prompt_messages(example), tokenizer)


def encode_demonstration(
  example: Demonstration,
  tokenizer: Tokenizer,
  max_length: int,
  train_on_prompt: bool = False,
  *,
  chat: bool = False,
  last_only: bool = False,
) -> Row:
  """Encodes a demonstration with loss on what the assistant says.

  Args:
    example: messages need chat=True; a prompt and response become one user
      and one assistant turn with chat=True, else prompt + response + EOS.
    tokenizer: encodes it.
    max_length: tokens; a text prompt gives way from its left, a dialogue loses
      its first turns.
    train_on_prompt: loss on every token but the first.
    chat: use the chat template.
    last_only: loss on the last answer alone (Ghost Attention, Touvron et al.
      2023, arXiv:2307.09288, section 3.3); such a dialogue loses no turns.

  Returns:
    tokens [n] int32 and loss_mask [n] float32, n <= max_length; is_cut.

  Raises:
    DroppedExample: the (last) response does not fit, or is empty; with
      last_only, the dialogue does not fit.
    UserError: messages without chat=True, or a template that shows a dialogue
      otherwise when it is sampled (streams.py).
  """
  _check_length(max_length)
  skipped = 0
  if chat:
    found, is_cut = _chat_demonstration(example, tokenizer, max_length)
    ids, mask, skipped = found.ids, found.mask, found.skipped
    if last_only:
      if is_cut:
        raise DroppedExample(NO_ROOM_FOR_WHOLE, example.where)
      mask = [0] * found.prompt + list(mask[found.prompt :])
      skipped = 0  # earlier answers are context by intent
  elif example.messages is not None:
    raise UserError(
      f"{example.where}: a dialogue has turns that only a chat template can "
      "mark. Set chat=True."
    )
  else:
    prompt, (response,), is_cut = _fitted(
      example, [example.response], tokenizer, max_length, False, True
    )
    ids, mask = prompt + response, _mask(prompt, response)
  if train_on_prompt:
    mask = [1] * len(mask)
  row = _row(ids, mask, tokenizer.vocab_size, example.where)
  return row | {"is_cut": is_cut, "skipped": skipped}


def _chat_demonstration(
  example: Demonstration, tokenizer: Tokenizer, max_length: int
) -> tuple[streams.Dialogue, bool]:
  """Returns a dialogue up to its last answer, and whether it was cut."""
  messages = example.messages
  if messages is None:
    messages = [
      {"role": "user", "content": example.prompt},
      {"role": "assistant", "content": example.response},
    ]
  roles = [message["role"] for message in messages]
  if "assistant" not in roles:
    raise DroppedExample("no assistant turn", example.where)
  messages = messages[: len(roles) - roles[::-1].index("assistant")]
  for shorter in streams.shortened(messages):
    found = streams.dialogue(shorter, tokenizer, example.where)
    if len(found.ids) <= max_length:
      return found, len(shorter) < len(messages)
  raise DroppedExample(NO_ROOM_FOR_TURN, example.where)


def _fitted(
  example: Comparison | Ranking | Labelled | Demonstration,
  answers: Sequence[str],
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool,
  end_token: bool,
) -> tuple[list[int], list[list[int]], bool]:
  """Returns one prompt, the ids of each answer to it, and what was cut.

  All answers lose the same of their prompt: the first turns of a dialogue, the
  left of a text.
  """
  if isinstance(example.prompt, str) and not chat:
    prompt = encode_prompt(example, tokenizer)
    responses = _responses(example, answers, tokenizer, prompt, end_token)
    cut = max(len(prompt) + max(map(len, responses)) - max_length, 0)
    first = len(streams.first_ids(tokenizer))  # what begins a text stays
    if cut and cut >= len(prompt) - first:
      raise DroppedExample(NO_ROOM, example.where)
    return prompt[:first] + prompt[first + cut :], responses, cut > 0
  messages = formats.prompt_messages(example)
  for shorter in streams.shortened(messages):
    if chat:
      prompt = streams.prompt(shorter, tokenizer)
      responses = [
        streams.answer(shorter, text, tokenizer, example.where, end_token)
        for text in answers
      ]
      if not all(responses):
        raise DroppedExample("empty response", example.where)
    else:
      prompt = streams.text_prompt(transcripts.write(shorter), tokenizer)
      responses = _responses(example, answers, tokenizer, prompt, end_token)
    if len(prompt) + max(map(len, responses)) <= max_length:
      return prompt, responses, len(shorter) < len(messages)
  raise DroppedExample(NO_ROOM_FOR_TURN, example.where)


def _responses(
  example: Comparison | Ranking | Labelled | Demonstration,
  answers: Sequence[str],
  tokenizer: Tokenizer,
  prompt: list[int],
  end_token: bool,
) -> list[list[int]]:
  """Returns the ids of answers in plain text."""
  found = []
  for answer in answers:
    text = formats.response_text(example, answer)
    ids = streams.continued(text, tokenizer, prompt)
    if not ids:
      raise DroppedExample("empty response", example.where)
    found.append(ids + [tokenizer.eos_id] * end_token)
  return found


def encode_comparison(
  example: Comparison,
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> dict:
  """Encodes both candidates behind one and the same prompt.

  Args:
    example: its prompt is encoded once, so it cannot tokenise differently.
    tokenizer: encodes it.
    max_length: tokens of the longer candidate; the prompt gives way, as for
      `encode_demonstration`, for both alike.
    chat: use the chat template.
    end_token: responses end with the end token.

  Returns:
    chosen and rejected (tokens, loss_mask), label, key (formats.prompt_key),
    is_cut.

  Raises:
    DroppedExample: a response does not fit or is empty, or both are equal.
    UserError: see `encode_demonstration`.
  """
  texts = [example.chosen, example.rejected]
  found = encode_answers(
    example, texts, tokenizer, max_length, chat, end_token=end_token
  )
  chosen, rejected = found.pop("answers")
  if np.array_equal(chosen["tokens"], rejected["tokens"]):
    raise DroppedExample("candidates are equal", example.where)
  label = np.float32(example.label)
  return found | {"chosen": chosen, "rejected": rejected, "label": label}


def encode_answers(
  example: Comparison | Ranking,
  texts: Sequence[str],
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> dict:
  """Encodes some answers to the prompt of an example behind it.

  Args:
    example: its prompt is encoded once.
    texts: the answers.
    tokenizer, max_length, chat, end_token: see `encode_comparison`; the prompt
      gives way for the longest answer, for all alike.

  Returns:
    answers (tokens, loss_mask each), prompt, key, is_cut.

  Raises:
    DroppedExample: a response does not fit or is empty.
  """
  _check_length(max_length)
  prompt, responses, is_cut = _fitted(
    example, texts, tokenizer, max_length, chat, end_token
  )
  rows = [_answer_row(prompt, r, tokenizer, example.where) for r in responses]
  return {
    "prompt": tuple(prompt),
    "key": formats.prompt_key(example),
    "answers": rows,
    "is_cut": is_cut,
  }


def _answer_row(
  prompt: list[int], response: list[int], tokenizer: Tokenizer, where: str
) -> Row:
  ids, mask = prompt + response, _mask(prompt, response)
  return _row(ids, mask, tokenizer.vocab_size, where)


def _mask(prompt: list[int], response: list[int]) -> list[int]:
  return [0] * len(prompt) + [1] * len(response)


def encode_labelled(
  example: Labelled,
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> dict:
  """Encodes one judged answer behind its prompt.

  Args and errors are those of `encode_comparison`.

  Returns:
    answer (tokens, loss_mask), label, prompt (tuple of ids), key
    (formats.prompt_key), is_cut.
  """
  _check_length(max_length)
  prompt, (response,), is_cut = _fitted(
    example, [example.response], tokenizer, max_length, chat, end_token
  )
  return {
    "prompt": tuple(prompt),
    "key": formats.prompt_key(example),
    "answer": _answer_row(prompt, response, tokenizer, example.where),
    "label": np.float32(example.label),
    "is_cut": is_cut,
  }


def each(
  encoder: Callable[..., dict], examples: Iterable, *args: Any, **settings: Any
) -> Iterator[tuple[Any, dict | None, tuple[str, ...]]]:
  """Yields (example, row, reasons) of each example.

  Args:
    encoder: one of the functions above, or another that raises and returns as
      they do.
    examples: what it encodes.
    *args, **settings: its further arguments.

  Yields:
    row: None where the example is left out.
    reasons: why that is so, or what was cut of the row.
  """
  for example in examples:
    try:
      with sources.at(example.where):
        row = encoder(example, *args, **settings)
    except DroppedExample as error:
      yield example, None, (error.reason,)
    except EncodingError:
      yield example, None, (NO_TOKEN,)
    else:
      cut = (CUT,) if row.pop("is_cut", False) else ()
      skipped = (SKIPPED,) if row.pop("skipped", 0) else ()
      yield example, row, cut + skipped


def encode_all(
  encoder: Callable[..., dict], examples: Iterable, *args: Any, **settings: Any
) -> tuple[list[dict], Dropped]:
  """Returns rows, and reason -> number left out, or cut to fit; see `each`."""
  kept, dropped = [], Counter()
  for _, row, reasons in each(encoder, examples, *args, **settings):
    dropped.update(reasons)
    if row is not None:
      kept.append(row)
  return kept, dropped
