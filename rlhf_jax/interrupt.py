"""A clean stop at the next step boundary when the machine asks for one.

The first SIGTERM (a spot machine being taken back), SIGHUP (a terminal that
closes) or Ctrl-C only sets a flag; the loop saves a checkpoint after its step
and leaves. A second Ctrl-C quits at once, until the save is whole: then nothing
is left to quit, and the exit code stays that of a run that saved. On several
processes all must stop at the same step, so there the JAX coordination service
handles SIGTERM, SIGHUP becomes one, and `should_stop` asks it.

Left out: SIGKILL and power cuts; checkpoint.py survives them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from rlhf_jax import output

AGAIN_SECONDS = 0.05  # until a request is repeated that was dropped
_LATE = ("Event loop is closed", "cannot schedule new futures after shutdown")


def prepare() -> None:
  """Prepares a process: how it ends outside of a training loop.

  SIGTERM and SIGHUP end it as Ctrl-C does (but for what it was born to ignore:
  nohup, a job in the background), threads that go on after a failed save keep
  quiet, and output that nobody reads is dropped.
  """
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, _terminate)
  output.prepare()
  sys.unraisablehook = _asked_again(_without_late(sys.__unraisablehook__))
  threading.excepthook = _without_late(threading.__excepthook__)


def settle() -> None:
  """Lets no further signal change the exit code of a process that ends."""
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is _terminate:
      signal.signal(number, signal.SIG_IGN)


class _Ended(KeyboardInterrupt):
  """A signal outside of a training loop.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int) -> None:
    self.number = number
    super().__init__()


def _terminate(number: int, frame: Any) -> None:
  del frame
  raise _Ended(number)


def _without_late(show: Callable[[Any], None]) -> Callable[[Any], None]:
  """Returns a hook that leaves out what threads of a failed save still meet.

  Threads of TensorStore and Orbax go on for a moment after Orbax has raised
  the reason, which is reported; hundreds of complaints would bury it.
  """

  def hook(found: Any) -> None:
    if not (found.exc_type is RuntimeError and str(found.exc_value) in _LATE):
      show(found)

  return hook


def _asked_again(show: Callable[[Any], None]) -> Callable[[Any], None]:
  """Returns a hook that repeats a request to end that Python dropped.

  A signal may come while a finaliser or a callback of the garbage collector
  runs (jax has one). What a handler raises there is printed and forgotten, so
  the process would go on. It is asked again from a thread, a moment later: at
  once would be inside the same callback.
  """

  def hook(found: Any) -> None:
    if not issubclass(found.exc_type, KeyboardInterrupt):
      show(found)
      return
    number = getattr(found.exc_value, "number", signal.SIGINT)
    main = threading.main_thread().ident
    again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()

  return hook


class Stopped(Exception):
  """A run stopped early on request, its checkpoint saved.

  Attributes:
    step: updates done, the step of the checkpoint.
    signal: number of the signal that asked, or None on a process that was
      told by another one.
  """

  def __init__(self, step: int, signal: int | None) -> None:
    self.step = step
    self.signal = signal
    super().__init__(f"stopped after step {step}; start again to resume")


class Interrupt:
  """Turns the first SIGINT, SIGTERM or SIGHUP inside `with` into a request.

  Does nothing in threads other than the main one, where Python allows no
  signal handlers. A signal that the process ignores (nohup) stays ignored.
  """

  def __init__(self) -> None:
    self.requested = False
    self.signal: int | None = None
    self._is_saved = False
    self._previous: dict[int, object] = {}

  def __enter__(self) -> Interrupt:
    if threading.current_thread() is threading.main_thread():
      caught = [signal.SIGINT, signal.SIGHUP]
      if jax.process_count() == 1:
        caught.append(signal.SIGTERM)
      for number in caught:
        if number == signal.SIGINT or not _is_ignored(number):
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      if self._is_saved and handler is _terminate:
        handler = signal.SIG_IGN  # the process ends, with its exit code
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous = {}

  def saved(self) -> None:
    """Says that the checkpoint is whole: further signals have no effect.

    Nor have they after `with`, in a process that `prepare` was called in.
    """
    self._is_saved = True

  def should_stop(self, step: int) -> bool:
    """Says whether to save and leave now; the same on all processes.

    Args:
      step: updates done. Every process must ask at every step.
    """
    if jax.process_count() == 1:
      return self.requested
    return multihost_utils.reached_preemption_sync_point(step)

  def came_late(self) -> bool:
    """Says whether a signal came, perhaps since `should_stop` was asked.

    On several processes that is not agreed on, so False.
    """
    return self.requested and jax.process_count() == 1

  def _handle(self, number: int, frame: object) -> None:
    del frame
    if self._is_saved:
      return
    if number == signal.SIGHUP and jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # all processes are told of it
      return
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    if not self.requested:
      self.requested, self.signal = True, number
      _say(
        f"{signal.Signals(number).name}: saving a checkpoint after this step; "
        "repeat Ctrl-C to quit at once\n"
      )


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """Lets a signal inside `with` end the process, as outside of a loop.

  For a step of a loop that waits for people: it may take days, and what it
  needs to go on is on the disk before it waits.
  """
  before = {}
  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      if not _is_ignored(number):
        before[number] = signal.signal(number, _terminate)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _is_ignored(number: int) -> bool:
  return signal.getsignal(number) == signal.SIG_IGN


def _say(line: str) -> None:
  """Writes to stderr even if the signal came in the middle of a write."""
  try:
    sys.stderr.write(line)
    sys.stderr.flush()
  except RuntimeError:  # reentrant call
    with contextlib.suppress(OSError):
      os.write(2, line.encode())
  except OSError:  # nobody reads it
    pass
