"""Records from files and TensorFlow Datasets, with errors that name the line.

A source is a path (files.py says of what kinds), a pattern ("data/*.jsonl"),
"tfds:NAME[/CONFIG]:SPLIT[@DIR]", "hub:ORG/NAME[@REVISION]:SPLIT" (see
hub_sources.py), "challenges:FACTS" (see challenges.py), or several of these
with commas between. A record is a dict.
Nothing is skipped: a malformed line stops the reading.

TFDS is read through `tfds.data_source`, which needs array_record files
(`file_format="array_record"` when the data set is prepared) and no TensorFlow.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.data import challenges, files, hub_sources
from rlhf_jax.data.files import DataError, Located
from rlhf_jax.schema import FieldError, UserError, absence, check_local

TFDS_PREFIX = "tfds:"
# Of what is no file.
PREFIXES = (TFDS_PREFIX, hub_sources.PREFIX, challenges.PREFIX)
KINDS = ".jsonl, .json, .csv (each also with .gz) or .parquet"


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
  """Puts the place of a record before what is said of it.

  Args:
    where: "FILE:LINE".
  """
  try:
    yield
  except UserError as error:
    if str(error).startswith(where):
      raise
    raise DataError(f"{where}: {error}") from error


def parts(source: str | Path) -> list[str]:
  """Returns the parts of a source, which commas separate.

  Raises:
    DataError: a part is empty.
  """
  whole = os.path.expanduser(str(source))
  if "," not in whole or os.path.exists(whole):
    return [whole]
  found = [os.path.expanduser(part.strip()) for part in whole.split(",")]
  if not all(found):
    raise DataError(
      f"{str(source)!r} names no file before or after a comma. Leave it out."
    )
  return found


def paths(source: str | Path) -> list[Path]:
  """Returns the files of a source, in order, each there and readable.

  Args:
    source: a path, a pattern, or several of them with commas between; parts
      that are no files are passed over.

  Raises:
    DataError: one that is not there, of an unknown kind, or named twice.
  """
  found = [
    Path(path)
    for part in parts(source)
    if not part.startswith(PREFIXES)
    for path in _matching(part)
  ]
  seen: set[str] = set()
  for path in found:
    if not os.path.isfile(path):
      raise DataError(_complaint(path))
    if not files.kind(path):
      raise DataError(f"{path}: unknown kind of file. Give {KINDS}.")
    if os.path.realpath(path) in seen:  # a link to it is the same file
      raise DataError(
        f"{path} is named twice in {str(source)!r}. Name it once; `repeats` "
        "reads a part several times."
      )
    seen.add(os.path.realpath(path))
  return found


def _matching(part: str) -> list[str]:
  """Returns the paths that a pattern matches; what is none is a path."""
  if os.path.exists(part) or not glob.has_magic(part):
    return [part]
  found = sorted(glob.glob(part, recursive=True))
  if not found:
    raise DataError(f"{part}: no file matches this pattern. Correct it.")
  return found


def _complaint(path: Path) -> str:
  """Returns what is wrong with a path that is no file, and the remedy."""
  near = {
    other.name.partition(".")[0]: other.name
    for other in path.parent.glob("*")
    if other.is_file() and files.kind(other)
  }
  alike = difflib.get_close_matches(path.name.partition(".")[0], near, 1)
  hint = f" Did you mean {near[alike[0]]!r}?" if alike else ""
  return (
    f"{path}: {absence(path)}.{hint} Give the path of a file, {KINDS}, or "
    f"'{TFDS_PREFIX}NAME:SPLIT', or 'hub:ORG/NAME:SPLIT'."
  )


def check(source: str, field: str) -> None:
  """Raises FieldError unless the files of a source are there.

  A name of the hub is asked about; data sets of TFDS are looked for when they
  are read.

  Args:
    source: see `paths`.
    field: that gave it.
  """
  try:
    found = parts(source)
    for part in found:
      if part.startswith(hub_sources.PREFIX):
        hub_sources.pin(part, field)
      elif part.startswith(challenges.PREFIX):
        challenges.check(part, field)
      elif not part.startswith(TFDS_PREFIX):
        check_local(part, field)
    paths(source)
  except FieldError:
    raise
  except DataError as error:
    given = os.path.expanduser(source)
    message = str(error).removeprefix(f"{given}: ")
    raise FieldError(f"{field}={source!r}: {message}") from error


def each_of_tfds(source: str) -> Iterator[dict]:
  """Yields records of "tfds:NAME[/CONFIG]:SPLIT[@DIR]" without TensorFlow.

  Args:
    source: SPLIT is TFDS's, such as train or test[:100]; DIR is where the
      data set was prepared, TFDS's default folder when absent.

  Raises:
    DataError: TFDS is missing, or has no such data set, split or files.
  """
  body, _, folder = source.removeprefix(TFDS_PREFIX).partition("@")
  name, _, split = body.partition(":")
  if not name or not split:
    raise DataError(
      f"{source}: no data set or no split. Write "
      f"'{TFDS_PREFIX}NAME[/CONFIG]:SPLIT[@DIR]'."
    )
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise DataError(
      f"{source}: needs tensorflow_datasets ({error}), which is installed with "
      "this package. Install it with `pip install tensorflow-datasets`; "
      "TensorFlow itself is not needed."
    ) from error
  place = os.path.expanduser(folder) if folder else None
  index = -1
  try:
    data = tfds.data_source(name, split=split, data_dir=place)
    for index in range(len(data)):
      record = files.plain(data[index])
      yield {key: _messages(x) for key, x in record.items()}
  except UnicodeDecodeError as error:
    raise DataError(
      f"{source}:{index + 1}: bytes that are not UTF-8 ({error}). Use "
      "a data set of text features."
    ) from error
  except Exception as error:  # TFDS raises many kinds, all of them about this
    reason = (str(error).splitlines() or [""])[0][:200]  # it lists all names
    raise DataError(
      f"{source}: TFDS cannot read it ({type(error).__name__}: {reason}). "
      "Prepare it once with tfds.builder(NAME, file_format='array_record')"
      ".download_and_prepare(), or pairs of your own with `python -m "
      "rlhf_jax.data PAIRS --prepare=NAME@DIR`, and check the split and the "
      "folder after '@'."
    ) from error
  if index < 0:
    raise DataError(f"{source}: the split is empty. Choose another split.")


def _messages(value: Any) -> Any:
  """Returns a list of messages of what TFDS makes of one: a dict of lists."""
  if not isinstance(value, dict) or not {"role", "content"} <= set(value):
    return value
  columns = list(value.values())
  if not all(isinstance(column, list) for column in columns):
    return value
  return [
    dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)
  ]


def read_located(source: str | Path) -> Located:
  """Returns (where, record) of all records of a source, in order.

  Raises:
    DataError: missing, of an unknown kind, or malformed.
  """
  return list(each(source))


def each(source: str | Path) -> Iterator[tuple[str, dict]]:
  """Yields what `read_located` returns; few records are in memory at a time."""
  check_twice(source)
  for part in parts(source):
    yield from _each_of_part(part)


def _each_of_part(part: str) -> Iterator[tuple[str, dict]]:
  if part.startswith(TFDS_PREFIX):
    for number, record in enumerate(each_of_tfds(part), 1):
      yield f"{part}:{number}", record
    return
  if part.startswith(challenges.PREFIX):
    yield from challenges.each(part)
    return
  if part.startswith(hub_sources.PREFIX):
    found = hub_sources.fetch(part)
  else:
    found = paths(part)
  for path in found:
    yield from files.each(path)


def check_twice(source: str | Path) -> None:
  """Raises DataError where two parts of a source are the same."""
  found = [part for part in parts(source) if part.startswith(PREFIXES)]
  twice = [part for n, part in enumerate(found) if part in found[:n]]
  if twice:
    raise DataError(
      f"{twice[0]} is named twice in {str(source)!r}. Name it once; `repeats` "
      "reads a part several times."
    )
  if not str(source).startswith("asset:"):
    paths(source)


def first(source: str | Path) -> tuple[str, dict]:
  """Returns (where, record) of the first record of a source."""
  return next(each(source))
