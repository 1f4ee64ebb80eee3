"""Output that nobody reads any more is dropped: it never costs a run.

A closed terminal, a pipe to `head`, a full disk under a log, a process that was
started without standard output at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
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


def prepare() -> None:
  """Makes standard output and standard error of this process heedless."""
  sys.stdout, sys.stderr = _heedless(sys.stdout), _heedless(sys.stderr)


def _heedless(stream: Any) -> Any:
  if stream is None:  # closed before the process began
    return open(os.devnull, "w")  # until the process ends
  return stream if isinstance(stream, Heedless) else Heedless(stream)


class Heedless:
  """A stream whose reader may go away: the rest is written to nowhere."""

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes, or drops what cannot be written."""
    with self._forgiving():
      self._stream.write(text)
    return len(text)

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
