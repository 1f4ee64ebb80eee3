"""What was read of each source: data.json in the folder of a stage.

How many examples there are, what was left out or cut and why, and how long
they are in tokens, as numbers and as counts of bins. Whoever reads data calls
`add`; where nobody records (a notebook, a plan) that does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.schema import UserError

FILE = "data.json"
FIELDS = {"source": str, "kept": int, "dropped": dict, "lengths": dict}
_REMEDY = "Delete it; the report then says nothing of this data."
BINS = 20  # of lengths, at most
_recorder: contextvars.ContextVar[_Recorder | None] = contextvars.ContextVar(
  "recorder", default=None
)


class _Recorder:
  """The entries of one stage, by what was read."""

  def __init__(self, folder: Path) -> None:
    self.path = folder / FILE
    self.entries: dict[str, dict[str, Any]] = {}

  def write(self) -> None:
    """Replaces the file, where there is something and a folder for it."""
    if not self.entries or not self.path.parent.is_dir():
      return
    temporary = self.path.with_name(f"{FILE}.tmp")
    temporary.write_text(json.dumps(self.entries, indent=1) + "\n")
    os.replace(temporary, self.path)


@contextlib.contextmanager
def recording(folder: Path | None) -> Iterator[None]:
  """Writes what is added inside `with` to data.json of a folder.

  Args:
    folder: of a stage; None records nothing: all processes but one.
  """
  recorder = None if folder is None else _Recorder(Path(folder))
  token = _recorder.set(recorder)
  try:
    yield
    if recorder is not None:
      recorder.write()
  finally:
    _recorder.reset(token)


def add(
  name: str,
  source: str,
  kept: int,
  dropped: Mapping[str, int],
  lengths: Mapping[str, Sequence[int]],
) -> None:
  """Records one source of the stage that runs.

  Args:
    name: what it is for, such as "sft, validation".
    source: where it comes from.
    kept: examples that are used.
    dropped: reason -> count of what was left out or cut.
    lengths: part of an example -> tokens of each.
  """
  recorder = _recorder.get()
  if recorder is None:
    return
  recorder.entries[name] = {
    "source": source,
    "kept": int(kept),
    "dropped": {why: int(n) for why, n in dropped.items()},
    "lengths": {
      part: summary(found) for part, found in lengths.items() if len(found)
    },
  }
  recorder.write()


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
  """Returns what was added for a stage, by name; {} where nobody recorded.

  Raises:
    UserError: the file is damaged.
  """
  path = Path(folder) / FILE
  if not path.is_file():
    return {}
  found = strict_json.read_object(path, _REMEDY)
  for name, entry in found.items():
    if not isinstance(entry, dict) or set(entry) != set(FIELDS):
      raise UserError(f"{path}: {name!r} is {entry!r:.60}. {_REMEDY}")
    for field, kind in FIELDS.items():
      if not isinstance(entry[field], kind):
        raise UserError(
          f"{path}: {name}.{field} is no {kind.__name__}. {_REMEDY}"
        )
  return found


def summary(values: Sequence[int]) -> dict[str, Any]:
  """Returns mean, median, p95, max, and counts of bins of whole tokens.

  Args:
    values: [n] lengths in tokens, n >= 1.

  Returns:
    Beside the numbers "edges" [b + 1] and "counts" [b]; a bin takes its lower
    edge and not its upper one.
  """
  found = np.asarray(values, np.int64)
  low, high = int(found.min()), int(found.max())
  width = -(-(high - low + 1) // BINS)
  bins = -(-(high - low + 1) // width)
  edges = low + width * np.arange(bins + 1)
  counts = np.bincount((found - low) // width, minlength=bins)
  return {
    "mean": float(found.mean()),
    "median": float(np.median(found)),
    "p95": float(np.percentile(found, 95)),
    "max": high,
    "edges": edges.tolist(),
    "counts": counts.tolist(),
  }


def sizes_of(rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
  """Returns [N, 2]: tokens and targets of each row."""
  if hasattr(rows, "sizes"):  # on disk
    return rows.sizes
  return np.asarray(
    [(len(row["tokens"]), int(np.sum(row["loss_mask"]))) for row in rows]
  ).reshape(-1, 2)


def longest(rows: Sequence[Mapping[str, np.ndarray]]) -> int:
  """Returns the tokens of the longest row."""
  return int(sizes_of(rows)[:, 0].max())


def of_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[int]]:
  """Returns the lengths of token rows, and of what of them is trained on."""
  tokens, targets = sizes_of(rows).T.tolist()
  return {"all": tokens, "trained on": targets}


def of_pairs(
  rows: Sequence[Mapping[str, np.ndarray]], pairs: np.ndarray
) -> dict[str, list[int]]:
  """Returns the lengths of compared answers, or of single ones.

  Args:
    rows: token rows.
    pairs: [P, 2] indices, the preferred one first; or [P, 1]. Of [P, K] the
      answers behind the first are together; -1 is none.
  """
  sizes = np.asarray(
    [int(np.sum(row["loss_mask"] > 0)) for row in rows], np.int64
  )
  if pairs.shape[1] == 1:
    return {"answer": sizes[pairs[:, 0]].tolist()}
  others = pairs[:, 1:]
  return {
    "preferred": sizes[pairs[:, 0]].tolist(),
    "other": sizes[others[others >= 0]].tolist(),
  }
