"""The working directory: whose it is, and what was asked for in it.

config.json records the whole configuration, the command, and the versions of
code and packages. A directory belongs to one run: the next command there goes
on with it, so what differs from the record is refused or printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax import distributed
from rlhf_jax.pipelines import provenance
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.runs import stage_file
from rlhf_jax.schema import UserError, check_local

CONFIG_FILE = "config.json"
_FREE_TEXT = ("title", "facts", "caveats")  # of a report; may change later


def describe(config: Any, pinned: Mapping[str, str]) -> str:
  """Returns config.json: every value, the command, code and packages.

  Args:
    config: the experiment.
    pinned: models of the hub as they were named -> with their commit.
  """
  record = {
    "config": config.to_dict(),
    "pinned": dict(pinned),
    "command": provenance.command(),
    "is_smoke": provenance.is_smoke(),
    "code": rlhf_jax.__version__,
    "packages": provenance.packages(),
  }
  return json.dumps(record, indent=2, default=str) + "\n"


def make_folder(workdir: Path) -> None:
  """Makes the working directory.

  Raises:
    UserError: not a writable folder.
  """
  check_local(workdir, "--workdir")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except FileExistsError as error:
    raise UserError(
      f"--workdir={str(workdir)!r}: is a file. Name a folder; it is made if it "
      "is not there."
    ) from error
  except OSError as error:
    raise UserError(
      f"--workdir={str(workdir)!r}: cannot be written ({error.strerror}). "
      "Choose another folder, or change its permissions."
    ) from error


def make_folder_of_many(workdir: Path, of: str) -> None:
  """Makes the folder of something that is made of runs, or of none.

  Args:
    workdir: the folder.
    of: what it is for, for the message: "a sweep".

  Raises:
    UserError: not a writable folder, or one that holds a run, among whose
      files the others would stand.
  """
  for name in (CONFIG_FILE, stage_file.STAGE_FILE):
    if (workdir / name).is_file():
      raise UserError(
        f"--workdir={str(workdir)!r}: holds a run ({name}), and {of} has a "
        "folder of its own. Name another."
      )
  make_folder(workdir)


def prepare(config: Any, job: Job, workdir: Path) -> dict[str, tuple]:
  """Makes the working directory; refuses one that holds another run.

  Settings of a run that goes on may change, and what changed is printed; one
  that is finished and is asked for more steps goes on. Those of a finished
  stage may not otherwise: it would not be repeated, and its results would stand
  beside settings they were not made with.

  Args:
    config: what was asked for.
    job: what was read out of it.
    workdir: the folder.

  Returns:
    what changed in a run that goes on, see `changed_settings`.

  Raises:
    UserError: not a writable folder, or finished with other settings.
  """
  make_folder(workdir)
  changes = changed_settings(config, workdir)
  results = job.results(workdir)
  finished = tuple(
    prefix
    for prefix, file in results
    if _is_there(file) and not job.goes_on(workdir)
  )
  is_begun = any(any(f.parent.glob("**/checkpoints")) for _, f in results)
  _check_trial(workdir, is_begun or bool(finished))
  for field, (before, now) in changes.items():
    part = workdir / field.rpartition(".")[0]
    # some pipelines have checkpoints only in folders below theirs
    has_rows = (part / "metrics.jsonl").is_file()
    is_other = has_rows or (part == workdir and (finished or is_begun))
    if field.rpartition(".")[2] == "pipeline" and is_other:
      raise UserError(
        f"--workdir={str(workdir)!r}: holds a run with config.{field}="
        f"{before!r}, and this is one with {now!r}. Choose another folder."
      )
  for field, (before, now) in changes.items():
    is_of_all = field in ("seed", "reuse", "reuse_stages") and (
      finished or is_begun
    )
    if field.startswith(finished) or is_of_all:
      raise UserError(
        f"config.{field}={now!r}: {workdir} holds finished work with "
        f"{before!r}, which would not be repeated. Choose another --workdir "
        "for the new settings, or leave them as they were."
      )
    if is_begun:
      print(f"config.{field} was {before!r} in {workdir}, is {now!r} now")
  return changes if is_begun else {}


def _check_trial(workdir: Path, has_work: bool) -> None:
  """Refuses a folder with a short trial for a whole run, and the reverse."""
  path = workdir / CONFIG_FILE
  if not has_work or not path.is_file():
    return
  was_smoke = bool(json.loads(path.read_text()).get("is_smoke"))
  if was_smoke != provenance.is_smoke():
    what = "a short trial (--smoke)" if was_smoke else "a run without --smoke"
    raise UserError(
      f"--workdir={str(workdir)!r}: holds {what}, which the other must not go "
      "on with. Choose another folder, or delete this one."
    )


@contextlib.contextmanager
def explained(changes: dict[str, tuple]) -> Iterator[None]:
  """Says, of a run that could not go on, which settings changed.

  Args:
    changes: from `prepare`.

  Raises:
    UserError: what was raised inside, with the changes.
  """
  try:
    yield
  except UserError as error:
    if not changes:
      raise
    listed = "; ".join(
      f"config.{field} was {before!r}, is {now!r}"
      for field, (before, now) in changes.items()
    )
    raise UserError(
      f"{error}\nChanged since this run began: {listed}."
    ) from error


def write_durably(path: Path, text: str) -> None:
  """Writes a file that is absent, old or complete, also on a full disk."""
  temporary = path.with_name(path.name + ".tmp")
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError as error:  # a failed write does not say where
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def recorded(workdir: Path, record: str) -> Iterator[None]:
  """Writes config.json; takes it back if an error comes before any progress.

  So a command that could not go on (another model, say) leaves the record of
  the run that made the checkpoints.

  Args:
    workdir: prepared.
    record: text of config.json.
  """
  path = workdir / CONFIG_FILE
  before = path.read_text() if path.is_file() else None
  saved = set(workdir.glob("**/checkpoints/*"))
  if distributed.is_first():
    write_durably(path, record)
  try:
    yield
  except Exception:
    if not distributed.is_first():
      raise
    if before is not None and saved == set(workdir.glob("**/checkpoints/*")):
      with contextlib.suppress(OSError):
        write_durably(path, before)
    raise


def changed_settings(config: Any, workdir: Path) -> dict[str, tuple]:
  """Returns {field: (before, now)} against the run that config.json records.

  Fields that the record does not know, and texts of the report, do not count.

  Raises:
    UserError: config.json is damaged.
  """
  path = workdir / CONFIG_FILE
  if not path.is_file():
    return {}
  try:
    before = dict(_flat(json.loads(path.read_text())["config"]))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path}: is not the record of a run ({error}). Choose another "
      "--workdir, or delete the file."
    ) from error
  now = dict(_flat(json.loads(json.dumps(config.to_dict(), default=str))))
  return {
    field: (before[field], value)
    for field, value in now.items()
    if field in before
    and before[field] != value
    and field.split(".")[0] not in _FREE_TEXT
  }


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _is_there(result: Path) -> bool:
  """Says whether a stage is done, or a part of it in a folder of its own."""
  return result.is_file() or any(result.parent.glob(f"*/{result.name}"))
