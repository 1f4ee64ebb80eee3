"""Processes that compare formulas, killed when they take too long.

sympy has no time limit of its own, and one in the trainer (a signal) works in
the main thread only. Here each comparison runs in a child process
(formula_worker.py), which lives on for the next one and is replaced when it was
killed. Left out: isolation; trees hold no code.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.schema import UserError

WORKER = Path(__file__).with_name("formula_worker.py")
START_SECONDS = 120.0  # sympy is imported, perhaps from a slow disk
# By the clock, for each second of CPU time, on a machine that does more.
CLOCK_SECONDS = 2.0
GRACE_SECONDS = 1.0  # beyond that


def require() -> None:
  """Raises UserError unless sympy is installed."""
  if importlib.util.find_spec("sympy") is None:
    raise UserError(
      "verifier='math': needs sympy, which is not installed. Install it with "
      "`pip install 'rlhf_jax[math]'`, or compare numbers only, with the "
      "verifier 'number'."
    )


class Worker:
  """One child process, an open resource.

  Args:
    memory_bytes: of its address space.
  """

  def __init__(self, memory_bytes: int):
    self.memory_bytes = memory_bytes
    self.owner = os.getpid()
    self.process = subprocess.Popen(
      [sys.executable, "-P", str(WORKER), str(memory_bytes)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is the trainer's
    )
    self.received = b""
    if self.line(START_SECONDS) != "ready":
      self.close()
      raise RuntimeError(
        f"{WORKER.name} did not start, so no formula can be compared. Check "
        f"that `{sys.executable} -c 'import sympy'` works and that "
        f"{memory_bytes >> 20} MiB are free."
      )

  def line(self, seconds: float) -> str | None:
    """Returns the next line of its output, None when it ended or is late."""
    with selectors.DefaultSelector() as selector:
      selector.register(self.process.stdout, selectors.EVENT_READ)
      while b"\n" not in self.received:
        if not selector.select(seconds):
          return None
        found = os.read(self.process.stdout.fileno(), 4096)
        if not found:
          return None
        self.received += found
    line, _, self.received = self.received.partition(b"\n")
    return line.decode()

  def ask(self, request: dict[str, Any], seconds: float) -> bool | None:
    """Returns the reply to a request, None if none came in time."""
    written = json.dumps({**request, "seconds": seconds}) + "\n"
    try:
      self.process.stdin.write(written.encode())
      self.process.stdin.flush()
    except BrokenPipeError:
      return None
    reply = self.line(CLOCK_SECONDS * seconds + GRACE_SECONDS)
    return None if reply is None else reply == "1"

  def close(self) -> None:
    """Ends the process, whatever it does."""
    self.process.kill()
    self.process.wait()
    for stream in (self.process.stdin, self.process.stdout):
      with contextlib.suppress(OSError):
        stream.close()


_idle: list[Worker] = []
_lock = threading.Lock()


@contextlib.contextmanager
def borrowed(memory_bytes: int) -> Iterator[list[Worker]]:
  """Yields [worker], an idle one or a new one; what is left there is kept."""
  with _lock:
    fit = [
      w
      for w in _idle
      if w.memory_bytes == memory_bytes and w.owner == os.getpid()
    ]
    if fit:
      _idle.remove(fit[0])
  held = fit[:1] or [Worker(memory_bytes)]
  try:
    yield held
  except BaseException:
    close(held)
    raise
  with _lock:
    _idle.extend(held)


def close(workers: list[Worker]) -> None:
  """Ends workers, and empties the list."""
  while workers:
    workers.pop().close()


def compare(
  request: dict[str, Any], seconds: float, memory_bytes: int
) -> bool | None:
  """Returns whether two trees are equal, None when that takes too long.

  Args:
    request: "answer", "reference" (trees of formulas.py), "tolerance".
    seconds: CPU time.
    memory_bytes: address space of the process.
  """
  with borrowed(memory_bytes) as held:
    found = held[0].ask(request, seconds)
    if found is None:
      close(held)
  return found


@atexit.register
def _close_idle() -> None:
  close([worker for worker in _idle if worker.owner == os.getpid()])
