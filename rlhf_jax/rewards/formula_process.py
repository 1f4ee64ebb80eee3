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
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.child_process import Child
from rlhf_jax.schema import UserError

WORKER = Path(__file__).with_name("formula_worker.py")
START_SECONDS = 120.0  # sympy is imported, perhaps from a slow disk
# By the clock, for each second of CPU time, on a machine that does more.
CLOCK_SECONDS = 2.0
GRACE_SECONDS = 1.0  # beyond that
LONGEST = 4096  # bytes of a reply


def require() -> None:
  """Raises UserError unless sympy is installed."""
  if importlib.util.find_spec("sympy") is None:
    raise UserError(
      "verifier='math': needs sympy, which is not installed. Install it with "
      "`pip install 'rlhf_jax[math]'`, or compare numbers only, with the "
      "verifier 'number'."
    )


def _started(memory_bytes: int) -> Child:
  """Returns a process that has imported sympy.

  Args:
    memory_bytes: of its address space.
  """
  child = Child(WORKER, memory_bytes, LONGEST)
  if child.line(START_SECONDS) != b"ready\n":
    child.close()
    raise RuntimeError(
      f"{WORKER.name} did not start, so no formula can be compared. Check "
      f"that `{sys.executable} -c 'import sympy'` works and that "
      f"{memory_bytes >> 20} MiB are free."
    )
  return child


_idle: list[Child] = []
_lock = threading.Lock()


@contextlib.contextmanager
def borrowed(memory_bytes: int) -> Iterator[list[Child]]:
  """Yields [worker], an idle one or a new one; what is left there is kept."""
  with _lock:
    fit = [w for w in _idle if w.memory_bytes == memory_bytes and w.is_ours]
    if fit:
      _idle.remove(fit[0])
  held = fit[:1] or [_started(memory_bytes)]
  try:
    yield held
  except BaseException:
    close(held)
    raise
  with _lock:
    _idle.extend(held)


def close(workers: list[Child]) -> None:
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
    reply = held[0].ask(
      {**request, "seconds": seconds}, CLOCK_SECONDS * seconds + GRACE_SECONDS
    )
    if reply is None:
      close(held)
  return None if reply is None else reply == b"1\n"


@atexit.register
def _close_idle() -> None:
  close([worker for worker in _idle if worker.is_ours])
