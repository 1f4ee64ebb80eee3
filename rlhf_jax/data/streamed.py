"""Demonstrations beyond memory: record by record from their files to disk.

With store="disk" no more than one record is in memory at a time (of .csv and
.json files one file), and about 100 bytes of each for what it asks and says.
Rows are those of store="memory", in the same order; what held-out data shares
and what repeats is counted by 64-bit keys, without places. Nothing behind
`limit` is read.

Left out: near repeats, which hold all texts in memory, and mixtures by weight.
"""

from __future__ import annotations

import functools
import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data import (
  caches,
  disk_rows,
  encode,
  formats,
  markup,
  reading,
  records,
  sources,
)
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.examples import Demonstration, Example
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer

EVERY_SECONDS = 10.0  # between lines that say how far it is


class Keys(NamedTuple):
  """What records say and ask, as numbers that are equal where those are.

  said: [N] uint64, of each record.
  asked: [M] uint64, of each turn that a record answers.
  asker: [M] int64, the record of each of them.
  """

  said: np.ndarray
  asked: np.ndarray
  asker: np.ndarray


class Streamed(NamedTuple):
  """The rows of a section, what was left out or cut, and its records' keys."""

  rows: disk_rows.DiskRows
  dropped: Counter
  keys: Keys


def _key(text: str) -> int:
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
  return int.from_bytes(digest.digest(), "little")


class _KeyList:
  """Keys of records, one after the other."""

  def __init__(self) -> None:
    self.said, self.asked, self.asker = array("Q"), array("Q"), array("q")

  def add(self, record: Example) -> None:
    for key in formats.answered_keys(record):
      self.asked.append(_key(key))
      self.asker.append(len(self.said))
    self.said.append(_key(formats.record_key(record)))

  def done(self) -> Keys:
    return Keys(
      np.asarray(self.said, np.uint64),
      np.asarray(self.asked, np.uint64),
      np.asarray(self.asker, np.int64),
    )


def keys_of(found: list[Example]) -> Keys:
  """Returns the keys of records that are in memory."""
  keys = _KeyList()
  for record in found:
    keys.add(record)
  return keys.done()


def _records(data: Data, dropped: Counter) -> Iterator[Example]:
  """Yields the records that are kept, and counts the others."""
  parts = sources.parts(data.source)
  excluded = reading.excluded_keys(data)
  why = f"ask what {data.exclude} asks"
  seen: set[int] = set()
  names = Columns(data.columns)
  for part, format in zip(parts, data.formats(), strict=True):
    for record in formats.each(part, format, names):
      if isinstance(record, records.RefusedExample):
        dropped[record.reason] += 1
        continue
      if not isinstance(record, Demonstration):
        raise DataError(
          f"{record.where}: format={format!r} gives a "
          f"{type(record).__name__}, and store='disk' is for demonstrations. "
          "Set store='memory'."
        )
      if excluded and not excluded.isdisjoint(formats.answered_keys(record)):
        dropped[why] += 1
        continue
      if data.duplicates != "keep":
        key = _key(formats.record_key(record))
        if key in seen:
          dropped[reading.REPEATED] += 1
          continue
        seen.add(key)
      yield record
  names.check(data.source)


def _rows(
  data: Data,
  tokenizer: Tokenizer,
  encoder: Callable[[Any], dict],
  dropped: Counter,
  keys: _KeyList,
) -> Iterator[dict]:
  """Yields rows; fills in what was left out or cut, and the keys of records."""
  known = markup.marks(tokenizer, data.chat)
  marked: list[tuple[str, str]] = []  # the first, for its place
  count, count_marked, said_at = 0, 0, time.monotonic()

  def counted() -> Iterator[Example]:
    nonlocal count, count_marked
    for record in _records(data, dropped):
      if data.limit and count == data.limit:
        return
      count += 1
      keys.add(record)
      mark = markup.mark_in(record, known)
      if mark is not None:
        count_marked += 1
        marked[:] = marked or [(record.where, mark)]
      yield record

  for _, row, reasons in encode.each(encoder, counted()):
    dropped.update(reasons)
    if time.monotonic() - said_at >= EVERY_SECONDS:
      said_at = time.monotonic()
      print(f"reading {data.source}: {count} records", flush=True)
    if row is not None:
      yield row
  if marked:
    dropped[markup.describe(marked)] += count_marked


@functools.lru_cache(maxsize=4)
def _load(
  data: Data,
  tokenizer: Tokenizer,
  encoder: Callable[..., Callable[[Any], dict]],
  states: tuple,
) -> Streamed:
  """Returns what `load` does; states: of files, and how text is rendered."""
  del states
  dropped: Counter = Counter()
  keys = _KeyList()
  made = encoder([Demonstration("")], data, tokenizer)
  rows = disk_rows.write(
    _rows(data, tokenizer, made, dropped, keys), caches.directory()
  )
  return Streamed(rows, dropped, keys.done())


def load(
  data: Data,
  tokenizer: Tokenizer,
  encoder: Callable[..., Callable[[Any], dict]],
) -> Streamed:
  """Returns the rows of a section with store="disk"; made once in a process.

  Args:
    data: the section.
    tokenizer: of the model.
    encoder: dataset.encoder.

  Raises:
    DataError: malformed, with file and line, or not demonstrations.
  """
  how = tuple(
    str(getattr(tokenizer, name, None))
    for name in (
      *("chat_template", "prompt_end", "template_day"),
      "template_variables",
    )
  )
  return _load(data, tokenizer, encoder, (reading.states(data), how))


def repeats(keys: Keys) -> int:
  """Returns how many records say what an earlier one says."""
  return len(keys.said) - len(np.unique(keys.said))


def shared(train: Keys, held: Keys) -> int:
  """Returns how many held-out records ask what training records ask."""
  is_shared = np.isin(held.asked, train.asked)
  return len(np.unique(held.asker[is_shared]))
