"""A Data section -> its records: parts read once, repeats left out.

A source has parts, with commas between: files, patterns, tfds:NAME:SPLIT. Each
is read once in a process, as long as its files stay as they are. What repeats
an earlier record of any part is left out where the section says so, and so is
what another source asks (`exclude`): exactly (overlap.py), or nearly (near.py).
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

from rlhf_jax import imported
from rlhf_jax.data import (
  assets,
  challenges,
  chitchat,
  formats,
  near,
  records,
  sources,
)
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError

MANY = 50_000  # records whose comparison takes long enough to be announced
REPEATED, NEARLY = "repeat an earlier one", "nearly repeat an earlier one"


class Reading(NamedTuple):
  """The records of a source.

  parts: examples of each part of the source.
  refused: records that teach nothing; each says where and why.
  left_out: (why, place) of what the section leaves out.
  """

  parts: tuple[tuple[Any, ...], ...]
  refused: tuple[records.RefusedExample, ...]
  left_out: tuple[tuple[str, str], ...]


def _state(part: str) -> tuple[tuple[int, int], ...]:
  """Returns times and sizes of the files of a part."""
  if part.startswith(challenges.PREFIX):
    return challenges.state(part)
  if part.startswith(("asset:", *sources.PREFIXES)):
    return ()
  states: list[os.stat_result] = [path.stat() for path in sources.paths(part)]
  return tuple((state.st_mtime_ns, state.st_size) for state in states)


@functools.lru_cache(maxsize=16)
def _read(
  part: str,
  format: str,
  columns: str,
  changed: tuple[tuple[int, int], ...],
) -> tuple[list, list[records.RefusedExample], set[str]]:
  """Returns the records of a part, what was refused, and missing columns.

  It is read once.

  Args:
    part: of a source.
    format: how a record is laid out.
    columns: of the section.
    changed: its `_state`, so that another file is read anew.
  """
  del changed
  names = Columns(columns)
  if part.startswith("asset:"):
    name, _, piece = part.removeprefix("asset:").partition(":")
    path = assets.fetch(name)
    if assets.is_rated(part):
      return assets.movie_reviews(path), [], names.missing
    found = chitchat.located(path, piece)
    read = formats.divided(formats.parsed(found, format, part, names))
  else:
    read = formats.load_and_refuse(part, format, names)
  return *read, names.missing


def states(data: Data) -> tuple:
  """Returns times and sizes of all files of a section."""
  found = sources.parts(data.source)
  found += sources.parts(data.exclude) if data.exclude else []
  return tuple(map(_state, found))


def read(data: Data) -> Reading:
  """Returns the records of a section, before filters, shares and limit.

  Raises:
    DataError: missing or malformed, with file and line; parts of several
      kinds.
  """
  sources.check_twice(data.source)
  parts = sources.parts(data.source)
  key = tuple(
    (part, format, data.columns, _state(part))
    for part, format in zip(parts, data.formats(), strict=True)
  )
  return _distinct(key, data.duplicates, data.near, _others(data))


def _others(data: Data) -> tuple:
  """Returns (part, state) of the source whose prompts are left out."""
  if not data.exclude:
    return ()
  return tuple((part, _state(part)) for part in sources.parts(data.exclude))


def _asked(others: tuple, format: str, columns: str) -> list[Any]:
  """Returns the records of the source whose prompts are left out.

  Args:
    others: its `_others`.
    format: of the section; a parser of the user's reads both.
    columns: of the section; they hold where the source has them.
  """
  found = []
  for other, state in others:
    is_known = other.startswith("asset:") or imported.is_path(format)
    if not is_known:
      first = Columns(columns).rename(sources.first(other)[1], other)
      format = formats.guess(first, other)
    found += _read(other, format, columns, state)[0]
  return found


def excluded_keys(data: Data) -> set[str]:
  """Returns the keys of the prompts that are left out of a section."""
  format = data.format.partition(",")[0].strip()
  found = _asked(_others(data), format, data.columns)
  return {formats.prompt_key(record) for record in found}


@functools.lru_cache(maxsize=8)
def _distinct(
  key: tuple, duplicates: str, least: float, others: tuple
) -> Reading:
  """Returns what `read` does.

  Args:
    key: (part, format, columns, state) of each part.
    duplicates, least: of the section.
    others: (part, state) of the source whose prompts are left out.
  """
  found = [_read(*part) for part in key]
  names = Columns(key[0][2])
  names.missing = set.intersection(*(missing for *_, missing in found))
  names.check(", ".join(part for part, *_ in key))
  kinds = {
    type(examples[0]): part[0]
    for (examples, *_), part in zip(found, key, strict=True)
  }
  if len(kinds) > 1:
    shown = ", ".join(
      f"{kind.__name__} ({part})" for kind, part in kinds.items()
    )
    raise DataError(
      f"the parts of a source hold records of several kinds: {shown}. Give "
      "parts of one kind."
    )
  parts = [examples for examples, *_ in found]
  refused = tuple(error for _, errors, _ in found for error in errors)
  left_out: list[tuple[str, str]] = []
  if others:
    asked = _asked(others, key[0][1], key[0][2])
    parts = _without(parts, others, asked, least, left_out)
  if duplicates != "keep":
    parts = _once(parts, least if duplicates == "near" else 0.0, left_out)
  return Reading(tuple(map(tuple, parts)), refused, tuple(left_out))


def _once(parts: list, least: float, left_out: list) -> list:
  """Returns the parts without what repeats an earlier record of any of them."""
  announce(sum(map(len, parts)) if least else 0)
  seen: set[str] = set()
  indices = near.indices(least)
  found = []
  for part in parts:
    kept = []
    for record in part:
      key = formats.record_key(record)
      if key in seen:
        left_out.append((REPEATED, record.where))
      elif least and indices[formats.annotator_of(record)].find(
        formats.record_texts(record), record.where
      ):
        left_out.append((NEARLY, record.where))
      else:
        seen.add(key)
        kept.append(record)
    found.append(kept)
  return found


def _without(
  parts: list, others: tuple, asked: list, least: float, left_out: list
) -> list:
  """Returns the parts without what another source asks, exactly or nearly."""
  keys: set[str] = set()
  index = near.Index(least) if least else None
  names = ", ".join(part for part, _ in others)
  for record in asked:
    keys.add(formats.prompt_key(record))
    if index is not None:
      index.find((formats.asked_text(record),), record.where)
  announce(sum(map(len, parts)) if least else 0)
  why = f"ask what {names} asks"
  found = []
  for part in parts:
    kept = []
    for record in part:
      is_same = not keys.isdisjoint(formats.answered_keys(record))
      if is_same or (
        index is not None
        and any(index.find((text,)) for text in formats.answered_texts(record))
      ):
        left_out.append((why, record.where))
      else:
        kept.append(record)
    found.append(kept)
  return found


def announce(count: int) -> None:
  """Says that a comparison of many records begins; it takes a while."""
  if count >= MANY:
    print(f"looking for near repeats among {count} records", flush=True)
