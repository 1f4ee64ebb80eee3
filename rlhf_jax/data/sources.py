"""Records from files and TensorFlow Datasets, with errors that name the line.

A source is a path (.jsonl, .jsonl.gz) or "tfds:NAME[/CONFIG]:SPLIT[@DIR]".
A record is a dict; the n-th record of a file is its n-th line, because blank
lines are refused too. Nothing is skipped: a malformed line stops the reading.

TFDS is read through `tfds.data_source`, which needs array_record files
(`file_format="array_record"` when the data set is prepared) and no TensorFlow.

Left out: parquet and csv.
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlhf_jax.schema import FieldError, UserError, check_local

TFDS_PREFIX = "tfds:"


class DataError(UserError):
  """Data that cannot be used: where it is, what is wrong, what to do."""


def check_path(source: str, field: str) -> None:
  """Raises FieldError unless a path is one of a file that is there.

  Args:
    source: the path.
    field: that gave it.
  """
  check_local(source, field)
  path = Path(source).expanduser()
  if not path.is_file():
    is_folder = "is a folder, not a file" if path.is_dir() else "no such file"
    near = {
      other.name.partition(".")[0]: other.name
      for other in path.parent.glob("*.jsonl*")
    }
    stem = path.name.partition(".")[0]
    alike = difflib.get_close_matches(stem, near, 1)
    hint = f" Did you mean {near[alike[0]]!r}?" if alike else ""
    raise FieldError(
      f"{field}={source!r}: {is_folder}.{hint} Give the path of a .jsonl or "
      ".jsonl.gz file."
    )


def _lines(path: Path) -> Iterator[bytes]:
  """Yields the lines of a plain or gzipped file, naming where it breaks."""
  opener = gzip.open if path.suffix == ".gz" else open
  number = 0
  try:
    with opener(path, "rb") as file:
      for line in file:
        number += 1
        yield line
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise DataError(
      f"{path}:{number + 1}: the gzip stream breaks off here ({error}). "
      "Download the file again, or decompress it if it is plain text."
    ) from error
  except OSError as error:
    raise DataError(
      f"{path}: cannot be read ({error}). Check its path and permissions."
    ) from error


def _refuse_constant(name: str):
  raise UserError(f"{name} is not JSON")


def _parse_line(line: bytes, where: str) -> dict:
  try:
    text = line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
      f"{error.start + 1}). Convert the file to UTF-8."
    ) from error
  if not text.strip():
    raise DataError(f"{where}: blank line. Remove it: one object a line.")
  try:
    record = json.loads(text, parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as error:
    raise DataError(
      f"{where}: not JSON ({error}): {text.strip()[:60]!r}. Write one JSON "
      "object a line."
    ) from error
  if not isinstance(record, dict):
    raise DataError(
      f"{where}: a {type(record).__name__}, not an object: "
      f"{text.strip()[:60]!r}. Write one JSON object a line."
    )
  return record


def read_jsonl(path: str | Path) -> list[dict]:
  """Reads one JSON object a line from .jsonl or .jsonl.gz.

  Raises:
    DataError: "FILE:LINE: reason. remedy" at the first line that is not one.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise DataError(
      f"{path}: no such file. Give the path of a .jsonl or .jsonl.gz file, or "
      f"a TFDS source such as '{TFDS_PREFIX}name:train'."
    )
  records = [
    _parse_line(line, f"{path}:{number}")
    for number, line in enumerate(_lines(path), 1)
  ]
  if not records:
    raise DataError(f"{path}:1: the file is empty. Write one object a line.")
  return records


def _plain(value):
  """Returns a TFDS value as str, int, float, bool, list or dict."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return [_plain(item) for item in value]
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, bytes):
    return value.decode("utf-8")
  return value


def read_tfds(source: str) -> list[dict]:
  """Reads "tfds:NAME[/CONFIG]:SPLIT[@DIR]" without TensorFlow.

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
      f"{source}: needs tensorflow_datasets ({error}). Install it with "
      "`pip install 'rlhf_jax[tfds]'`; TensorFlow itself is not needed."
    ) from error
  try:
    data = tfds.data_source(name, split=split, data_dir=folder or None)
    records = []
    for index in range(len(data)):
      records.append(_plain(data[index]))
  except UnicodeDecodeError as error:
    raise DataError(
      f"{source}:{len(records) + 1}: bytes that are not UTF-8 ({error}). Use "
      "a data set of text features."
    ) from error
  except Exception as error:  # TFDS raises many kinds, all of them about this
    raise DataError(
      f"{source}: TFDS cannot read it ({type(error).__name__}: {error}). "
      "Prepare it once with tfds.builder(NAME, file_format='array_record')"
      ".download_and_prepare() and check the split and the folder after '@'."
    ) from error
  if not records:
    raise DataError(f"{source}: the split is empty. Choose another split.")
  return records


def read_source(source: str | Path) -> list[dict]:
  """Reads the records of a path or a TFDS source (see the module docstring).

  Raises:
    DataError: missing, of an unknown kind, or malformed.
  """
  name = str(source)
  if name.startswith(TFDS_PREFIX):
    return read_tfds(name)
  if not name.endswith((".jsonl", ".jsonl.gz")):
    raise DataError(
      f"{name}: unknown kind of file. Give .jsonl, .jsonl.gz or "
      f"'{TFDS_PREFIX}NAME:SPLIT'."
    )
  return read_jsonl(name)
