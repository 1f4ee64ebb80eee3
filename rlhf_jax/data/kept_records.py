"""Which records of a source are used: rated texts by length, mixtures.

Each says what it left out or drew, as counts for the log.
"""

from __future__ import annotations

from collections import Counter

from rlhf_jax.data import by_field, formats, mixture, sources, streams
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import FieldError

DRAWN = "drawn from"  # how a count begins that is a note


def mixed(parts: list[list], data: Data, dropped: Counter) -> list:
  """Returns the records of a pass over several parts, and counts them.

  The parts are those of the source, or with weights "en:1,de:3" the values of
  data.by.

  Args:
    parts: records of each part of the source.
    data: the section, with weights or repeats.
    dropped: takes a note of each part.

  Raises:
    DataError: a part without a record.
  """
  names, read = sources.parts(data.source), mixture.numbers
  if ":" in (data.weights if data.weights else data.repeats):
    names, parts = by_field.by_value(parts, data)

    def read(text: str) -> list[float]:
      return list(mixture.named(text).values())

  empty = [name for name, part in zip(names, parts, strict=True) if not part]
  if empty:
    raise DataError(
      f"{empty[0]}: no record is left of this part of the source "
      f"({dict(dropped)}). Leave it out, or loosen what leaves records out."
    )
  if data.weights:
    weights = read(data.weights)
    repeats = mixture.times([len(part) for part in parts], weights)
  else:
    repeats = read(data.repeats)
  drawn = mixture.draw(parts, repeats, data.split_seed)
  counts = Counter(number for number, _ in drawn)
  for number, name in enumerate(names):
    size = len(parts[number])
    note = f"{DRAWN} {name}, {counts[number] / size:.2f} times its {size}"
    dropped[note] += counts[number]
  return [record for _, record in drawn]


def by_length(
  found: list, data: Data, tokenizer: Tokenizer, dropped: Counter
) -> list:
  """Returns the rated texts that are neither too short nor too long.

  Args:
    found: rated texts.
    data: the section.
    tokenizer: of the model.
    dropped: reason -> count, changed.
  """
  kept = []
  for record in found:
    if len(record.text.split()) < data.min_words:
      dropped["fewer than min_words"] += 1
    elif (
      data.max_text_tokens
      and len(streams.rated("", record.text, tokenizer)[1])
      > data.max_text_tokens
    ):
      dropped["more than max_text_tokens"] += 1
    else:
      kept.append(record)
  return kept


def check_rated(found: list, data: Data) -> None:
  """Raises FieldError where fields of rated texts are set for others."""
  if not isinstance(found[0], formats.RatedText):
    raise FieldError(
      f"min_words={data.min_words}, max_text_tokens={data.max_text_tokens}, "
      f"split={data.split!r}: for rated texts only, and {data.source} was read "
      f"with format={data.format!r}. Set them to 0, 0 and ''."
    )
