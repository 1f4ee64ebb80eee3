"""A Data section -> token rows, comparisons and prompts.

The only place where records, tokenizers and lengths meet. Every function
returns what it left out or cut and why, as counts for the log: nothing is lost
in silence. A file is read once in a process.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_jax.data import (
  assets,
  by_field,
  comparison_rows,
  encode,
  formats,
  kept_records,
  markup,
  rankings,
  rated_dialogues,
  ratings,
  reading,
  sources,
  statistics,
  streamed,
  streams,
)
from rlhf_jax.data.comparison_rows import Comparisons
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import FieldError

WITH = "with"
Row = dict[str, np.ndarray]  # {"tokens", "loss_mask"}, [n] each


def check(data: Data, name: str) -> None:
  """Checks that a source is there, and reads its file.

  A broken record is found before a model is loaded. TFDS and assets are read
  where they are used.

  Args:
    data: the section.
    name: of the section, for messages.

  Raises:
    FieldError, DataError: value, rule and remedy.
  """
  check_source(data.source, name)
  if data.exclude:
    check_source(data.exclude, name, "exclude")
  if data.store == "disk":  # all of it is read once, where it is used
    return
  parts = sources.parts(data.source)
  if not any(p.startswith(("asset:", *sources.PREFIXES)) for p in parts):
    reading.read(data)


def check_source(source: str, name: str, inner: str = "source") -> None:
  """Raises FieldError unless the source of a Data section can be there.

  Args:
    source: asset:NAME, or what sources.py reads.
    name: of the section, for the message.
    inner: field of the section.
  """
  field = f"{name}.{inner}"
  if not source:
    raise FieldError(
      f"{field} is empty: name a file (--config.{field}=my.jsonl), "
      "tfds:NAME:SPLIT, hub:ORG/NAME:SPLIT or asset:NAME."
    )
  if source.startswith("asset:"):
    assets.check_name(source, field)
  else:
    sources.check(source, field)


def records(data: Data, tokenizer: Tokenizer | None) -> tuple[list, Counter]:
  """Returns the records of a source after filters, split and limit.

  Args:
    data: the section.
    tokenizer: of the model; None where none reads them: of no rated texts, and
      nothing is said of texts that were rendered before.

  Raises:
    DataError: malformed or empty data, with file and line.
    FieldError: settings that do not go together.
  """
  check_source(data.source, "data")
  found_parts, refused, left_out = reading.read(data)
  dropped = Counter(error.reason for error in refused)
  dropped.update(why for why, _ in left_out)
  parts = [list(part) for part in found_parts]
  if data.only:
    parts = by_field.only(parts, data, dropped)
  if data.min_words or data.max_text_tokens or data.split:
    kept_records.check_rated(parts[0], data)
    parts = [
      kept_records.by_length(part, data, tokenizer, dropped) for part in parts
    ]
  found = [record for part in parts for record in part]
  if data.split:
    sizes = data.split_sizes()
    found = assets.split_ratings(found, data.split_seed, sizes)[data.split]
  elif data.weights or data.repeats:
    found = kept_records.mixed(parts, data, dropped)
  if data.limit:
    found = found[: data.limit]
  if data.max_turns:
    found = [rated_dialogues.shortened(r, data.max_turns) for r in found]
  if data.max_prompt_tokens and tokenizer is not None:
    kept = [
      record
      for record in found
      if len(prompt_ids(record, data, tokenizer)) <= data.max_prompt_tokens
    ]
    dropped["more than max_prompt_tokens"] += len(found) - len(kept)
    found = kept
  marked = markup.find(found, tokenizer, data.chat) if tokenizer else []
  if marked:
    dropped[markup.describe(marked)] += len(marked)
  if data.by:
    for value, those in by_field.grouped(found, data.by).items():
      dropped[f"{WITH} {data.by}={value}"] += len(those)
  if not found:
    raise DataError(
      f"{data.source}: no records are left after the filters "
      f"({dict(dropped)}). Loosen min_words, max_text_tokens or limit."
    )
  return found, dropped


def is_note(reason: str) -> bool:
  """Says whether a reason of `records` is a note: nothing was left out."""
  return reason.startswith(("WARNING", kept_records.DRAWN, f"{WITH} "))


def report_dropped(
  phase: str,
  source: str,
  kept: int,
  dropped: Counter,
  lengths: Mapping[str, Sequence[int]] | None = None,
) -> None:
  """Prints how many records were read, what was left out or cut, and why.

  Args:
    phase: what they are for.
    source: where they come from.
    kept: how many are used.
    dropped: reason -> count.
    lengths: part of an example -> tokens of each, where they are known; see
      statistics.add.
  """
  lost = ", ".join(f"{n} {why}" for why, n in sorted(dropped.items()))
  print(
    f"{phase}: {kept} examples from {source}" + (f"; {lost}" if lost else "")
  )
  statistics.add(phase, source, kept, dropped, lengths or {})


def check_left(rows: Sequence, data: Data, dropped: Counter) -> None:
  """Raises DataError where no example is left of a source.

  Args:
    rows: what is left.
    data: the section.
    dropped: reason -> count of what was left out.
  """
  if len(rows):
    return
  remedy = "Correct the records"
  if any("max_length" in reason for reason in dropped):
    remedy = f"Raise data.max_length={data.max_length}, or shorten the records"
  raise DataError(
    f"{data.source}: no example is left ({dict(dropped)}). {remedy}."
  )


def encoder(
  found: list, data: Data, tokenizer: Tokenizer
) -> Callable[[Any], dict]:
  """Returns what makes the row of a record, or the rows, as a run does.

  Args:
    found: records, all of one kind; prompts have no rows (`prompt_ids`).
    data: the section.
    tokenizer: of the model.
  """
  common = {
    "tokenizer": tokenizer,
    "max_length": data.max_length,
    "chat": data.chat,
  }
  kind = type(found[0])
  if kind is formats.RatedText and found[0].messages is not None:
    return functools.partial(
      rated_dialogues.encode_one,
      tokenizer=tokenizer,
      max_length=data.max_length,
      end_token=data.end_token,
    )
  if kind is formats.RatedText:
    return lambda record: ratings.row(record, data, tokenizer)
  if kind is formats.Demonstration:
    common["train_on_prompt"] = data.train_on_prompt
    common["last_only"] = data.last_answer_only
    return functools.partial(encode.encode_demonstration, **common)
  common["end_token"] = data.end_token
  if kind is formats.Ranking:
    rankings.check_objective(found, data.objective)
    common["objective"] = data.objective
    return functools.partial(rankings.encode_one, **common)
  encode_one = encode.encode_comparison
  if kind is formats.Labelled:
    encode_one = encode.encode_labelled
  return functools.partial(encode_one, **common)


def demonstrations(
  data: Data, tokenizer: Tokenizer
) -> tuple[Sequence[Row], Counter]:
  """Returns rows {"tokens", "loss_mask"} for supervised fine-tuning."""
  if data.store == "disk":
    check_source(data.source, "data")
    streamed_rows = streamed.load(data, tokenizer, encoder)
    check_left(streamed_rows.rows, data, streamed_rows.dropped)
    return streamed_rows.rows, streamed_rows.dropped
  found, dropped = records(data, tokenizer)
  _check_text(found[0], data, "messages")
  if isinstance(found[0], formats.RatedText):
    return [ratings.row(r, data, tokenizer) for r in found], dropped
  if not isinstance(found[0], formats.Demonstration):
    raise FieldError(
      f"format={data.format!r} holds no demonstrations: use 'demonstration', "
      "'messages', 'gsm8k' or 'ratings'."
    )
  rows, lost = encode.encode_all(encoder(found, data, tokenizer), found)
  check_left(rows, data, dropped + lost)
  return rows, dropped + lost


def demonstrations_by(
  data: Data, tokenizer: Tokenizer
) -> tuple[dict[str, list[Row]], Counter]:
  """Returns the rows of `demonstrations` by their value of data.by.

  All of them under "" where no field is named.
  """
  if not data.by:
    rows, dropped = demonstrations(data, tokenizer)
    return {"": rows}, dropped
  found, dropped = records(data, tokenizer)
  if not isinstance(found[0], formats.Demonstration):
    demonstrations(data, tokenizer)  # says what these are
  encode_one, rows = encoder(found, data, tokenizer), {}
  for value, those in by_field.grouped(found, data.by).items():
    rows[value], lost = encode.encode_all(encode_one, those)
    dropped += lost
    check_left(rows[value], data, dropped)
  return rows, dropped


def comparisons(data: Data, tokenizer: Tokenizer, seed: int) -> Comparisons:
  """Returns comparisons, given by people or drawn from their ratings."""
  found, dropped = records(data, tokenizer)
  if isinstance(found[0], formats.RatedText):
    return _of_rated(found, data, tokenizer, seed, dropped)
  if not isinstance(found[0], formats.Comparison | formats.Ranking):
    raise FieldError(
      f"format={data.format!r} holds no comparisons: use 'comparison', 'hh', "
      "'ranking' or 'ratings'."
    )
  encode_one = encoder(found, data, tokenizer)
  encoded, kept, dropped = [], [], Counter(dropped)
  for record, row, reasons in encode.each(encode_one, found):
    dropped.update(reasons)
    if row is not None:
      encoded.append(row | {"weight": rankings.weight_of(record)})
      kept.append(record)
  check_left(encoded, data, dropped)
  if isinstance(found[0], formats.Ranking):
    if data.by:
      raise FieldError(
        f"by={data.by!r}: rankings of several answers are not told by a field "
        "while they train. Set '', or break the report card down "
        "(configs/report_card.py, by)."
      )
    compared = comparison_rows.of_encoded_rankings(
      encoded, data.rankings, data.ties, dropped, data.answers
    )
    check_left(compared.pairs, data, dropped)
    return compared
  found_pairs = comparison_rows.of_encoded_pairs(
    encoded,
    [rankings.strength_of(record) for record in kept],
    [rankings.pair_scores(record) for record in kept],
    [rankings.judgement_of(record) for record in kept],
    dropped,
  )
  if not data.by:
    return found_pairs
  said = [by_field.value_of(record, data.by) for record in kept]
  return replace(found_pairs, values=np.asarray(said, object))


def _of_rated(
  found: list, data: Data, tokenizer: Tokenizer, seed: int, dropped: Counter
) -> Comparisons:
  """Returns comparisons drawn from the ratings of texts, or of dialogues."""
  if data.pairs < 1:
    raise FieldError(
      f"pairs={data.pairs}: comparisons are drawn from ratings; say how "
      "many, for example --config.data.pairs=20000."
    )
  rows = None
  if found[0].messages is not None:
    found, rows, lost = dialogues(found, data, tokenizer)
    dropped += lost
  pairs, labels = ratings.comparisons_from_ratings(
    found, data.pairs, seed, data.ties
  )
  if rows is None:
    rows = [ratings.row(r, data, tokenizer) for r in found]
  texts: dict[str, int] = {}  # a text that comes twice is one text
  numbers = [
    texts.setdefault(formats.prompt_key(r), n) for n, r in enumerate(found)
  ]
  return Comparisons(
    rows=rows,
    pairs=pairs,
    labels=labels,
    groups=np.asarray(numbers, np.int32)[pairs],
    dropped=dropped,
    keys={number: text for text, number in texts.items()},
    ceiling=ratings.rater_ceiling(found, pairs, labels)
    if found[0].messages is None  # one person each: they are the labels
    else None,
  )


def dialogues(
  found: list, data: Data, tokenizer: Tokenizer
) -> tuple[list, list[Row], Counter]:
  """Returns rated dialogues that fit, their rows, and what was left out.

  Raises:
    FieldError: chat=False, or nobody rated by the objective.
  """
  if not data.chat:
    raise FieldError(
      "data.chat=False: rated dialogues have turns that only a chat template "
      "can mark. Set True."
    )
  rated = rated_dialogues.by_objective(found, data.objective)
  lost = Counter({"not rated by the objective": len(found) - len(rated)})
  kept, rows = [], []
  encode_one = encoder(rated, data, tokenizer)
  for record, row, reasons in encode.each(encode_one, rated):
    lost.update(reasons)
    if row is not None:
      kept.append(record)
      rows.append(row)
  check_left(rows, data, lost)
  return kept, rows, +lost


def _check_text(record: Any, data: Data, better: str) -> None:
  """Raises FieldError for rated dialogues where they are not compared."""
  if isinstance(record, formats.RatedText) and record.messages is not None:
    raise FieldError(
      f"format={data.format!r}: rated dialogues are compared. Use "
      f"format={better!r} here."
    )


def prompt_ids(record: Any, data: Data, tokenizer: Tokenizer) -> list[int]:
  """Returns the token ids of a prompt, as `prompts` does; at least one.

  Raises:
    DataError: it has none.
  """
  if isinstance(record, formats.RatedText):
    before, text = streams.rated(data.prompt, record.text, tokenizer)
    row = before + text[: data.prefix_tokens]
  else:
    with sources.at(record.where):
      row = encode.encode_prompt(record, tokenizer, chat=data.chat)
  if not row:
    raise DataError(f"{record.where}: the prompt is empty. Give it a text.")
  return row


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
  _check_text(found[0], data, "prompt")
  streams.check_prompts(found if data.chat else (), tokenizer)
  ids: list[list[int]] = []
  for record in found:
    row = prompt_ids(record, data, tokenizer)
    if len(row) > max_prompt:
      raise DataError(
        f"{record.where}: a prompt of {len(row)} tokens leaves no room in "
        f"max_length={data.max_length} for the response: at most {max_prompt} "
        "fit. Shorten the prompt, raise max_length, or lower "
        "generate.max_new_tokens."
      )
    ids.append(row)
  return ids, dropped
