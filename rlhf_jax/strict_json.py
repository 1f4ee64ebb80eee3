"""JSON as people give it: what is ambiguous, or no text, is refused.

Python's reader takes more than JSON: NaN, numbers that overflow, a key that
stands twice (the last one wins), half of a surrogate pair, which no tokenizer
can encode. Here each of them is a ValueError that says what and in which field;
where it stands the caller knows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.schema import UserError

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_DIGITS = 308  # of a whole number; beyond, float() overflows


def loads(text: str, *, allows_nan: bool = False) -> Any:
  """Returns the value of a JSON text.

  Args:
    text: all of it.
    allows_nan: takes NaN and Infinity, which Python writes.

  Raises:
    ValueError: the reason, without a place.
  """
  hooks = {"object_pairs_hook": _object, "parse_int": _whole}
  if not allows_nan:
    hooks |= {"parse_constant": _constant, "parse_float": _number}
  try:
    value = json.loads(text, **hooks)
    if _ESCAPED_SURROGATE.search(text):
      _check_texts(value, "")
  except RecursionError:
    raise ValueError("its lists and objects are nested too deep") from None
  return value


def decode(content: bytes) -> str:
  """Returns UTF-8 text, without a byte order mark.

  Raises:
    ValueError: the first byte that is none, and its column.
  """
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"not UTF-8 (byte {content[error.start]:#04x} at column "
      f"{error.start + 1})"
    ) from error


def read_object(
  path: Path, remedy: str, *, allows_nan: bool = False
) -> dict[str, Any]:
  """Returns the object that a file holds.

  Args:
    path: a regular file.
    remedy: the last sentence of the message.
    allows_nan: see `loads`.

  Raises:
    UserError: the file holds something else.
  """
  try:
    value = loads(decode(path.read_bytes()), allows_nan=allows_nan)
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}). {remedy}") from error
  if not isinstance(value, dict):
    raise UserError(
      f"{path}: holds a {type(value).__name__}, not an object. {remedy}"
    )
  return value


def read_rows(
  path: Path, kinds: Mapping[str, Any], remedy: str
) -> list[dict[str, Any]]:
  """Returns the objects of a file with one a line.

  Args:
    path: a regular file.
    kinds: field -> type of what each must hold.
    remedy: the last sentence of the message.

  Raises:
    UserError: names the first line that is something else.
  """
  rows = []
  for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
    if not line.strip():
      continue
    try:
      row = loads(decode(line), allows_nan=True)
    except ValueError as error:
      raise UserError(
        f"{path}:{number}: not JSON ({error}). {remedy}"
      ) from error
    for name, kind in kinds.items():
      if not isinstance(row, dict) or not isinstance(row.get(name), kind):
        raise UserError(
          f"{path}:{number}: no row with a {name!r}: {row!r:.60}. {remedy}"
        )
    rows.append(row)
  return rows


def plain(value: Any) -> Any:
  """Returns a tree as JSON has it: null for NaN, objects for named tuples.

  Args:
    value: mappings, sequences, arrays, numbers and texts.
  """
  if hasattr(value, "_asdict"):
    return plain(value._asdict())
  if isinstance(value, Mapping):
    return {str(key): plain(x) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(x) for x in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"key {twice!r} stands twice in one object")
  return found


def _constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"the number {text[:20]} is too large")
  return value


def _whole(text: str) -> int:
  if len(text) > _MOST_DIGITS:
    raise ValueError(f"a number of {len(text)} digits is too large")
  return int(text)


def _check_texts(value: Any, field: str) -> None:
  """Raises ValueError for a text that cannot be encoded, naming its field."""
  if isinstance(value, dict):
    for key, item in value.items():
      _check_texts(key, f"{field}, a key")
      _check_texts(item, f"{field}.{key}" if field else key)
  elif isinstance(value, list):
    for number, item in enumerate(value):
      _check_texts(item, f"{field}[{number}]")
  elif isinstance(value, str):
    found = _SURROGATE.search(value)
    if found is not None:
      raise ValueError(
        f"field {field.removeprefix(', ')!r}: half of a surrogate pair, "
        f"\\u{ord(found[0]):04x}, at character {found.start() + 1} is no "
        "text"
      )
