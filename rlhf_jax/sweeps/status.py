"""The line of a sweep: sweep 3/8  38%  004 7/12, 005 2/12  ETA 1:20.

Rewritten in place on a terminal, else printed every few seconds.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from rlhf_jax import terminal

_STEP = re.compile(rb"\b(\d+/\d+)\b")
_TAIL_BYTES = 400  # of a log, in which the last step is looked for
_ERROR_BYTES = 8000  # in which an error is


class Status:
  """Shows how far the trials are; lines of its own do not break it."""

  def __init__(
    self,
    total: int,
    over: int,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Shows nothing yet.

    Args:
      total: trials.
      over: of them, those that are over already.
      stream: standard error when None.
      clock: seconds.
    """
    self._total, self._initial, self._over = total, over, over
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._period = 1.0 if self._is_terminal else 10.0
    self._clock, self._begun = clock, clock()
    self._shown = self._begun
    self._is_open = False

  def over(self) -> None:
    """Counts one more trial that is over."""
    self._over += 1

  def show(self, logs: Mapping[str, Path]) -> None:
    """Shows the line, unless it was shown just now.

    Args:
      logs: trial that runs -> the file that it prints to.
    """
    now = self._clock()
    if now - self._shown < self._period:
      return
    self._shown = now
    line = self.line({name: last_step(log) for name, log in logs.items()})
    end = "\x1b[K" if self._is_terminal else "\n"
    self._stream.write(f"\r{line}{end}" if self._is_terminal else line + end)
    self._stream.flush()
    self._is_open = self._is_terminal

  def line(self, running: Mapping[str, str]) -> str:
    """Returns the line.

    Args:
      running: trial -> its last step, "4/12" or "".
    """
    share = 100 * self._over // self._total
    parts = [f"sweep {self._over}/{self._total}", f"{share}%"]
    parts += [
      ", ".join(f"{name} {step}".strip() for name, step in running.items())
    ]
    done = self._over - self._initial
    if done:
      pace = (self._clock() - self._begun) / done
      left = terminal.format_seconds(pace * (self._total - self._over))
      parts.append(f"ETA {left}")
    return "  ".join(part for part in parts if part)

  def note(self, text: str) -> None:
    """Prints a line of its own."""
    clear = "\r\x1b[K" if self._is_open else ""
    self._stream.write(f"{clear}{text}\n")
    self._stream.flush()
    self._is_open = False

  def close(self) -> None:
    """Ends the line that is rewritten."""
    if self._is_open:
      self._stream.write("\n")
      self._is_open = False


def last_step(log: Path) -> str:
  """Returns the last "4/12" that a trial printed, or ""."""
  found = _STEP.findall(_tail(log, _TAIL_BYTES))
  return found[-1].decode() if found else ""


def reason(log: Path) -> str:
  """Returns the last line of a log that says an error, or its last line."""
  text = _tail(log, _ERROR_BYTES).decode(errors="replace")
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith("error:")]
  return (errors or lines or ["it printed nothing"])[-1]


def _tail(log: Path, size: int) -> bytes:
  if not log.is_file():
    return b""
  with log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - size))
    return file.read()
