"""Python lists of texts -> batches: what a notebook has in its hands.

  prompt        text, or a list of messages
  conversation  a list of messages, or (prompt, response)
  pair          (prompt, chosen, rejected)
  judged        (prompt, response, label), label 1 for a good answer, else 0

Text is taken as it is; messages are rendered with the chat template. A tuple
may be a dict with the names above as keys; a pair may then have a "label" too,
the probability that `chosen` is the better.

Here nothing is cut and nothing left out (dataset.py does both, and counts):
what does not fit or teaches nothing is an error that names its place in the
list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import batches, encode, judged, parsers, streams
from rlhf_jax.data.examples import Demonstration, Prompt
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError
from rlhf_jax.types import PreferenceBatch, PromptBatch, TokenBatch

_NO_LIMIT = 2**31  # of the encoders, which would cut; see `_checked`


def listed(items: Any, what: str) -> list:
  """Returns a list of at least one item, or says what is given instead."""
  if isinstance(items, (str, dict)) or not isinstance(items, Sequence):
    raise UserError(
      f"{what}={items!r:.60}: is a {type(items).__name__}. Give a list."
    )
  if not items:
    raise UserError(f"{what}=[]: there is nothing in it. Give at least one.")
  return list(items)


def _record(item: Any, fields: tuple[str, ...], where: str) -> dict[str, Any]:
  """Returns an item of a list as a record of the data formats."""
  if isinstance(item, dict):
    return item
  if isinstance(item, str) or not isinstance(item, Sequence):
    found = f"a {type(item).__name__}"
  elif len(item) != len(fields):
    found = f"{len(item)} values"
  else:
    return dict(zip(fields, item, strict=True))
  raise UserError(
    f"{where}={item!r:.60}: {found}. Give ({', '.join(fields)}), or a dict "
    "with these keys."
  )


def _is_dialogue(item: Any) -> bool:
  """Says whether an item is a list of messages."""
  is_list = isinstance(item, Sequence) and not isinstance(item, str)
  return is_list and len(item) > 0 and isinstance(item[0], dict)


def _encoded(encoder: Callable[..., Any], example: Any, *args, **settings):
  """Returns an encoded example; what would be left out of data is an error."""
  try:
    return encoder(example, *args, **settings)
  except (encode.DroppedExample, EncodingError) as error:
    message = str(error)
    place = "" if message.startswith(example.where) else f"{example.where}: "
    raise UserError(
      f"{place}{message}. Correct it, or take it out of the list."
    ) from error


def _checked(rows: list, limit: int, wheres: list[str], why: str) -> list:
  """Returns rows, none longer than `limit` tokens."""
  for row, where in zip(rows, wheres, strict=True):
    if len(row["tokens"]) > limit:
      raise UserError(
        f"{where}: {len(row['tokens'])} tokens, and {why} is {limit}. Shorten "
        "it, or raise that."
      )
  return rows


def _limit(length: int | None, context: int) -> tuple[int, str]:
  """Returns the most tokens of a row and what says so."""
  if length is None:
    return context, "the context of the model"
  if length > context:
    raise UserError(
      f"length={length}: the context of the model is {context}. Lower it."
    )
  return length, "length"


def _prompt_ids(item: Any, tokenizer: Tokenizer, where: str) -> list[int]:
  """Returns the tokens before an answer."""
  if isinstance(item, str):
    return _encoded(encode.encode_prompt, Prompt(where, item), tokenizer)
  example = parsers.parse_prompt({"prompt": item}, where)
  return _encoded(encode.encode_prompt, example, tokenizer, chat=True)


def prompts(
  items: Any,
  tokenizer: Tokenizer,
  room: int,
  *,
  width: int | None = None,
) -> PromptBatch:
  """Returns prompts as a batch, numbered from 0.

  Args:
    items: list of prompts.
    tokenizer: of the model.
    room: tokens of a prompt at most.
    width: columns; None for the longest, rounded up to 8 if there is room.

  Raises:
    UserError: a prompt that is empty or too long, named by its place.
  """
  found = listed(items, "prompts")
  limit = room if width is None else width
  if not 0 < limit <= room:
    raise UserError(
      f"width={limit}: {room} tokens are left for a prompt beside the answer. "
      "Set 1 <= width, at most that, or lower max_new_tokens."
    )
  ids = []
  for i, item in enumerate(found):
    where = f"prompts[{i}]"
    row = _prompt_ids(item, tokenizer, where)
    if not row:
      raise UserError(
        f"{where} is empty, so nothing predicts the first token of the answer. "
        "Give it a text."
      )
    if len(row) > limit:
      raise UserError(
        f"{where}: {len(row)} tokens, and {limit} are left for a prompt beside "
        "the answer. Shorten it, lower max_new_tokens, or raise width if that "
        "is set."
      )
    ids.append(row)
  if width is None:
    width = min(batches.bucket_length(max(map(len, ids))), room)
  return batches.collate_prompts(ids, tokenizer.pad_id, width)


def conversations(
  items: Any,
  tokenizer: Tokenizer,
  context: int,
  *,
  length: int | None = None,
) -> TokenBatch:
  """Returns conversations as rows whose answers are learned.

  Args:
    items: list of conversations.
    tokenizer: of the model.
    context: tokens that the model reads at most.
    length: columns; None for the longest, rounded up to 8.

  Raises:
    UserError: one that does not fit or has no answer, named by its place.
  """
  limit, why = _limit(length, context)
  rows, wheres = [], []
  for i, item in enumerate(listed(items, "conversations")):
    where = f"conversations[{i}]"
    example = _demonstration(item, where)
    rows.append(
      _encoded(
        encode.encode_demonstration,
        example,
        tokenizer,
        _NO_LIMIT,
        chat=example.messages is not None,
      )
    )
    wheres.append(where)
  _checked(rows, limit, wheres, why)
  return batches.collate_tokens(rows, length, tokenizer.pad_id)


def _demonstration(item: Any, where: str) -> Demonstration:
  if _is_dialogue(item):
    return parsers.parse_messages({"messages": list(item)}, where)
  record = _record(item, ("prompt", "response"), where)
  if "messages" in record:
    return parsers.parse_messages(record, where)
  if not _is_dialogue(record.get("prompt")):
    return parsers.parse_demonstration(record, where)
  answer = {"role": "assistant", "content": record.get("response")}
  messages = [*record["prompt"], answer]
  return parsers.parse_messages({"messages": messages}, where)


def pairs(
  items: Any,
  tokenizer: Tokenizer,
  context: int,
  *,
  length: int | None = None,
  end_token: bool = True,
) -> PreferenceBatch:
  """Returns pairs as a batch, the chosen answer first.

  Args:
    items: list of pairs.
    tokenizer: of the model.
    context: tokens that the model reads at most.
    length: columns; None for the longest, rounded up to 8.
    end_token: answers end with the end token.

  Raises:
    UserError: one that does not fit or teaches nothing, named by its place.
  """
  limit, why = _limit(length, context)
  encoded, wheres = [], []
  for i, item in enumerate(listed(items, "pairs")):
    where = f"pairs[{i}]"
    record = _record(item, ("prompt", "chosen", "rejected"), where)
    example = parsers.parse_comparison(record, where)
    encoded.append(
      _encoded(
        encode.encode_comparison,
        example,
        tokenizer,
        _NO_LIMIT,
        _is_dialogue(example.prompt),
        end_token=end_token,
      )
    )
    wheres += [f"{where}, chosen", f"{where}, rejected"]
  rows = [row[name] for row in encoded for name in ("chosen", "rejected")]
  _checked(rows, limit, wheres, why)
  return batches.collate_preferences(encoded, length, tokenizer.pad_id)


def judged_answers(
  items: Any,
  tokenizer: Tokenizer,
  context: int,
  *,
  length: int | None = None,
) -> PreferenceBatch:
  """Returns judged answers as KTO reads them, each with a mismatched one.

  Args:
    items: list of (prompt, response, label), of two prompts at least.
    tokenizer: of the model.
    context: tokens that the model reads at most.
    length: columns; None for the longest, rounded up to 8.

  Raises:
    UserError: one that does not fit or teaches nothing, named by its place;
      all prompts are equal.
  """
  limit, why = _limit(length, context)
  encoded, wheres = [], []
  for i, item in enumerate(listed(items, "answers")):
    wheres.append(f"answers[{i}]")
    record = _record(item, ("prompt", "response", "label"), wheres[-1])
    example = parsers.parse_labelled(record, wheres[-1])
    chat = _is_dialogue(example.prompt)
    encoded.append(
      _encoded(encode.encode_labelled, example, tokenizer, _NO_LIMIT, chat)
    )
  rows = _checked([e["answer"] for e in encoded], limit, wheres, why)
  if length is None:
    length = batches.bucket_length(max(len(row["tokens"]) for row in rows))
  data = judged.with_mismatched(
    judged.of_encoded(encoded, Counter()), length, 0, "answers"
  )
  both = [
    {"chosen": data.rows[a], "rejected": data.rows[b], "label": label}
    for (a, b), label in zip(data.pairs, data.labels, strict=True)
  ]
  return batches.collate_preferences(both, length, tokenizer.pad_id)


def answers(
  prompts: Any,
  texts: Any,
  tokenizer: Tokenizer,
  context: int,
  *,
  end_token: bool,
) -> list[dict[str, np.ndarray]]:
  """Returns rows of prompt and answer, for a reward model to score.

  Args:
    prompts: list of prompts.
    texts: list of answers, those to one prompt beside each other.
    tokenizer: of the model.
    context: tokens that the model reads at most.
    end_token: answers end with the end token.

  Raises:
    UserError: the answers are no multiple of the prompts, or one is too long.
  """
  prompts, texts = listed(prompts, "prompts"), listed(texts, "texts")
  each, rest = divmod(len(texts), len(prompts))
  if rest:
    raise UserError(
      f"{len(texts)} texts to {len(prompts)} prompts: there are as many texts "
      "to each prompt, beside each other. Give a multiple."
    )
  rows, wheres = [], []
  for i, text in enumerate(texts):
    item, where = prompts[i // each], f"texts[{i}]"
    before = _prompt_ids(item, tokenizer, where)
    if _is_dialogue(item):
      said = streams.answer(item, text, tokenizer, where, end_token)
    else:
      said = streams.continued(text, tokenizer, before)
      said = said + [tokenizer.eos_id] * end_token
    ids = before + said
    rows.append(
      {
        "tokens": np.asarray(ids, np.int32),
        "loss_mask": np.ones(len(ids), np.float32),
      }
    )
    wheres.append(where)
  return _checked(rows, context, wheres, "the context of the model")
