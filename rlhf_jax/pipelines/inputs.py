"""Config sections of kind Data -> token rows, comparisons and prompts.

The only place where records, tokenizers and lengths meet. Every function
returns what it left out and why, as counts for the log: nothing is dropped in
silence.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from rlhf_jax.data import assets, batches, chat, formats
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.pipelines.config import ConfigError, Data


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Pairs of rows that people compared.

  rows: token rows {"tokens", "loss_mask"}, each distinct one once.
  pairs: [P, 2] int32 indices into rows; the first is the preferred one.
  labels: [P] float32, probability that the first is preferred.
  groups: [P, G] int32, what a held-out set must not share with the training
    set: the prompt (G = 1), or both rated sentences of a pair (G = 2).
  dropped: reason -> count.
  ceiling: accuracy of the mean human rating against the single raters of
    these pairs, or None when records carry no ratings.
  """

  rows: list[dict[str, np.ndarray]]
  pairs: np.ndarray
  labels: np.ndarray
  groups: np.ndarray
  dropped: Counter
  ceiling: float | None


def records(data: Data, tokenizer: Tokenizer) -> tuple[list, Counter]:
  """Returns the records of a source after filters, split and limit.

  Raises:
    DataError: malformed or empty data, with file and line.
    ConfigError: settings that do not go together.
  """
  dropped: Counter = Counter()
  if not data.source:
    raise ConfigError(
      "data.source is empty: name a file (--config.data.source=my.jsonl), "
      "tfds:NAME:SPLIT or asset:NAME."
    )
  if data.source.startswith("asset:"):
    found = assets.movie_reviews(
      assets.fetch(data.source.removeprefix("asset:"))
    )
  else:
    found, refused = formats.load_and_count(data.source, data.format)
    dropped += refused
  if data.min_words or data.max_text_tokens or data.split:
    _check_rated(found, data)
    found = _filter(found, data, tokenizer, dropped)
  if data.split:
    sizes = data.split_sizes()
    found = assets.split_ratings(found, data.split_seed, sizes)[data.split]
  if data.limit:
    found = found[: data.limit]
  if not found:
    raise DataError(
      f"{data.source}: no records are left after the filters "
      f"({dict(dropped)}). Loosen min_words, max_text_tokens or limit."
    )
  return found, dropped


def _filter(found: list, data: Data, tokenizer: Tokenizer, dropped: Counter):
  kept = []
  for record in found:
    if len(record.text.split()) < data.min_words:
      dropped["fewer than min_words"] += 1
    elif (
      data.max_text_tokens
      and len(tokenizer.encode(" " + record.text)) > data.max_text_tokens
    ):
      dropped["more than max_text_tokens"] += 1
    else:
      kept.append(record)
  return kept


def _check_rated(found: list, data: Data) -> None:
  if not isinstance(found[0], formats.RatedText):
    raise ConfigError(
      f"min_words={data.min_words}, max_text_tokens={data.max_text_tokens}, "
      f"split={data.split!r}: for rated texts only, and {data.source} was read "
      f"with format={data.format!r}. Set them to 0, 0 and ''."
    )


def _check_rows(rows: list, data: Data, dropped: Counter) -> None:
  if not rows:
    raise DataError(
      f"{data.source}: no example is left ({dict(dropped)}). Raise data."
      f"max_length={data.max_length}, or check the records."
    )


def _row(prompt: list[int], response: list[int], train_on_prompt: bool) -> dict:
  mask = [1.0 if train_on_prompt else 0.0] * len(prompt) + [1.0] * len(response)
  mask[0] = 0.0  # the first token has nothing before it to be predicted from
  return {
    "tokens": np.asarray(prompt + response, np.int32),
    "loss_mask": np.asarray(mask, np.float32),
  }


def _rated_row(record: Any, data: Data, tokenizer: Tokenizer) -> dict:
  prompt = tokenizer.encode(data.prompt)
  response = tokenizer.encode(" " + record.text)
  if data.end_token:
    response = [*response, tokenizer.eos_id]
  if len(prompt) + len(response) > data.max_length:
    raise DataError(
      f"{record.where}: {len(prompt)} + {len(response)} tokens do not fit in "
      f"max_length={data.max_length}. Raise it, or set max_text_tokens to "
      "leave out long texts."
    )
  return _row(prompt, response, data.train_on_prompt)


def demonstrations(
  data: Data, tokenizer: Tokenizer
) -> tuple[list[dict[str, np.ndarray]], Counter]:
  """Returns rows {"tokens", "loss_mask"} for supervised fine-tuning."""
  found, dropped = records(data, tokenizer)
  if isinstance(found[0], formats.RatedText):
    return [_rated_row(r, data, tokenizer) for r in found], dropped
  if not isinstance(found[0], formats.Demonstration):
    raise ConfigError(
      f"format={data.format!r} holds no demonstrations: use 'demonstration', "
      "'messages', 'gsm8k' or 'ratings'."
    )
  rows, lost = batches.encode_demonstrations(
    found,
    tokenizer,
    data.max_length,
    train_on_prompt=data.train_on_prompt,
    chat=data.chat,
  )
  _check_rows(rows, data, dropped + lost)
  return rows, dropped + lost


def comparisons(data: Data, tokenizer: Tokenizer, seed: int) -> Comparisons:
  """Returns comparisons, given by people or drawn from their ratings."""
  found, dropped = records(data, tokenizer)
  if isinstance(found[0], formats.RatedText):
    if data.pairs < 1:
      raise ConfigError(
        f"pairs={data.pairs}: comparisons are drawn from ratings; say how "
        "many, for example --config.data.pairs=20000."
      )
    pairs, labels = formats.comparisons_from_ratings(
      found, data.pairs, seed, data.ties
    )
    return Comparisons(
      rows=[_rated_row(r, data, tokenizer) for r in found],
      pairs=pairs,
      labels=labels,
      groups=pairs,
      dropped=dropped,
      ceiling=formats.rater_ceiling(found, pairs, labels),
    )
  if not isinstance(found[0], formats.Comparison):
    raise ConfigError(
      f"format={data.format!r} holds no comparisons: use 'comparison', 'hh' "
      "or 'ratings'."
    )
  encoded, lost = batches.encode_comparisons(
    found,
    tokenizer,
    data.max_length,
    end_token=data.end_token,
    chat=data.chat,
  )
  _check_rows(encoded, data, dropped + lost)
  rows, pairs, groups = [], [], {}
  group_of_pair = []
  for example in encoded:
    pairs.append((len(rows), len(rows) + 1))
    rows += [example["chosen"], example["rejected"]]
    group_of_pair.append(groups.setdefault(example["prompt"], len(groups)))
  return Comparisons(
    rows=rows,
    pairs=np.asarray(pairs, np.int32).reshape(-1, 2),
    labels=np.asarray([e["label"] for e in encoded], np.float32),
    groups=np.asarray(group_of_pair, np.int32)[:, None],
    dropped=dropped + lost,
    ceiling=None,
  )


def prompts(
  data: Data, tokenizer: Tokenizer, max_prompt: int
) -> tuple[list[list[int]], Counter]:
  """Returns prompts as token ids.

  Rated texts give `prompt` + their first prefix_tokens tokens; other formats
  their own prompt.

  Raises:
    DataError: a prompt longer than max_prompt tokens.
  """
  found, dropped = records(data, tokenizer)
  ids: list[list[int]] = []
  for record in found:
    if isinstance(record, formats.RatedText):
      text = tokenizer.encode(" " + record.text)[: data.prefix_tokens]
      row = tokenizer.encode(data.prompt) + text
    else:
      row = prompt_ids(record, data, tokenizer)
    if not row:
      raise DataError(f"{record.where}: the prompt is empty. Give it a text.")
    if len(row) > max_prompt:
      raise DataError(
        f"{record.where}: a prompt of {len(row)} tokens leaves no room in "
        f"max_length={data.max_length} for the response: at most {max_prompt} "
        "fit. Shorten the prompt, raise max_length, or lower "
        "generate.max_new_tokens."
      )
    ids.append(row)
  return ids, dropped


def prompt_ids(record: Any, data: Data, tokenizer: Tokenizer) -> list[int]:
  """Returns the token ids of a record's prompt, rendered as chat if asked."""
  messages = formats.prompt_messages(record)
  if data.chat:
    rendered = chat.render(messages, tokenizer, add_generation_prompt=True)
    return list(rendered.ids)
  return tokenizer.encode(formats.prompt_text(record))
