"""GGUF files (llama.cpp), opened so that a damaged one is said, not waited for.

The reader of the gguf package takes a length that a damaged file gives and
loops over it, past the end of the file; here reading past the end stops it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlhf_jax.schema import UserError, absence


class _Reader(gguf.GGUFReader):
  """Reads nothing beyond the end of its file."""

  def _get(
    self, offset: int, dtype: Any, count: int = 1, **further: Any
  ) -> Any:
    size = int(count)
    if len(self.data) < offset + size * np.dtype(dtype).itemsize:
      raise ValueError(f"it ends within {size} values at byte {offset}")
    return super()._get(offset, dtype, count, **further)


def open_file(path: str | Path) -> gguf.GGUFReader:
  """Returns the reader of a GGUF file.

  Raises:
    UserError: another kind of file, or a damaged one.
    FileNotFoundError: no file is there.
  """
  if not Path(path).is_file():
    raise FileNotFoundError(
      f"{path}: {absence(path)}. Check the path of the GGUF file."
    )
  try:
    return _Reader(str(path))
  except Exception as error:  # the package raises whatever a byte leads to
    reason = f"{type(error).__name__}: {error}"
    raise UserError(
      f"{path}: not a GGUF file, or a damaged one ({reason:.200}). Download it "
      "again."
    ) from error


def contents(reader: gguf.GGUFReader, key: str, path: Any) -> Any:
  """Returns a value of the metadata, None where there is none.

  Raises:
    UserError: its bytes are damaged.
  """
  field = reader.get_field(key)
  if field is None:
    return None
  try:
    return field.contents()
  except Exception as error:  # as above
    reason = f"{type(error).__name__}: {error}"
    raise UserError(
      f"{path}: metadata {key!r} is damaged ({reason:.200}). Download the file "
      "again."
    ) from error
