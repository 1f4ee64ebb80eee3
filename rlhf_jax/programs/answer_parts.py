"""Judged answers on disk, batch by batch, so that a stopped run goes on.

    WORKDIR/parts/identity.json     what they are made with
    WORKDIR/parts/NAME_00003.npz    the fourth batch of a policy, or of texts

A part is there whole or not at all, and is made again by nobody. The folder
goes when the result is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, strict_json
from rlhf_jax.schema import FieldError

FOLDER = "parts"
IDENTITY = "identity.json"
SAID = "said"  # the array that holds what is no array, as JSON
# Fields of settings that change nothing that is asked, answered or judged.
_FREE = ("mesh", "choose", "lexicon", "embeddings")
_FREE += ("combine", "uncertainty_weight")


def identity(
  settings: Any, origins: Mapping[str, str], content: Sequence[Any] = ()
) -> dict[str, str]:
  """Returns digests of what answers or scores are made with.

  Args:
    settings: of the pipeline, a dataclass.
    origins: fingerprints of runs and of a user's own code.
    content: of the data: arrays, or what has a representation.
  """
  found = {
    field.name: _digest([repr(getattr(settings, field.name))])
    for field in dataclasses.fields(settings)
    if field.name not in _FREE
  }
  return found | dict(origins) | {"data": _digest(content)}


def _digest(content: Sequence[Any]) -> str:
  found = hashlib.sha256()
  for item in content:
    is_array = isinstance(item, np.ndarray)
    found.update(item.tobytes() if is_array else repr(item).encode())
    found.update(b"\0")
  return found.hexdigest()


class Parts:
  """The parts of one run that is not finished yet."""

  def __init__(self, workdir: Path, made: Mapping[str, str]) -> None:
    """Opens the folder; what is there already is known from here on.

    Every process must call it.

    Args:
      workdir: of the run.
      made: from `identity`.

    Raises:
      FieldError: parts of other settings, runs or data are there.
    """
    self._folder = workdir / FOLDER
    path = self._folder / IDENTITY
    self._known: set[str] = set()
    if path.is_file():
      before = strict_json.read_object(path, f"Delete {self._folder}.")
      for name, digest in made.items():
        if before.get(name) != digest:
          raise FieldError(
            f"{name}: it is another one than when {self._folder} was begun, "
            "and what is done there would not go with it. Delete that folder, "
            "or choose another --workdir."
          )
      self._known = {x.stem for x in self._folder.glob("*.npz")}
    distributed.barrier("parts are known")
    if distributed.is_first() and not path.is_file():
      self._folder.mkdir(parents=True, exist_ok=True)
      _replace(path, (json.dumps(dict(made), indent=2) + "\n").encode())

  def read(
    self, name: str, number: int
  ) -> tuple[dict[str, np.ndarray], Any] | None:
    """Returns a part, its arrays and what else was kept, or None.

    One that is damaged counts as not there.

    Args:
      name: of the policy, or of what scores.
      number: of the batch.
    """
    stem = _stem(name, number)
    found = None
    if stem in self._known:
      try:
        with np.load(self._folder / f"{stem}.npz") as stored:
          arrays = {key: stored[key] for key in stored.files}
        said = json.loads(arrays.pop(SAID).tobytes())
        found = arrays, said
      except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        found = None
    return None if distributed.any_process(found is None) else found

  def write(
    self, name: str, number: int, arrays: dict[str, np.ndarray], said: Any
  ) -> None:
    """Writes a part; the first process does.

    Args:
      name, number: see `read`.
      arrays: by any names.
      said: what JSON holds.
    """
    if not distributed.is_first():
      return
    path = self._folder / f"{_stem(name, number)}.npz"
    packed = np.frombuffer(json.dumps(said).encode(), np.uint8)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
      np.savez(file, **arrays, **{SAID: packed})
    os.replace(temporary, path)

  def done(self) -> None:
    """Removes the folder, when the result is written."""
    if distributed.is_first():
      shutil.rmtree(self._folder, ignore_errors=True)


def _stem(name: str, number: int) -> str:
  """Returns the name of a file; other names have other ones."""
  plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
  short = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f"{plain[:60]}_{short}_{number:05d}"


def _replace(path: Path, content: bytes) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_bytes(content)
  os.replace(temporary, path)


def content_of(prompt_batches: Sequence[Any]) -> list[np.ndarray]:
  """Returns the arrays of batches of prompts, for `identity`."""
  return [np.asarray(x) for x in jax.tree.leaves(list(prompt_batches))]
