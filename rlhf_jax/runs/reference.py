"""Reference log-probabilities: computed once, kept in the working directory.

The reference is the policy before training, so its log-probabilities of the
data are constants of a run. They are float32, one number for each token of
each answer, in reference_logprobs.npz, with a fingerprint of the model and of
the rows. A run that goes on reads the file, so it continues with the same
bits on any mesh, and refuses one that was made of anything else.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import distributed, integrity, terminal
from rlhf_jax.data import batches
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.runs import stages
from rlhf_jax.types import Array, TokenBatch

FILE = "reference_logprobs.npz"
Rows = list[dict[str, np.ndarray]]


def fingerprint(
  base: Base, init_from: str | Path, parts: dict[str, Rows]
) -> str:
  """Returns a digest of the model that is asked and of all that it is asked.

  Args:
    base: the base model.
    init_from: finished stage the policy starts from, or "".
    parts: name -> token rows.
  """
  digests = {}
  for name, rows in parts.items():
    digest = hashlib.sha256()
    for row in rows:
      digest.update(np.int64(len(row["tokens"])).tobytes())
      digest.update(np.ascontiguousarray(row["tokens"], np.int32).tobytes())
      digest.update(
        np.ascontiguousarray(row["loss_mask"], np.float32).tobytes()
      )
    digests[name] = digest.hexdigest()
  return integrity.fingerprint(
    base.identity
    | stages.origins(init_from=init_from)
    | {"dtype": str(base.config.dtype), "rows": digests}
  )


def compute(
  forward: Callable[[TokenBatch], Array],
  rows: Rows,
  *,
  batch_size: int,
  pad_id: int,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Returns float32 log-probabilities of all targets, row after row.

  Args:
    forward: compiled TokenBatch -> log-probabilities [B, L].
    rows: token rows.
    batch_size: rows of one forward pass.
    pad_id: fills tokens.
    mesh: where it runs.
  """
  width = batches.bucket_length(max(len(row["tokens"]) for row in rows))
  found = []
  with terminal.Progress("reference", len(rows), unit="row") as progress:
    for start in range(0, len(rows), batch_size):
      part = rows[start : start + batch_size]
      batch = batches.collate_tokens(part, width, pad_id, rows=batch_size)
      logprobs = distributed.fetch(forward(mesh_lib.spread_batch(mesh, batch)))
      found.append(logprobs[batch.loss_mask > 0])
      progress.update(start + len(part))
  return np.concatenate(found).astype(np.float32)


def read(path: Path, wanted: str) -> dict[str, np.ndarray]:
  """Returns the stored log-probabilities of each part.

  Raises:
    CheckpointError: the file is damaged, or of another model or other data.
  """
  try:
    with np.load(path) as stored:
      arrays = {name: stored[name] for name in stored.files}
    found = str(arrays.pop("fingerprint"))
  except (ValueError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as e:
    raise integrity.CheckpointError(
      f"{path}: damaged ({e}). Delete it: the same command computes it again."
    ) from e
  if found != wanted:
    raise integrity.CheckpointError(
      f"{path}: holds reference log-probabilities of another start or of other "
      f"rows (fingerprint {found}) than this run ({wanted}). Restore "
      "model, init_from, data, heldout and seed as they were, or choose "
      "another --workdir."
    )
  return arrays


def load_or_compute(
  workdir: Path,
  wanted: str,
  parts: dict[str, Rows],
  computed: Callable[[Rows], np.ndarray],
) -> None:
  """Gives every row of every part its "reference_logprobs", [n] float32.

  Args:
    workdir: where the file is kept.
    wanted: from `fingerprint`.
    parts: name -> token rows, which are changed.
    computed: rows -> log-probabilities of their targets.

  Raises:
    CheckpointError: see `read`.
  """
  path = workdir / FILE
  is_there = path.is_file()
  distributed.barrier("reference")  # all have looked before one writes
  if is_there:
    arrays = read(path, wanted)
  else:
    arrays = {name: computed(rows) for name, rows in parts.items()}
    if distributed.is_first():
      _write(path, arrays, wanted)
    distributed.barrier(FILE)
  for name, rows in parts.items():
    _spread(rows, arrays[name])


def _write(path: Path, arrays: dict[str, np.ndarray], wanted: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".tmp")
  with temporary.open("wb") as file:
    np.savez(file, fingerprint=np.asarray(wanted), **arrays)
  os.replace(temporary, path)


def _spread(rows: Rows, flat: np.ndarray) -> None:
  """Puts log-probabilities where the targets of the rows are."""
  start = 0
  for row in rows:
    is_target = row["loss_mask"] > 0
    values = np.zeros(len(is_target), np.float32)
    count = int(np.sum(is_target))
    values[is_target] = flat[start : start + count]
    row["reference_logprobs"] = values
    start += count
