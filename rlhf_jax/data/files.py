"""Files of records: .jsonl, .json, .csv, .parquet, plain or gzipped.

`read` returns (where, record) pairs; `where` is "FILE:LINE", the line on which
a record begins, or its number in a .json or .parquet file. Nothing is skipped:
what is malformed stops the reading.

  .jsonl     one object a line; blank lines only after the last one
  .json      a list of objects
  .csv       a header; all cells are text, but for JSON_COLUMNS, and messages
             as JSON in place of a text
  .parquet   one record a row

A byte order mark is passed over. Left out: .arrow, .zst, .bz2.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.schema import UserError

Located = list[tuple[str, dict[str, Any]]]  # (where, record)

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
JSON_COLUMNS = ("label", "ratings", "messages")  # of a .csv file
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "response")  # or messages
_OF_PYTHON = re.compile(r"\[\{'\w+': ")  # a list of dicts as Python prints it
_ONE_OBJECT = "Write one JSON object a line."
# How files of other kinds begin -> what they are, and what to do.
_OTHERS = {
  b"\x1f\x8b": "compressed with gzip: end its name with .gz",
  b"PK\x03\x04": "a zip archive: unpack it",
  b"PAR1": "a parquet file: end its name with .parquet",
  b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it",
  b"BZh": "compressed with bzip2: decompress it",
  b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
  b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}
_BATCH = 1024  # rows of a .parquet file that are in memory at a time
_LARGEST_CELL = 2**31 - 1  # characters


class DataError(UserError):
  """Data that cannot be used: where it is, what is wrong, what to do."""


def kind(path: Path) -> str:
  """Returns the suffix of SUFFIXES that says how a file is read, or ""."""
  name = path.name.lower()
  if name.endswith(".parquet.gz"):  # it is compressed inside
    return ""
  name = name.removesuffix(".gz")
  found = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
  return found[0] if found else ""


def read(path: Path) -> Located:
  """Returns the records of a file, at least one; errors are those of `each`."""
  return list(each(path))


def each(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the records of a file, at least one.

  Of a .jsonl or .parquet file few are in memory at a time, of others all.

  Raises:
    DataError: "FILE:LINE: reason. remedy" at the first that is not one.
  """
  readers = {
    ".jsonl": _read_lines,
    ".json": _read_list,
    ".csv": _read_table,
    ".parquet": _read_parquet,
  }
  is_empty = True
  for pair in readers[kind(path)](path):
    is_empty = False
    yield pair
  if is_empty:
    remedy = {
      ".jsonl": _ONE_OBJECT,
      ".json": "Write a list of objects.",
      ".csv": "Write a header and a row for each record.",
      ".parquet": "Write a row for each record.",
    }
    raise DataError(f"{path}:1: the file is empty. {remedy[kind(path)]}")


def plain(value: Any) -> Any:
  """Returns a value of numpy or TFDS as str, int, float, bool, list or dict."""
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (np.ndarray, list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, np.generic):
    return plain(value.item())
  if isinstance(value, bytes):
    return value.decode("utf-8")
  return value


def _lines(path: Path) -> Iterator[bytes]:
  """Yields the lines of a plain or gzipped file, naming where it breaks."""
  opener = gzip.open if path.suffix == ".gz" else open
  number = 0
  try:
    with opener(path, "rb") as file:
      for line in file:
        number += 1
        if number == 1:
          _check_beginning(line, path)
        yield line
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    remedy = "Download the file again."
    if not number and isinstance(error, gzip.BadGzipFile):
      remedy = "If it is plain text, take .gz from its name."
    raise DataError(
      f"{path}:{number + 1}: the gzip stream breaks off here ({error}). "
      f"{remedy}"
    ) from error
  except OSError as error:
    raise DataError(
      f"{path}: cannot be read ({error}). Check its path and permissions."
    ) from error


def _check_beginning(line: bytes, path: Path) -> None:
  """Raises DataError for a file of another kind than its name says."""
  for begins, what in _OTHERS.items():
    if line.startswith(begins):
      raise DataError(f"{path}:1: not text, but {what}.")


def _text_of_line(line: bytes, where: str, number: int) -> str:
  """Returns a line as text; only the first may begin with a mark."""
  try:
    return strict_json.decode(line) if number == 1 else line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
      f"{error.start + 1}). Convert the file to UTF-8."
    ) from error
  except ValueError as error:
    raise DataError(f"{where}: {error}. Convert the file to UTF-8.") from error


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  blank = ""
  for number, line in enumerate(_lines(path), 1):
    where = f"{path}:{number}"
    text = _text_of_line(line, where, number)
    if not text.strip():
      blank = blank if blank else where
      continue
    if blank:
      raise DataError(
        f"{blank}: blank line between records. Remove it: one object a line."
      )
    yield where, _parsed(text, where)


def _parsed(text: str, where: str) -> dict[str, Any]:
  """Returns the record of one line."""
  shown = text.strip()[:60]
  try:
    record = strict_json.loads(text)
  except json.JSONDecodeError as error:
    raise DataError(
      f"{where}: not JSON ({error}): {shown!r}. {_ONE_OBJECT}"
    ) from error
  except ValueError as error:  # what strict_json.py refuses
    raise DataError(
      f"{where}: not JSON that can be used ({error}): {shown!r}. Correct it."
    ) from error
  return _object(record, where, shown, _ONE_OBJECT)


def _object(value: Any, where: str, shown: str, remedy: str) -> dict:
  if not isinstance(value, dict):
    raise DataError(
      f"{where}: a {type(value).__name__}, not an object: {shown!r}. {remedy}"
    )
  return value


def _read_list(path: Path) -> Located:
  content = b"".join(_lines(path))
  if not content.strip():
    return []
  try:
    values = strict_json.loads(strict_json.decode(content))
  except ValueError as error:
    remedy = "Download the file again."
    if "Extra data" in str(error):
      remedy = "If it holds one object a line, name it .jsonl."
    raise DataError(f"{path}: not JSON ({error}). {remedy}") from error
  if not isinstance(values, list):
    raise DataError(
      f"{path}: holds a {type(values).__name__}, not a list of objects. Write "
      "a list, or a .jsonl file with one object a line."
    )
  return [
    (
      f"{path}:{number}",
      _object(value, f"{path}:{number}", str(value)[:60], "Correct it."),
    )
    for number, value in enumerate(values, 1)
  ]


def _read_table(path: Path) -> Located:
  lines = enumerate(_lines(path), 1)
  text = [_text_of_line(line, f"{path}:{n}", n) for n, line in lines]
  csv.field_size_limit(_LARGEST_CELL)
  reader = csv.reader(io.StringIO("".join(text), newline=""), strict=True)
  found, header, begins = [], None, 1
  try:
    for row in reader:
      where, begins = f"{path}:{begins}", reader.line_num + 1
      if header is None:
        header = row
        _check_header(header, where)
      elif row:
        found.append((where, _record_of_row(header, row, where)))
  except csv.Error as error:
    raise DataError(
      f"{path}:{reader.line_num}: not CSV ({error}). Put cells with commas, "
      "quotes or line breaks between double quotes."
    ) from error
  return found


def _check_header(header: list[str], where: str) -> None:
  twice = [name for name in header if header.count(name) > 1]
  if twice or not all(name.strip() for name in header):
    what = f"column {twice[0]!r} stands twice" if twice else "a blank name"
    raise DataError(
      f"{where}: {what} in the header {header}. Name each column once."
    )
  if header[0].lstrip().startswith(("{", "[")):
    raise DataError(
      f"{where}: the header begins with {header[0][:60]!r}, which is JSON. "
      "Name the file .jsonl or .json."
    )
  if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
    raise DataError(
      f"{where}: one column, {header[0][:60]!r}; cells are separated by "
      "commas. Write it so, or as .jsonl."
    )


class Row(dict):
  """A record of a .csv file: its cells are texts until they are named."""


def _record_of_row(header: list[str], row: list[str], where: str) -> Row:
  if len(row) != len(header):
    raise DataError(
      f"{where}: {len(row)} cells under a header of {len(header)} "
      f"({', '.join(header)[:60]}). Correct the row."
    )
  return Row(
    (name, value_of_cell(x, name, where, name))
    for name, x in zip(header, row, strict=True)
  )


def value_of_cell(cell: str, name: str, where: str, column: str) -> Any:
  """Returns what a cell of CSV holds: a text, or what its JSON spells.

  Args:
    cell: its text.
    name: of the field that it is, which says how it is read.
    where: its place.
    column: what the file calls the field, for messages.

  Raises:
    DataError: not JSON where that is read, or a list as Python prints it.
  """
  if name in _TEXT_COLUMNS:
    return _text_or_messages(cell, column, where)
  if name not in JSON_COLUMNS:
    return cell
  try:
    return strict_json.loads(cell)
  except ValueError as error:
    raise DataError(
      f"{where}: column {column!r} holds {cell[:60]!r}, not JSON ({error}). "
      "Write a number, true, false or a list."
    ) from error


def _text_or_messages(cell: str, name: str, where: str) -> Any:
  """Returns a cell's text, or the messages that it spells as JSON."""
  if _OF_PYTHON.match(cell):
    raise DataError(
      f"{where}: column {name!r} holds {cell[:60]!r}, a list as Python prints "
      "it. Write JSON (json.dumps), or a .jsonl or .parquet file."
    )
  if not cell.startswith("[{"):
    return cell
  try:
    value = strict_json.loads(cell)
  except ValueError:
    return cell
  is_messages = all(isinstance(m, dict) and "role" in m for m in value)
  return value if is_messages else cell


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise DataError(
      f"{path}: needs pyarrow ({error}). Install it with `pip install "
      "pyarrow`, or convert the file to .jsonl."
    ) from error
  number = 0
  try:
    with parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=_BATCH):
        rows = [plain(row) for row in batch.to_pylist()]
        for number, row in enumerate(rows, number + 1):  # noqa: B020
          yield f"{path}:{number}", row
  except Exception as error:  # pyarrow raises many kinds, all about this file
    raise DataError(
      f"{path}: not a readable parquet file ({type(error).__name__}: "
      f"{str(error)[:200]}). Download it again, or convert it to .jsonl."
    ) from error
