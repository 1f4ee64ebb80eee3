"""One stage as it stands on disk: its curves, progress, alarms and samples.

What is kept of metrics.jsonl is a column a metric; of samples.jsonl the newest
rows. Times are seconds since 1970, as the files have them.
"""

from __future__ import annotations

import array
import collections
import itertools
import math
import os
import statistics
from pathlib import Path
from typing import Any

from rlhf_jax.dashboard.followed import Document, Followed

LOCK_FILE = "run.lock"  # runs/lock.py; its owner touches it
QUIET_SECONDS = 90.0  # without a touch: no sign of life
SAMPLES_KEPT = 200  # newest rows of samples.jsonl
SAMPLES_SHOWN = 24
TEXT_SHOWN = 4000  # characters of a text
POINTS_SHOWN = 240  # of a curve; longer ones are means of blocks
PACE_WINDOW = 20  # the pace is a median over so many rows
RESULTS = ("stage.json", "evaluation.json", "segments.json")
HEADER = ("step", "phase", "time")
# The first of these that a stage logs is what its line of the list shows.
HEADLINES = (
  "rollout/score_mean",
  "rejection/score_mean",
  "preference/accuracy",
  "reward_model/accuracy",
  "preference/loss",
  "reward_model/loss",
  "sft/loss",
  "heldout/score",
  "heldout/pass1",
  "validation/accuracy",
  "validation/loss",
  "agent/true_return",
)


def number(value: Any) -> float | None:
  """Returns a finite float, or None for anything else."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    found = float(value)
  except OverflowError:
    return None
  return found if math.isfinite(found) else None


class Stage:
  """A folder that one pipeline fills."""

  def __init__(self, folder: Path) -> None:
    self.folder = folder
    self._metrics = Followed(folder / "metrics.jsonl")
    self._samples = Followed(folder / "samples.jsonl")
    self._texts = Followed(folder / "texts.jsonl")
    self._progress = Document(folder / "progress.json")
    self._results = [Document(folder / name) for name in RESULTS]
    self._lock = Document(folder / LOCK_FILE)
    self._forget()
    self._newest: collections.deque = collections.deque(maxlen=SAMPLES_KEPT)
    self._pairs: list[dict] = []

  def _forget(self) -> None:
    # metric -> (steps, values); NaN where a value is no finite number
    self._columns: dict[str, tuple[array.array, array.array]] = {}
    self._marks: list[tuple[int, float]] = []  # (step, time) of each row
    self._missing: dict[str, tuple[int, int]] = {}  # metric -> count, last step

  def refresh(self) -> None:
    """Reads what was written since the last call."""
    is_new, rows = self._metrics.poll()
    if is_new:
      self._forget()
    for row in rows:
      self._take(row)
    is_new, rows = self._samples.poll()
    if is_new:
      self._newest.clear()
    self._newest.extend(rows)
    is_new, rows = self._texts.poll()
    self._pairs = ([] if is_new else self._pairs) + rows
    del self._pairs[SAMPLES_SHOWN:]

  def _take(self, row: dict[str, Any]) -> None:
    """Adds a row of metrics.jsonl."""
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step >> 53:
      self._metrics.damaged += 1
      return
    for name, value in row.items():
      if name in HEADER:
        continue
      steps, values = self._columns.setdefault(
        name, (array.array("q"), array.array("d"))
      )
      found = number(value)
      if found is None:
        count, _ = self._missing.get(name, (0, 0))
        self._missing[name] = count + 1, step
      steps.append(step)
      values.append(math.nan if found is None else found)
    time = number(row.get("time"))
    self._marks.append((step, math.nan if time is None else time))

  @property
  def step(self) -> int:
    """Steps done, as far as they were logged."""
    return self._marks[-1][0] if self._marks else 0

  @property
  def result(self) -> dict[str, Any]:
    """What the stage says of itself when it is finished, or {}."""
    return next((r for r in (x.read() for x in self._results) if r), {})

  def pace(self) -> float | None:
    """Returns seconds a step: a median, which few compilations do not move."""
    recent = self._marks[-PACE_WINDOW - 1 :]
    found = [
      (late - early) / (after - before)
      for (before, early), (after, late) in itertools.pairwise(recent)
      if after > before and late >= early
    ]
    return statistics.median(found) if found else None

  def state(self, now: float) -> str:
    """Returns finished, running, silent, stopped or waiting.

    Args:
      now: seconds since 1970.
    """
    try:
      touched = os.stat(self.folder / LOCK_FILE).st_mtime
    except OSError:
      touched = None
    if touched is not None:
      return "running" if now - touched < QUIET_SECONDS else "silent"
    if self.result:
      return "finished"
    has_work = self._marks or (self.folder / "checkpoints").is_dir()
    return "stopped" if has_work else "waiting"

  def alarms(self) -> list[dict[str, Any]]:
    """Returns what rang: {"step", "level", "text"}, a step may be None."""
    progress, result = self._progress.read(), self.result
    rang = progress.get("alarms") or result.get("alarms")
    found = [
      {"step": one[0], "level": "warn", "text": str(one[1])}
      for one in (rang if isinstance(rang, list) else ())
      if isinstance(one, list) and len(one) == 2
    ]
    for name in ("guards", "findings"):
      said = result.get(name)
      found += [
        {"step": None, "level": str(one[0]), "text": str(one[1])}
        for one in (said if isinstance(said, list) else ())
        if isinstance(one, list) and len(one) == 2
      ]
    halted = progress.get("halted") or result.get("halted")
    if halted:
      found.append({"step": None, "level": "halt", "text": str(halted)})
    for name, (count, step) in sorted(self._missing.items()):
      text = f"{name}: not finite in {_counted(count, 'row')}, the last here"
      found.append({"step": step, "level": "warn", "text": text})
    return found + self._unread()

  def _unread(self) -> list[dict[str, Any]]:
    """Returns what could not be read, as alarms."""
    found = []
    for file in (self._metrics, self._samples, self._texts):
      if file.damaged:
        lines = _counted(file.damaged, "line")
        text = f"{file.path.name}: {lines} could not be read"
        found.append({"step": None, "level": "warn", "text": text})
    for file in (self._progress, *self._results):
      if file.is_damaged:
        text = f"{file.path.name}: is no JSON object"
        found.append({"step": None, "level": "warn", "text": text})
    return found

  def begun(self) -> float | None:
    """Returns since when the process that holds the stage works."""
    return number(self._lock.read().get("since"))

  def summary(self, now: float) -> dict[str, Any]:
    """Returns what the list of runs shows of the stage."""
    state, pace = self.state(now), self.pace()
    total = number(self._progress.read().get("total_steps"))
    if total is None and state == "finished" and self._marks:
      total = self.step
    left = None if total is None or pace is None else total - self.step
    headline = next((x for x in HEADLINES if x in self._columns), None)
    return {
      "state": state,
      "step": self.step,
      "total": None if total is None else int(total),
      "pace_seconds": pace,
      "eta_seconds": (
        max(left, 0) * pace if left is not None and state == "running" else None
      ),
      "last_time": None if not self._marks else _time(self._marks[-1][1]),
      "pipeline": str(self.result.get("pipeline", "")),
      "alarms": len(self.alarms()),
      "headline": headline,
      "curve": [] if headline is None else self.curve(headline, 60),
      "value": None if headline is None else self._newest_of(headline),
    }

  def detail(self, now: float) -> dict[str, Any]:
    """Returns everything that the page shows of the stage."""
    return self.summary(now) | {
      "alarms": self.alarms(),
      "headlines": [name for name in HEADLINES if name in self._columns],
      "curves": {name: self.curve(name) for name in sorted(self._columns)},
      "shares": self.shares(),
      "samples": [shown(row) for row in reversed(self._newest)][:SAMPLES_SHOWN],
      "pairs": [shown(row) for row in self._pairs],
    }

  def _newest_of(self, name: str) -> float | None:
    """Returns the newest value of a metric, None where it is not finite."""
    return number(self._columns[name][1][-1])

  def curve(self, name: str, most: int = POINTS_SHOWN) -> list[list]:
    """Returns [[step, value or None], ...], at most `most` and the last one."""
    steps, values = self._columns[name]
    size = -(-len(steps) // most)
    found = []
    for start in range(0, len(steps), max(size, 1)):
      block = values[start : start + size]
      finite = [value for value in block if not math.isnan(value)]
      mean = sum(finite) / len(finite) if finite else None
      at = steps[min(start + size, len(steps)) - 1]
      found.append([at, mean])
    if size > 1 and not math.isnan(values[-1]):  # as it is, not as a mean
      found[-1] = [steps[-1], values[-1]]
    return found

  def shares(self) -> list[dict[str, Any]]:
    """Returns where the time of the steps went: {"name", "seconds"}.

    The parts are those of time/*_seconds; "rest" is what lies between the rows
    beyond them (saving, logging, loading), where that is known.
    """
    found = []
    for name, (_, values) in sorted(self._columns.items()):
      if name.startswith("time/") and name.endswith("_seconds"):
        total = sum(value for value in values if not math.isnan(value))
        part = name.removeprefix("time/").removesuffix("_seconds")
        found.append({"name": part, "seconds": total})
    pace, spent = self.pace(), sum(part["seconds"] for part in found)
    if found and pace is not None:
      whole = pace * len({step for step, _ in self._marks})
      if whole > spent:
        found.append({"name": "rest", "seconds": whole - spent})
    return found


def _counted(count: int, what: str) -> str:
  return f"{count} {what}{'s' if count > 1 else ''}"


def _time(value: float) -> float | None:
  return None if math.isnan(value) else value


def shown(row: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of samples as texts and finite numbers, long texts cut."""
  found: dict[str, Any] = {}
  for name, value in row.items():
    if isinstance(value, str):
      more = len(value) - TEXT_SHOWN
      cut = f"{value[:TEXT_SHOWN]} [{more} more characters]"
      found[name] = cut if more > 0 else value
    elif isinstance(value, bool | int | float):
      found[name] = number(value) if not isinstance(value, bool) else value
  return found
