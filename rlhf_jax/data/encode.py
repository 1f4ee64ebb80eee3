"""Examples -> token ids, with masks that never look at an id.

An encoded example is a dict of numpy arrays:
  demonstration: tokens [n] int32, loss_mask [n] float32
  comparison:    chosen and rejected (each tokens, loss_mask), label, and
                 prompt, the tuple of ids that both start with
  labelled:      answer (tokens, loss_mask), label and prompt

loss_mask is aligned with targets (types.py): 1 at t says that token t is
predicted from the tokens before it; the first token of a row has none before
it and is never a target.

Truncation cuts the prompt from the left, for both candidates alike; an example
whose response would be cut is left out and counted (METHODS 1).

Left out: begin tokens (a chat template writes its own); candidates K > 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlhf_jax.data import chat as chat_templates
from rlhf_jax.data import formats, sources
from rlhf_jax.data.formats import (
  Comparison,
  Demonstration,
  Dropped,
  Labelled,
)
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

Row = dict[str, np.ndarray]


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


def _response_ids(
  text: str, tokenizer: Tokenizer, end_token: bool, where: str
) -> list[int]:
  ids = tokenizer.encode(text)
  if not ids:
    raise DroppedExample("empty response", where)
  return ids + [tokenizer.eos_id] * end_token


def _check_length(max_length: int) -> None:
  if max_length < 2:
    raise UserError(
      f"max_length={max_length}: a row holds at least one token before the "
      "response. Set max_length >= 2."
    )


def encode_prompt(
  example: formats.Prompt | Comparison | Demonstration | Labelled,
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
    return tokenizer.encode(formats.prompt_text(example))
  messages = formats.prompt_messages(example)
  return chat_templates.render(
    messages, tokenizer, add_generation_prompt=True
  ).ids


def encode_demonstration(
  example: Demonstration,
  tokenizer: Tokenizer,
  max_length: int,
  train_on_prompt: bool = False,
  *,
  chat: bool = False,
) -> Row:
  """Encodes a demonstration with loss on what the assistant says.

  Args:
    example: messages need chat=True; a prompt and response become one user
      and one assistant turn with chat=True, else prompt + response + EOS.
    tokenizer: encodes it.
    max_length: tokens; the left of the prompt gives way. An earlier answer
      that is cut in a dialogue stays as context without loss.
    train_on_prompt: loss on every token but the first.
    chat: use the chat template.

  Returns:
    tokens [n] int32 and loss_mask [n] float32, n <= max_length.

  Raises:
    DroppedExample: the (last) response does not fit, or is empty.
    ValueError: messages without chat=True.
  """
  _check_length(max_length)
  if chat:
    ids, mask = _chat_demonstration(example, tokenizer)
  elif example.messages is not None:
    raise UserError(
      f"{example.where}: a dialogue has turns that only a chat template can "
      "mark. Set chat=True."
    )
  else:
    prompt = encode_prompt(example, tokenizer)
    response = _response_ids(example.response, tokenizer, True, example.where)
    ids = prompt + response
    mask = [0] * len(prompt) + [1] * len(response)
  cut = max(len(ids) - max_length, 0)
  last_answer = len(mask) - 1 - mask[::-1].index(0) if 0 in mask else -1
  if cut > max(last_answer, 0):
    raise DroppedExample("response does not fit in max_length", example.where)
  if cut and mask[cut - 1]:
    end = mask.index(0, cut)
    mask[cut:end] = [0] * (end - cut)
  if train_on_prompt:
    mask = [1] * len(mask)
  return _row(ids[cut:], mask[cut:], tokenizer.vocab_size, example.where)


def _chat_demonstration(
  example: Demonstration, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
  """Returns ids and mask up to the last learned token."""
  messages = example.messages
  if messages is None:
    messages = [
      {"role": "user", "content": example.prompt},
      {"role": "assistant", "content": example.response},
    ]
  rendered = chat_templates.render(messages, tokenizer)
  mask = rendered.assistant_mask
  if 1 not in mask:
    raise DroppedExample("no assistant turn", example.where)
  size = len(mask) - mask[::-1].index(1)
  return rendered.ids[:size], mask[:size]


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
    max_length: tokens of the longer candidate; the left of the prompt gives
      way, by the same number of tokens for both.
    chat: use the chat template for the prompt.
    end_token: responses end with the end token.

  Returns:
    chosen and rejected (tokens, loss_mask), label, prompt (tuple of ids).

  Raises:
    DroppedExample: a response does not fit or is empty, or both are equal.
  """
  _check_length(max_length)
  prompt = encode_prompt(example, tokenizer, chat=chat)
  answers = [example.chosen, example.rejected]
  if not chat:
    answers = [formats.response_text(example, answer) for answer in answers]
  responses = [
    _response_ids(answer, tokenizer, end_token, example.where)
    for answer in answers
  ]
  if responses[0] == responses[1]:
    raise DroppedExample("candidates are equal", example.where)
  cut = max(len(prompt) + max(map(len, responses)) - max_length, 0)
  if cut and cut >= len(prompt):
    raise DroppedExample("response does not fit in max_length", example.where)
  prompt = prompt[cut:]
  chosen, rejected = (
    _row(
      prompt + response,
      [0] * len(prompt) + [1] * len(response),
      tokenizer.vocab_size,
      example.where,
    )
    for response in responses
  )
  return {
    "prompt": tuple(prompt),
    "chosen": chosen,
    "rejected": rejected,
    "label": np.float32(example.label),
  }


def encode_labelled(
  example: Labelled,
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> dict:
  """Encodes one judged answer behind its prompt.

  Args:
    example: prompt, response and label.
    tokenizer: encodes it.
    max_length: tokens; the left of the prompt gives way.
    chat: use the chat template for the prompt.
    end_token: the response ends with the end token.

  Returns:
    answer (tokens, loss_mask), label, prompt (tuple of ids).

  Raises:
    DroppedExample: the response does not fit or is empty.
  """
  _check_length(max_length)
  prompt = encode_prompt(example, tokenizer, chat=chat)
  text = example.response
  if not chat:
    text = formats.response_text(example, text)
  response = _response_ids(text, tokenizer, end_token, example.where)
  cut = max(len(prompt) + len(response) - max_length, 0)
  if cut and cut >= len(prompt):
    raise DroppedExample("response does not fit in max_length", example.where)
  prompt = prompt[cut:]
  answer = _row(
    prompt + response,
    [0] * len(prompt) + [1] * len(response),
    tokenizer.vocab_size,
    example.where,
  )
  return {
    "prompt": tuple(prompt),
    "answer": answer,
    "label": np.float32(example.label),
  }


def _encode_all(
  encode: Callable, examples: Sequence
) -> tuple[list[dict], Dropped]:
  kept, dropped = [], Counter()
  for example in examples:
    try:
      with sources.at(example.where):
        kept.append(encode(example))
    except DroppedExample as error:
      dropped[error.reason] += 1
    except EncodingError:
      dropped["a character has no token"] += 1
  return kept, dropped


def encode_demonstrations(
  examples: Sequence[Demonstration],
  tokenizer: Tokenizer,
  max_length: int,
  train_on_prompt: bool = False,
  *,
  chat: bool = False,
) -> tuple[list[Row], Dropped]:
  """Encodes demonstrations; returns rows and reason -> number left out."""
  return _encode_all(
    lambda example: encode_demonstration(
      example, tokenizer, max_length, train_on_prompt, chat=chat
    ),
    examples,
  )


def encode_comparisons(
  examples: Sequence[Comparison],
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> tuple[list[dict], Dropped]:
  """Encodes comparisons; returns them and reason -> number left out."""
  return _encode_all(
    lambda example: encode_comparison(
      example, tokenizer, max_length, chat, end_token=end_token
    ),
    examples,
  )


def encode_all_labelled(
  examples: Sequence[Labelled],
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
) -> tuple[list[dict], Dropped]:
  """Encodes judged answers; returns them and reason -> number left out."""
  return _encode_all(
    lambda example: encode_labelled(
      example, tokenizer, max_length, chat, end_token=end_token
    ),
    examples,
  )
