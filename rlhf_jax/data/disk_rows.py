"""Rows of tokens on disk: a data set larger than memory, read at any place.

Tokens and masks of all rows stand one after the other in two files that are
mapped into memory; of each row, its end and its number of targets are kept in
memory (16 bytes), so that any order of rows costs the same. The files lie in
RLHF_JAX_CACHE and have no name any more once they are written: the system frees
them when the process ends, however it ends.

  tokens  int32, 4 bytes each        mask  uint8, 1 byte each: 0 or 1
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.encode import Row
from rlhf_jax.schema import UserError


class DiskRows(Sequence):
  """Rows {"tokens", "loss_mask"}, [n] each, as a list of them would be.

  sizes: [N, 2] int64: tokens and targets of each row.
  digest: 16 hex digits of all rows, for batches.fingerprint.
  """

  def __init__(
    self, tokens: np.ndarray, mask: np.ndarray, sizes: np.ndarray, digest: str
  ) -> None:
    """Rows that stand in tokens and mask, one after the other."""
    self._tokens, self._mask = tokens, mask
    self._ends = np.cumsum(sizes[:, 0])
    self.sizes, self.digest = sizes, digest

  def __len__(self) -> int:
    return len(self.sizes)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    number = int(index) + (len(self) if index < 0 else 0)
    if not 0 <= number < len(self):
      raise IndexError(index)
    end = self._ends[number]
    place = slice(end - self.sizes[number, 0], end)
    return {
      "tokens": np.array(self._tokens[place]),
      "loss_mask": self._mask[place].astype(np.float32),
    }


def write(rows: Iterable[Row], folder: Path) -> DiskRows:
  """Writes rows as they come; returns them.

  Args:
    rows: each is held in memory only until the next one comes; masks hold
      zeros and ones.
    folder: on a disk with room for 5 bytes a token.

  Raises:
    OSError: the disk is full, or may not be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  digest, sizes = hashlib.sha256(), []
  with (
    tempfile.TemporaryFile(dir=folder) as tokens,
    tempfile.TemporaryFile(dir=folder) as masks,
  ):
    for row in rows:
      ids = np.ascontiguousarray(row["tokens"], np.int32)
      mask = np.ascontiguousarray(row["loss_mask"], np.float32)
      if not np.isin(mask, (0.0, 1.0)).all():
        raise UserError(
          "a mask that holds other numbers than 0 and 1 is kept in memory "
          "only. Set store='memory'."
        )
      sizes.append((len(ids), int(mask.sum())))
      flags = mask.astype(np.uint8)
      for file, part in ((tokens, ids), (masks, flags)):
        file.write(part.tobytes())
      digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
      digest.update(flags.tobytes())
    tokens.flush()
    masks.flush()
    found = np.asarray(sizes, np.int64).reshape(-1, 2)
    if not found[:, 0].sum():  # an empty file cannot be mapped
      return DiskRows(np.empty(0, np.int32), np.empty(0, np.uint8), found, "")
    return DiskRows(
      np.memmap(tokens, np.int32, "r"),
      np.memmap(masks, np.uint8, "r"),
      found,
      digest.hexdigest()[:16],
    )
