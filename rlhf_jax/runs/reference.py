"""Reference log-probabilities: computed once, kept in the working directory.

The reference is the policy before training, so its log-probabilities of the
data are constants of a run. They are float32, one number for each token of
each answer, in reference_logprobs.npz, with a fingerprint of the model and of
the rows. A run that goes on reads the file, so it continues with the same
bits on any mesh, and refuses one that was made of anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, integrity, terminal
from rlhf_jax.data import layout
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.runs import stages
from rlhf_jax.types import Array

FILE = "reference_logprobs.npz"
Rows = list[dict[str, np.ndarray]]
# What each of `ingredients` is set by.
_FIELDS = {
  "model_fingerprint": "model",
  "tokenizer_fingerprint": "model.tokenizer",
  "init_from_fingerprint": "init_from or reference",
  "dtype": "model.dtype",
  "train": "data",
  "heldout": "heldout",
}


def ingredients(
  base: Base, init_from: str | Path, parts: dict[str, Rows]
) -> dict[str, Any]:
  """Returns digests of the model that is asked and of all that it is asked.

  Args:
    base: the base model.
    init_from: finished stage that is the reference, or "".
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
  return (
    base.identity
    | stages.origins(init_from=init_from)
    | {"dtype": str(base.config.dtype), "rows": digests}
  )


def compute(
  forward: Callable[..., Array],
  rows: Rows,
  *,
  shape: layout.Shape,
  batch_size: int,
  pad_id: int,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Returns float32 log-probabilities of all targets, row after row.

  Args:
    forward: compiled (TokenBatch, targets of a row) -> log-probs [B, L].
    shape: of the rows that examples share, as layout.whole.
    rows: token rows.
    batch_size: rows of one forward pass.
    pad_id: fills tokens.
    mesh: where it runs.
  """
  found: list[np.ndarray] = [np.zeros(0)] * len(rows)
  done = 0
  with terminal.Progress("reference", len(rows), unit="row") as progress:
    for members, batch in layout.in_order(rows, shape, batch_size, pad_id):
      logprobs = distributed.fetch(
        forward(mesh_lib.spread_batch(mesh, batch), targets=shape.targets)
      )
      for number, values in layout.by_example(members, batch, logprobs):
        found[number] = values
        done += 1
      progress.update(done)
  return np.concatenate(found).astype(np.float32)


def read(path: Path, made_of: dict[str, Any]) -> dict[str, np.ndarray]:
  """Returns the stored log-probabilities of each part.

  Raises:
    CheckpointError: the file is damaged, or of another model or other data.
  """
  try:
    with np.load(path) as stored:
      arrays = {name: stored[name] for name in stored.files}
    found = str(arrays.pop("fingerprint"))
    before = json.loads(str(arrays.pop("made_of", "{}")))
  except (ValueError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as e:
    raise integrity.CheckpointError(
      f"{path}: damaged ({e}). Delete it: the same command computes it again."
    ) from e
  wanted = integrity.fingerprint(made_of)
  if found != wanted:
    now = _flat(made_of)
    changed = [
      _FIELDS.get(k, k) for k in now if before.get(k, now[k]) != now[k]
    ]
    fields = changed if changed else [*_FIELDS.values(), "seed"]
    raise integrity.CheckpointError(
      f"{path}: holds reference log-probabilities of another start or of other "
      f"rows (fingerprint {found}) than this run ({wanted}). Restore "
      f"{', '.join(dict.fromkeys(fields))} as before, or choose another "
      "--workdir."
    )
  return arrays


def _flat(made_of: dict[str, Any]) -> dict[str, str]:
  """Returns {name: digest} of `ingredients`, its rows beside the others."""
  others = {k: str(v) for k, v in made_of.items() if k != "rows"}
  return others | made_of.get("rows", {})


def load_or_compute(
  workdir: Path,
  made_of: dict[str, Any],
  parts: dict[str, Rows],
  computed: Callable[[Rows], np.ndarray],
) -> str:
  """Gives every row of every part its "reference_logprobs", [n] float32.

  Args:
    workdir: where the file is kept.
    made_of: from `ingredients`.
    parts: name -> token rows, which are changed.
    computed: rows -> log-probabilities of their targets.

  Returns:
    a digest of `made_of`.

  Raises:
    CheckpointError: see `read`.
  """
  path = workdir / FILE
  is_there = path.is_file()
  distributed.barrier("reference")  # all have looked before one writes
  if is_there:
    arrays = read(path, made_of)
  else:
    arrays = {name: computed(rows) for name, rows in parts.items()}
    if distributed.is_first():
      _write(path, arrays, made_of)
    distributed.barrier(FILE)
  for name, rows in parts.items():
    _spread(rows, arrays[name])
  return integrity.fingerprint(made_of)


def _write(
  path: Path, arrays: dict[str, np.ndarray], made_of: dict[str, Any]
) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".tmp")
  with temporary.open("wb") as file:
    np.savez(
      file,
      fingerprint=np.asarray(integrity.fingerprint(made_of)),
      made_of=np.asarray(json.dumps(_flat(made_of))),
      **arrays,
    )
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
