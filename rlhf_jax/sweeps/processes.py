"""Several processes side by side, their signals, and those of before.

Each runs in a session of its own, so that Ctrl-C in a terminal reaches them
once: from here. What a killed sweep has left behind is found by its process
number and the time when it began.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Task:
  """A process to be run.

  name: of the task.
  command: its words.
  log: file that its output is added to.
  """

  name: str
  command: Sequence[str]
  log: Path


class Signals:
  """Notes SIGINT, SIGTERM and SIGHUP inside `with`, and passes them on.

  Attributes:
    number: of the first one; None while none came.
    is_over: whether nothing more is to be started; set by who runs them.
  """

  def __init__(self) -> None:
    self.number: int | None = None
    self.is_over = False
    self.running: dict[str, subprocess.Popen] = {}
    self._previous: dict[int, object] = {}

  @property
  def may_start(self) -> bool:
    """Whether further processes may be started."""
    return self.number is None and not self.is_over

  def __enter__(self) -> Signals:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def _handle(self, number: int, frame: object) -> None:
    del frame
    self.number = number if self.number is None else self.number
    for process in list(self.running.values()):
      with contextlib.suppress(OSError):
        process.send_signal(number)


@dataclasses.dataclass(frozen=True)
class Events:
  """What is called while processes run.

  started: (task, process number).
  ended: (task, exit code, seconds) -> whether the task is to be run again. The
    code is negative, -N, of a process that signal N ended.
  waiting: (names of what runs), every POLL_SECONDS.
  """

  started: Callable[[Task, int], None]
  ended: Callable[[Task, int, float], bool]
  waiting: Callable[[Sequence[str]], None] = lambda names: None


def run_all(
  tasks: Sequence[Task],
  jobs: int,
  signals: Signals,
  events: Events,
  environment: Callable[[int], Mapping[str, str]] = lambda slot: os.environ,
) -> None:
  """Runs all tasks, at most `jobs` at once, in their order.

  After a signal none is started; those that run got it, and are waited for.
  Nor is any once `signals.is_over`.

  Args:
    tasks: to be run.
    jobs: processes at once.
    signals: entered.
    events: what is called.
    environment: slot in [0, jobs) -> variables of a process in it.
  """
  waiting = collections.deque(tasks)
  slots = list(range(jobs))[::-1]
  begun: dict[str, tuple[Task, int, float]] = {}
  while waiting or begun:
    while waiting and slots and signals.may_start:
      task, slot = waiting.popleft(), slots.pop()
      process = _start(task, environment(slot))
      signals.running[task.name] = process
      if signals.number is not None:  # came before it could be passed on
        process.send_signal(signals.number)
      begun[task.name] = (task, slot, time.monotonic())
      events.started(task, process.pid)
    for name, (task, slot, since) in list(begun.items()):
      code = signals.running[name].poll()
      if code is None:
        continue
      del begun[name], signals.running[name]
      slots.append(slot)
      if events.ended(task, code, time.monotonic() - since):
        waiting.append(task)
    if not signals.may_start and not begun:
      return
    events.waiting(list(begun))
    time.sleep(POLL_SECONDS if begun else 0.0)


def _start(task: Task, environment: Mapping[str, str]) -> subprocess.Popen:
  with task.log.open("ab") as log:
    return subprocess.Popen(
      list(task.command),
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env=dict(environment),
    )


def born(pid: int) -> str:
  """Returns when a process began; "" where that is not known, or it ended."""
  found = list(_facts(pid))
  return found[1] if found and found[0] not in "ZX" else ""


def is_alive(pid: int, since: str) -> bool:
  """Says whether a process of before still runs.

  Args:
    pid: its number.
    since: what `born` said then.
  """
  if since:
    return born(pid) == since
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # another user's, so not ours
    return False
  return not Path("/proc/self/stat").exists()


def _facts(pid: int) -> Iterator[str]:
  """Yields the state of a process, and when it began, from /proc."""
  with contextlib.suppress(OSError, IndexError):
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    yield fields[0]
    yield fields[19]
