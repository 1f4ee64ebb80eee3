"""All runs below a folder, found anew whenever they are asked for.

A run is a folder with the config.json that main.py writes; its stages are the
folders in it, itself included, in which a pipeline wrote something. A stage
that belongs to no run is one of its own. Links are not followed.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.dashboard.followed import Document, Followed
from rlhf_jax.dashboard.stage import LOCK_FILE, Stage, number

DEPTH = 5  # folders below the one that is watched
MOST_STAGES = 2000
CONFIG_FILE = "config.json"
MARKS = {
  "metrics.jsonl",
  "samples.jsonl",
  "texts.jsonl",
  "stage.json",
  "evaluation.json",
  "progress.json",
}
SKIPPED = {"checkpoints", "tensorboard", "model", "adapter", "wandb", "figures"}
# What a run is in, from the most urgent; that of its stages comes first.
STATES = ("running", "silent", "stopped", "finished", "waiting")


class Watched:
  """The runs of a folder. Safe to ask from several threads."""

  def __init__(
    self, root: Path, clock: Callable[[], float] = time.time
  ) -> None:
    self.root = root
    self._clock = clock
    self._stages: dict[str, Stage] = {}
    self._configs: dict[str, Document] = {}
    self._phases: dict[str, Followed] = {}
    self._seconds: dict[str, dict[str, float]] = {}
    self._runs: dict[str, list[str]] = {}  # run -> its stages, in their order
    self._remarks: list[str] = []
    self._lock = threading.Lock()

  def runs(self) -> dict[str, Any]:
    """Returns the list of the page: root, time, remarks, and each run."""
    with self._lock:
      self._scan()
      now = self._clock()
      return {
        "root": str(self.root),
        "time": now,
        "remarks": self._remarks,
        "runs": [self._run(name, now) for name in self._runs],
      }

  def stage(self, name: str) -> dict[str, Any] | None:
    """Returns everything of a stage, or None for a name that is none.

    Args:
      name: as `runs` gave it: it is looked up, never taken for a path.
    """
    with self._lock:
      stage = self._stages.get(name)
      if stage is None:
        return None
      stage.refresh()
      return stage.detail(self._clock()) | {"id": name}

  def _scan(self) -> None:
    self._runs, self._remarks = {}, []
    links: list[str] = []
    self._visit(self.root, "", None, 0, links)
    if links:
      self._remarks.append(f"links are not followed: {', '.join(links[:5])}")
    there = {name for stages in self._runs.values() for name in stages}
    for name in self._stages.keys() - there:
      del self._stages[name]
    for name in there - self._stages.keys():
      self._stages[name] = Stage(self.root / name)
    for stage in self._stages.values():
      stage.refresh()

  def _visit(
    self, folder: Path, name: str, run: str | None, depth: int, links: list[str]
  ) -> None:
    """Adds what is in a folder.

    Args:
      folder: where it is.
      name: relative to the root, "" for the root.
      run: that it belongs to, if any.
      depth: below the root.
      links: that were found; more are added.
    """
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
      self._remarks.append(f"{name}: cannot be read ({error.strerror})")
      return
    files = {entry.name for entry in entries if _is_file(entry)}
    is_run = CONFIG_FILE in files and self._is_ours(folder, name)
    has_work = bool(files & MARKS)
    if is_run or (has_work and run is None):
      run = name
      self._runs[run] = []
    if has_work or (is_run and LOCK_FILE in files):
      if sum(map(len, self._runs.values())) >= MOST_STAGES:
        told = f"only the first {MOST_STAGES} stages are shown"
        self._remarks = [*{*self._remarks, told}]
        return
      self._runs[run].append(name)
    for entry in entries:
      below = f"{name}/{entry.name}" if name else entry.name
      if not below.isprintable():
        self._remarks.append(f"{below!a}: a name that no page can show")
      elif entry.is_symlink():
        links.append(below)
      elif entry.is_dir() and not entry.name.startswith("."):
        if entry.name in SKIPPED:
          continue
        if depth < DEPTH:
          self._visit(folder / entry.name, below, run, depth + 1, links)

  def _is_ours(self, folder: Path, name: str) -> bool:
    """Says whether config.json is a run's, and not that of a model."""
    file = self._configs.setdefault(name, Document(folder / CONFIG_FILE))
    record = file.read()
    return "command" in record and isinstance(record.get("config"), dict)

  def _run(self, name: str, now: float) -> dict[str, Any]:
    """Returns what the list shows of a run."""
    file = self._configs.get(name)
    record = {} if file is None else file.read()
    config = record.get("config", {})
    stages = []
    for stage in self._runs[name]:
      found = self._stages[stage].summary(now)
      label = stage.removeprefix(name).lstrip("/")
      stages.append(found | {"id": stage, "name": label})
    states = {stage["state"] for stage in stages}
    stages = self._in_order(stages, config)
    state = next((x for x in STATES if x in states), "waiting")
    if state == "finished" and not self._is_whole(name, config):
      state = "stopped"
    return {
      "id": name,
      "name": name if name else self.root.name,
      "title": str(config.get("title") or config.get("pipeline") or ""),
      "command": _line(record.get("command", "")),
      "is_trial": bool(record.get("is_smoke")),
      "state": state,
      "stages": stages,
      "shares": self._shares(name),
    }

  def _in_order(self, stages: list[dict], config: dict) -> list[dict]:
    """Sorts the stages of a whole run as they run; adds those to come."""
    planned = [
      name
      for name, part in config.items()
      if isinstance(part, dict) and "pipeline" in part
    ]
    known = [name for name in self._order() if name in planned]
    known += [name for name in planned if name not in known]
    there = {stage["name"].partition("/")[0] for stage in stages}
    for name in known:
      if name not in there:
        stages.append({"id": None, "name": name, "state": "waiting"})
    # the folder of the whole run itself has nothing to show beside them
    kept = [x for x in stages if x["name"] or not known or x["step"]]
    place = {name: i for i, name in enumerate(known)}
    return sorted(
      kept,
      key=lambda x: (place.get(x["name"].partition("/")[0], -1), x["name"]),
    )

  @staticmethod
  def _order() -> tuple[str, ...]:
    """Returns the stages of a whole run; imported late: it brings jax."""
    from rlhf_jax.pipelines import rlhf

    return rlhf.STAGES

  def _is_whole(self, name: str, config: dict) -> bool:
    """Says whether a run of which some stages are finished is finished."""
    is_of_stages = any(
      isinstance(part, dict) and "pipeline" in part for part in config.values()
    )
    return not is_of_stages or (self.root / name / "summary.json").is_file()

  def _shares(self, name: str) -> list[dict[str, Any]]:
    """Returns the seconds of each stage of a whole run that is through."""
    path = self.root / name / "phase_seconds.jsonl"
    file = self._phases.setdefault(name, Followed(path))
    is_new, rows = file.poll()
    if is_new:
      self._seconds[name] = {}
    total = self._seconds.setdefault(name, {})
    for row in rows:
      seconds = number(row.get("seconds"))
      if isinstance(row.get("phase"), str) and seconds is not None:
        total[row["phase"]] = total.get(row["phase"], 0.0) + seconds
    return [{"name": k, "seconds": x} for k, x in total.items()]


def _line(command: Any) -> str:
  """Returns a command as one types it; config.json has it as words."""
  if isinstance(command, list):
    return shlex.join(map(str, command))
  return str(command)


def _is_file(entry: os.DirEntry) -> bool:
  try:
    return entry.is_file(follow_symlinks=False)
  except OSError:
    return False
