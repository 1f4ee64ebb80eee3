"""What a run records: metrics.jsonl, samples, TensorBoard, seconds of parts.

progress.json says how long a stage is and what rang: it is replaced as a whole,
for whoever watches (dashboard/).

Metrics are named area/name (METHODS 25) and written one JSON object a line
with "step", "phase" and "time" (seconds since 1970). JSON has no NaN: it
becomes null, with a warning. A killed and resumed run calls `truncate_after`
with the step it resumes from, so that each step is there once.

What a person reads while it runs is in terminal.py; wandb and MLflow, which are
sent the same rows, in trackers.py. Left out: remote directories (gs:// cannot
append; copy the local ones).
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import trackers
from rlhf_jax.schema import UserError

RESERVED = ("step", "phase", "time")
PROGRESS_FILE = "progress.json"
_DAMAGED = "The file is damaged: correct or remove the line."


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of a JSON lines file; a torn last line is left out.

  Raises:
    UserError: a line before the last is not a row that was written here.
  """
  rows = []
  lines = Path(path).read_bytes().split(b"\n")
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      rows.append(json.loads(line.decode("utf-8")))
    except ValueError as error:
      if number == len(lines):  # no newline after it: the writer was killed
        break
      shown = line[:60].decode(errors="replace")
      raise UserError(
        f"{path}:{number}: not JSON: {shown!r}. {_DAMAGED}"
      ) from error
    if not isinstance(rows[-1], dict):
      raise UserError(f"{path}:{number}: no row: {rows[-1]!r:.60}. {_DAMAGED}")
  return rows


def _check_header(row: Mapping[str, Any], path: Path) -> None:
  """Raises UserError unless a row says its step and phase."""
  for name, kind in (("step", int), ("phase", str)):
    if not isinstance(row.get(name), kind):
      raise UserError(
        f"{path}: a row whose {name} is {row.get(name)!r:.60}: {row!r:.60}. "
        f"{_DAMAGED}"
      )


class MetricsWriter:
  """Appends to metrics.jsonl and samples.jsonl, and to TensorBoard."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    writes_tensorboard: bool = True,
    *,
    is_enabled: bool = True,
    clock: Callable[[], float] = time.time,
  ) -> None:
    """Opens the files of a work directory, made if need be.

    Args:
      workdir: local directory.
      writes_tensorboard: also write event files, one folder a phase.
      is_enabled: False writes nothing: all processes but one.
      clock: seconds since 1970.
    """
    self._workdir = Path(workdir)
    self._is_enabled = is_enabled
    self._writes_tensorboard = writes_tensorboard
    self._clock = clock
    self._summaries: dict[str, Any] = {}
    self._purge: dict[str, int] = {}
    self._progress: dict[str, Any] | None = None
    if is_enabled:
      self._workdir.mkdir(parents=True, exist_ok=True)
      for path in (self.metrics_path, self.samples_path):
        if path.exists():
          _drop_torn_line(path)

  @property
  def metrics_path(self) -> Path:
    return self._workdir / "metrics.jsonl"

  @property
  def samples_path(self) -> Path:
    return self._workdir / "samples.jsonl"

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Flushes and closes TensorBoard."""
    for summary in self._summaries.values():
      summary.close()
    self._summaries = {}

  def write(
    self, step: int, metrics: Mapping[str, Any], phase: str = ""
  ) -> None:
    """Writes one row.

    Args:
      step: updates done.
      metrics: area/name -> scalar (Python, numpy or jax).
      phase: such as "sft", "reward", "ppo".

    Raises:
      ValueError: a value that is no scalar, or a reserved name.
    """
    row = {name: _scalar(name, value) for name, value in metrics.items()}
    bad = [name for name, value in row.items() if value is None]
    if bad:
      warnings.warn(
        f"step {step}{' of ' + phase if phase else ''}: {', '.join(bad)} not "
        "finite; written as null.",
        stacklevel=2,
      )
    if not self._is_enabled:
      return
    header = self._header(step, phase)
    self._append(self.metrics_path, [header | row])
    if self._writes_tensorboard:
      summary = self._summary(phase)
      for name, value in row.items():
        if value is not None:
          summary.add_scalar(trackers.tag_of(phase, name), value, step)
    tracking = trackers.current()
    if tracking is not None:
      tracking.write(header["step"], row, phase, header["time"], self._workdir)

  def write_samples(
    self, step: int, rows: Sequence[Mapping[str, Any]], phase: str = ""
  ) -> None:
    """Writes one line a sample, such as {"prompt", "response", "score"}."""
    if self._is_enabled:
      header = self._header(step, phase)
      cleaned = [
        {name: _plain(value) for name, value in row.items()} for row in rows
      ]
      self._append(self.samples_path, [header | row for row in cleaned])

  def write_text(
    self, step: int, name: str, text: str, phase: str = ""
  ) -> None:
    """Writes markdown to TensorBoard only."""
    if self._is_enabled and self._writes_tensorboard:
      tag = trackers.tag_of(phase, name)
      self._summary(phase).add_text(tag, text, step)

  def write_progress(
    self,
    phase: str,
    total_steps: int,
    alarms: Sequence[Sequence[Any]] = (),
    halted: str | None = None,
  ) -> None:
    """Replaces progress.json, where it says something else.

    Args:
      phase: of the steps.
      total_steps: of the finished stage.
      alarms: (step, sentence) of each that rang.
      halted: why the stage ended early, if it did.
    """
    if not self._is_enabled:
      return
    record = {
      "phase": phase,
      "total_steps": int(total_steps),
      "alarms": [list(alarm) for alarm in alarms],
      "halted": halted,
    }
    if record != self._progress:
      _replace(self._workdir / PROGRESS_FILE, json.dumps(record) + "\n")
      self._progress = record

  def truncate_after(self, step: int, phase: str = "") -> None:
    """Drops the rows of a phase with a larger step, before a resume.

    Call it before the first write of the phase, so that TensorBoard hides the
    dropped steps too.
    """
    if not self._is_enabled:
      return
    self._purge[phase] = step + 1
    for path in (self.metrics_path, self.samples_path):
      if path.exists():
        rows = read_metrics(path)
        for row in rows:
          _check_header(row, path)
        kept = [r for r in rows if r["phase"] != phase or r["step"] <= step]
        if len(kept) < len(rows):
          _replace(path, "".join(json.dumps(row) + "\n" for row in kept))

  def _header(self, step: int, phase: str) -> dict[str, Any]:
    return {"step": int(step), "phase": phase, "time": self._clock()}

  def _append(self, path: Path, rows: Sequence[Mapping]) -> None:
    with path.open("a") as file:
      file.write("".join(json.dumps(row) + "\n" for row in rows))

  def _summary(self, phase: str) -> Any:
    if phase not in self._summaries:
      import tensorboardX  # slow to import, and not needed without it

      folder = self._workdir / "tensorboard" / (phase if phase else "run")
      self._summaries[phase] = tensorboardX.SummaryWriter(
        str(folder), purge_step=self._purge.get(phase), flush_secs=10
      )
    return self._summaries[phase]


class Timer:
  """Accumulates the seconds of each part of a step.

  JAX returns before the device is done: end a part by reading its result (or
  jax.block_until_ready), or its time lands in the next one.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
    self._clock = clock
    self._seconds: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Adds the seconds spent inside `with` to `name`."""
    start = self._clock()
    try:
      yield
    finally:
      self._seconds[name] += self._clock() - start

  def pop(self) -> dict[str, float]:
    """Returns {"time/rollout_seconds": seconds, ...} since the last pop."""
    popped = {f"time/{name}_seconds": s for name, s in self._seconds.items()}
    self._seconds.clear()
    return popped


def _scalar(name: str, value: Any) -> int | float | None:
  """Returns a Python number, or None for NaN and inf."""
  if name in RESERVED:
    raise UserError(
      f"metric {name!r}: {RESERVED} are columns of their own. Rename it."
    )
  array = np.asarray(value)
  is_real = array.dtype.kind in "biuf" or array.dtype == "bfloat16"
  if array.ndim != 0 or not is_real:
    raise UserError(
      f"metric {name!r} has shape {array.shape} and dtype {array.dtype}: "
      "metrics are scalars. Reduce it under its mask first."
    )
  if array.dtype.kind in "biu":
    return int(array)
  number = float(array)
  return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
  """Returns a sample's cell as JSON: arrays as lists, NaN as null."""
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _replace(path: Path, text: str) -> None:
  """Replaces a file so that a kill leaves the old or the new one."""
  temporary = path.with_name(f"{path.name}.tmp")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _drop_torn_line(path: Path) -> None:
  """Cuts what follows the last newline: the rest of a write that was killed."""
  content = path.read_bytes()
  whole = content[: content.rfind(b"\n") + 1]
  if len(whole) < len(content):
    with path.open("r+b") as file:
      file.truncate(len(whole))
