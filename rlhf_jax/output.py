"""Output that nobody reads any more is dropped: it never costs a run.

A closed terminal, a pipe to `head`, a full disk under a log, a process that was
started without standard output at all. And a run that says nothing for a while
is said to be still at it (`never_silent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

# The exit status after a stop that a signal asked for: EX_TEMPFAIL of
# sysexits.h, "try again", so that a launch script can tell "resume me" from a
# crash (1), a usage error (2) or a kill (128 + signal).
EXIT_INTERRUPTED = 75


def run_command(main: Callable[..., int], *arguments: Any) -> NoReturn:
  """Ends the process with the exit code that a command's `main` returns.

  Ctrl-C before it handles signals itself, while jax is imported, ends it in
  one line and with EXIT_INTERRUPTED; so does a signal between the two.
  """
  prepare()
  try:
    code = main(*arguments)
  except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
    print("\nstopped. The same command begins again.", file=sys.stderr)
    code = EXIT_INTERRUPTED
  sys.exit(code)


SILENT_SECONDS = 9.0  # after which a run says that it is still at it
PATIENT_SECONDS = 120.0  # of a silence, after which a log is told less often
CLEAR = "\r\x1b[K"  # the line of a terminal


class Silence:
  """Says when and what to say to whoever waits.

  A terminal is told every SILENT_SECONDS, on one line; a log too, and after
  PATIENT_SECONDS of one silence every minute.
  """

  def __init__(self, is_terminal: bool) -> None:
    self._is_terminal = is_terminal
    self._told_at = 0.0

  def line(self, now: float, said_at: float, said: str) -> str:
    """Returns what to say now, "" for nothing.

    Args:
      now, said_at: seconds, of now and of what was said last.
      said: that.
    """
    silent = now - said_at
    every = SILENT_SECONDS
    if not self._is_terminal and silent >= PATIENT_SECONDS:
      every = 60.0
    if now - max(said_at, self._told_at) < every:
      return ""
    self._told_at = now
    words = textwrap.shorten(said.replace(CLEAR, ""), 60, placeholder=" ...")
    return f"... still at it, {silent:.0f} s after: {words}"


@contextlib.contextmanager
def never_silent() -> Iterator[None]:
  """Says every few seconds that work goes on, as long as nothing else does.

  Around the `main` of a command that may take long. Only where standard output
  is that of `prepare`, and not of a process of a run that keeps quiet.
  """
  stream = sys.stdout
  if not isinstance(stream, Heedless):
    yield
    return
  is_done = threading.Event()
  silence = Silence(stream.isatty())

  def watch() -> None:
    while not is_done.wait(min(0.5, SILENT_SECONDS / 4)):
      line = silence.line(time.monotonic(), Heedless.said_at, Heedless.said)
      if line:
        stream.remind(line)

  Heedless.said_at = time.monotonic()
  threading.Thread(target=watch, name="never silent", daemon=True).start()
  try:
    yield
  finally:
    is_done.set()


def prepare() -> None:
  """Makes standard output and standard error of this process heedless."""
  sys.stdout, sys.stderr = _heedless(sys.stdout), _heedless(sys.stderr)


def _heedless(stream: Any) -> Any:
  if stream is None:  # closed before the process began
    return open(os.devnull, "w")  # until the process ends
  return stream if isinstance(stream, Heedless) else Heedless(stream)


class Heedless:
  """A stream whose reader may go away: the rest is written to nowhere."""

  said_at = 0.0  # of all of them, time.monotonic()
  said = ""  # the last words of any
  clears = False  # whether a line of `never_silent` is on the terminal

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes, or drops what cannot be written."""
    Heedless.said_at = time.monotonic()
    if text.strip():
      Heedless.said = text
    with self._forgiving():
      if Heedless.clears:
        Heedless.clears = False
        self._stream.write(CLEAR)
      self._stream.write(text)
    return len(text)

  def remind(self, text: str) -> None:
    """Writes a line of `never_silent`, which the next one replaces."""
    with self._forgiving():
      if self._stream.isatty():
        self._stream.write(f"{CLEAR}{text}")
        Heedless.clears = True
      else:
        self._stream.write(f"{text}\n")
      self._stream.flush()

  def flush(self) -> None:
    """Flushes, or drops what cannot be written."""
    with self._forgiving():
      self._stream.flush()

  @contextlib.contextmanager
  def _forgiving(self) -> Iterator[None]:
    try:
      yield
    except OSError:
      # What is in the buffer goes there too, when the process ends.
      with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
