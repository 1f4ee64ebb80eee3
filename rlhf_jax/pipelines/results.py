"""What pipelines leave that train nothing: a file of numbers, written once.

It names, beside its numbers, fingerprints of the runs and of the code that they
come from, so that nobody reads numbers of another run in the same place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, imported, strict_json
from rlhf_jax.runs import finite, stages
from rlhf_jax.schema import FieldError

TEXTS = "texts.jsonl"  # rows for reading, beside the numbers
ORIGINS = "origins"  # in the file: fingerprints of runs and code


def listed(folders: str) -> list[str]:
  """Returns the parts of a text with commas between."""
  parts = [part.strip() for part in folders.split(",")]
  return [part for part in parts if part]


def named(folders: Sequence[str]) -> dict[str, str]:
  """Returns folders by the shortest ends of their paths that differ.

  One that stands there twice is in the result once.
  """
  paths = {Path(folder): folder for folder in folders}
  most = max((len(path.parts) for path in paths), default=1)
  for count in range(1, most + 1):
    found = {"/".join(p.parts[-count:]): x for p, x in paths.items()}
    if len(found) == len(paths):
      break
  return found


def read(path: Path) -> dict[str, Any]:
  """Returns all of a result file.

  Raises:
    UserError: it is damaged.
  """
  return strict_json.read_object(
    path, "Delete the folder and evaluate again.", allows_nan=True
  )


def numbers(path: Path) -> dict[str, Any]:
  """Returns the numbers of a result file."""
  return {name: x for name, x in read(path).items() if name != ORIGINS}


def origins(
  folders: Mapping[str, str], code: Mapping[str, str]
) -> dict[str, str]:
  """Returns the fingerprints of runs, "" for none, and of a user's own code.

  Args:
    folders: field -> folder of a finished stage, with @STEP or not, or "".
    code: field -> what may be an import path.
  """
  runs = {name: stages.stage_fingerprint(x) for name, x in folders.items()}
  return runs | imported.fingerprints(**code)


def check(
  path: Path, now: Mapping[str, str], folders: Mapping[str, str]
) -> None:
  """Checks that a result is of the runs and the code as they are now.

  Args:
    path: of the file; older ones do not say.
    now: from `origins`.
    folders: as there, for messages.

  Raises:
    FieldError: another run is in a folder that was read.
  """
  before = read(path).get(ORIGINS)
  if not isinstance(before, dict):
    return
  for name, digest in now.items():
    if before.get(name, digest) != digest:
      said = f"{name}={folders[name]!r}" if name in folders else name
      raise FieldError(
        f"{said}: it has changed since {path} was written. "
        "Delete that file to evaluate it "
        "again, or choose another --workdir."
      )


def write(
  path: Path,
  facts: dict[str, Any],
  of: Mapping[str, str],
  rows: list[dict],
  name: str = TEXTS,
) -> None:
  """Writes rows of texts, then the numbers, which mark it as finished.

  Args:
    path: of the file of numbers.
    facts: the numbers.
    of: from `origins`.
    rows: of the texts.
    name: of their file, beside it.

  Raises:
    NonFiniteError: a number is NaN or inf.
  """
  finite.check_facts(path.name, facts)
  if distributed.is_first():
    write_rows(path.parent / name, rows)
    temporary = path.with_suffix(".tmp")
    record = facts | {ORIGINS: dict(of)}
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(path.name)


def write_rows(path: Path, rows: list[dict]) -> None:
  """Writes rows as lines of JSON."""
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
