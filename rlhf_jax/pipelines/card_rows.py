"""Records that people compared -> items of a report card, and their tokens.

Rows are encoded as the training of the reward model does, so that the accuracy
of its own held-out comparisons is the one that it reported. Where a run held a
part of its data out, `own` finds that part again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import dataset, encode, formats, rankings, reading
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Comparison, Ranking, RatedText
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.card_items import Item, Pair
from rlhf_jax.exports import opened
from rlhf_jax.labelling import agreement, judgements
from rlhf_jax.pipelines import rlhf
from rlhf_jax.programs import features
from rlhf_jax.schema import FieldError, UserError

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Judged:
  """What people compared.

  records: [N] as read; of rated texts their pairs.
  items: [N].
  rows: of each item, [K] token rows.
  dropped: reason -> count of what was left out or cut.
  ceiling: how often another person agrees with a label, None if unknown.
  """

  records: Sequence[Any]
  items: Sequence[Item]
  rows: Sequence[Sequence[Row]]
  dropped: Counter
  ceiling: float | None


def own(folder: Path) -> tuple[Data, float, int]:
  """Returns the held-out data of a reward run: section, fraction, seed.

  Args:
    folder: of the run.

  Raises:
    FieldError: the run says nothing of its data.
  """
  recorded = opened.recorded(folder)
  seed = int(recorded.get("seed", 0))
  whole = opened.recorded(folder.parent)
  is_stage = not (folder / opened.RECORD).is_file()
  if is_stage and whole.get("pipeline") == rlhf.PIPELINE.name:
    seed = rlhf.stage_seed(int(whole["seed"]), folder.name)
  for name, fraction, more in (
    ("heldout", 0.0, 1),
    ("data", float(recorded.get("heldout_fraction", 0.0)), 0),
  ):
    section = recorded.get(name)
    if name == "data" and recorded.get("objectives"):
      break  # which prompts it held out depends on all of them
    if isinstance(section, dict) and section.get("source"):
      known = {field.name for field in dataclasses.fields(Data)}
      values = {k: x for k, x in section.items() if k in known}
      return Data(**values), fraction, seed + more
  raise FieldError(
    f"data.source is empty, and {folder} does not say which comparisons it "
    "held out. Name a file of comparisons: --config.data.source=FILE."
  )


def load(
  data: Data, tokenizer: Tokenizer, seed: int, fraction: float
) -> Judged:
  """Returns what people compared, encoded.

  Args:
    data: the section; end_token as the reward model reads it.
    tokenizer: of the reward model.
    seed: of pairs that are drawn from ratings, and of the held-out part.
    fraction: of prompts that were held out; 0 for all records.

  Raises:
    FieldError: records that compare nothing.
  """
  found, dropped = dataset.records(data, tokenizer)
  if isinstance(found[0], RatedText):
    return _rated(found, data, tokenizer, seed, fraction)
  if not isinstance(found[0], Comparison | Ranking):
    raise FieldError(
      f"data.format={data.format!r}: holds no comparisons. Use 'ranking', "
      "'comparison', 'hh', 'ratings', 'rewardbench', 'llmbar' or 'judgebench'."
    )
  records, rows, keys = [], [], []
  dropped = Counter(dropped)

  def encoded(record: Comparison | Ranking) -> dict:
    return encode_answers(record, answers_of(record), data, tokenizer)

  for record, row, reasons in encode.each(encoded, found):
    dropped.update(reasons)
    if row is not None:
      records.append(record)
      rows.append(row["answers"])
      keys.append(row["key"])
  dataset.check_left(rows, data, dropped)
  if fraction:
    chosen = _held(keys, fraction, seed)
    records = [records[n] for n in chosen]
    rows = [rows[n] for n in chosen]
    keys = [keys[n] for n in chosen]
  items = [item_of(record, data.objective) for record in records]
  ceiling = _other_people([*records, *_overruled(data, set(keys))])
  return Judged(records, items, rows, +dropped, ceiling)


def _overruled(data: Data, keys: set[str]) -> list[Ranking]:
  """Returns judgements of the same prompts that nothing is learned from.

  Without those that a decision overruled people would seem to agree more.
  """
  said = [error.example for error in reading.read(data).refused]
  return [
    x for x in said if isinstance(x, Ranking) and formats.prompt_key(x) in keys
  ]


def _held(keys: Sequence[str], fraction: float, seed: int) -> list[int]:
  """Returns the numbers of the records that a reward run held out."""
  groups: dict[str, int] = {}
  numbers = np.asarray([groups.setdefault(key, len(groups)) for key in keys])
  chosen = features.held_groups(np.unique(numbers), fraction, seed)
  return np.flatnonzero(np.isin(numbers, chosen)).tolist()


def answers_of(record: Comparison | Ranking) -> tuple[str, ...]:
  """Returns the answers of a record."""
  if isinstance(record, Ranking):
    return record.answers
  return record.chosen, record.rejected


def encode_answers(
  record: Comparison | Ranking,
  texts: Sequence[str],
  data: Data,
  tokenizer: Tokenizer,
) -> dict:
  """Returns rows of answers to the prompt of a record, as in training.

  Raises:
    encode.DroppedExample: one is empty, or does not fit.
  """
  return encode.encode_answers(
    record,
    list(texts),
    tokenizer,
    data.max_length,
    data.chat,
    end_token=data.end_token,
  )


def _of_ranks(ranks: Sequence[float | None]) -> list[Pair]:
  known = [n for n, rank in enumerate(ranks) if rank is not None]
  return [
    (i, j, 0.5 + 0.5 * float(np.sign(ranks[j] - ranks[i])))
    for place, i in enumerate(known)
    for j in known[place + 1 :]
  ]


def item_of(record: Comparison | Ranking, objective: str = "") -> Item:
  """Returns a record as an item.

  Args:
    record: as read.
    objective: by which rankings are ordered, "" for the whole or the only one;
      where neither is there, the judgements by each.
  """
  prompt = formats.prompt_text(record)
  if isinstance(record, Comparison):
    pairs = [(0, 1, float(record.label))]
    answers = (record.chosen, record.rejected)
    return Item(record.where, prompt, answers, pairs, fields=record.fields)
  _, ranks = rankings.order(record, objective)
  is_choice = _is_choice(record.fields) and not objective
  by = {
    name: _of_ranks(rankings.order(record, name)[1] or ())
    for name in sorted(rankings.objectives(record))
  }
  pairs = [] if ranks is None else _of_ranks(ranks)
  if ranks is None and not objective:  # nobody judged the whole
    pairs = [pair for of in by.values() for pair in of]
  if is_choice:  # nothing is said of those that were not chosen
    pairs = [pair for pair in pairs if pair[2] != 0.5]
  known = [math.nan if x is None else float(x) for x in ranks or ()]
  best = np.nanmin(known) if known else math.nan
  return Item(
    record.where,
    prompt,
    record.answers,
    pairs,
    ranks=() if is_choice else known,
    right=[x == best for x in known],
    objectives=by,
    fields=record.fields,
  )


def _is_choice(fields: dict[str, Any]) -> bool:
  return fields.get("choice") is not None and fields.get("ranks") is None


def _other_people(records: Sequence[Any]) -> float | None:
  """Returns how often two annotators agree, None where none judged the same."""
  known = [
    (record.where, record.fields)
    for record in records
    if isinstance(record, Ranking)
    and record.fields.get("annotator")
    and isinstance(record.fields.get("answers"), list)
    and all(isinstance(x, str) for x in record.fields["answers"])
  ]
  found, _ = judgements.of_records(known)
  found = [x for x in found if x.annotator != judgements.GOLD]
  if not found:
    return None
  name = judgements.objectives(found)[0]
  agreed = agreement.raw_agreement(judgements.votes(found, name).table)
  return None if math.isnan(agreed) else agreed


def _rated(
  found: Sequence[RatedText],
  data: Data,
  tokenizer: Tokenizer,
  seed: int,
  fraction: float,
) -> Judged:
  """Returns pairs of rated texts, drawn as the reward run draws them."""
  if data.pairs < 1:
    raise FieldError(
      f"data.pairs={data.pairs}: comparisons are drawn from ratings; say how "
      "many, for example --config.data.pairs=4000."
    )
  drawn = dataset.comparisons(data, tokenizer, seed)
  if fraction:
    drawn = features.split_heldout(drawn, fraction, seed)[1]
  if found[0].messages is not None:  # those that the pairs are drawn from
    found, _, _ = dataset.dialogues(list(found), data, tokenizer)
  records = [(found[i], found[j]) for i, j in drawn.pairs]
  items = [
    Item(
      first.where,
      data.prompt,
      (first.text, second.text),
      [(0, 1, float(label))],
      objectives=_by_rating(first, second),
    )
    for (first, second), label in zip(records, drawn.labels, strict=True)
  ]
  rows = [[drawn.rows[i], drawn.rows[j]] for i, j in drawn.pairs]
  return Judged(records, items, rows, Counter(drawn.dropped), drawn.ceiling)


def _by_rating(first: RatedText, second: RatedText) -> dict[str, list[Pair]]:
  """Returns objective -> the pair, of dialogues that were rated by several."""
  return {
    name: _of_ranks((-first.objectives[name], -second.objectives[name]))
    for name in first.objectives.keys() & second.objectives.keys()
  }


def changed_rows(
  record: Any, texts: Sequence[str], data: Data, tokenizer: Tokenizer
) -> list[Row]:
  """Returns rows of changed answers of a record.

  Args:
    record: of `Judged.records`.
    texts: the answers.
    data, tokenizer: of `load`.

  Raises:
    encode.DroppedExample, UserError: one does not fit.
  """
  if not isinstance(record, tuple):
    return encode_answers(record, texts, data, tokenizer)["answers"]
  first = record[0]
  if first.messages is not None:
    raise UserError(f"{first.where}: a whole dialogue has no one answer.")
  rated = [dataclasses.replace(first, text=text) for text in texts]
  encode_one = dataset.encoder(rated, data, tokenizer)
  return [encode_one(text) for text in rated]
