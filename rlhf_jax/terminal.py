"""What a person reads in a terminal or a log: a progress line, tables, numbers.

What a program reads of a run is in metrics.py.
"""

from __future__ import annotations

import collections
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rlhf_jax.schema import UserError

_SIGNED = ("score", "reward", "margin", "advantage")  # printed with a sign
LOG_SECONDS = 8.0  # between lines of a log, below output.SILENT_SECONDS


def decimal(value: float, decimals: int = 2, *, sign: bool = False) -> str:
  """Returns a number with fixed decimals; what rounds to zero has no sign.

  Args:
    value: any.
    decimals: digits after the point.
    sign: writes + before positive values.
  """
  rounded = round(value, decimals) + 0.0  # -0.0 + 0.0 is 0.0
  return f"{rounded:{'+' if sign else ''}.{decimals}f}"


def short(value: float, digits: int = 3, *, sign: bool = False) -> str:
  """Returns a number with so many significant digits; zero has no minus.

  Below a million whole numbers keep all of theirs: 12,345. Below 1e-12 it is
  what rounding leaves of 0, and 0 is written.
  """
  if abs(value) < 1e-12:
    value = 0.0
  if 10**digits - 0.5 <= abs(value) < 10**6:  # not of a nan
    return f"{value:{'+' if sign else ''},.0f}"
  return f"{float(value) + 0.0:{'+' if sign else ''}.{digits}g}"


class Progress:
  """One line: ppo 12/24  50%  7.1 s/step  ETA 1:25  score +0.81  kl 5.2.

  Rewritten in place on a terminal, else printed every few seconds: at once
  where another update as slow as the last would come too late. The first update
  of a process compiles: the clock starts after it. Later compilations (another
  length of rows) are few, so the pace is a median.
  """

  default_stream: TextIO | None = None  # None is standard error

  def __init__(
    self,
    phase: str,
    total: int,
    initial: int = 0,
    stream: TextIO | None = None,
    *,
    unit: str = "step",
    every_seconds: float = LOG_SECONDS,
    window: int = 20,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Makes the line; `with` shows it before the first update.

    Args:
      phase: first word of the line.
      total: steps when done.
      initial: steps done before this process.
      stream: default_stream when None.
      unit: what is counted.
      every_seconds: between lines where there is no terminal.
      window: the pace is that of so many updates.
      clock: seconds.
    """
    if total < 1 or not 0 <= initial <= total:
      raise UserError(
        f"initial={initial}, total={total}: need 0 <= initial <= total, and "
        "total >= 1."
      )
    self._phase, self._total = phase, total
    stream = self.default_stream if stream is None else stream
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._period = 0.1 if self._is_terminal else every_seconds
    self._clock = clock
    self._initial, self._unit = initial, unit
    self._marks: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=window + 1
    )
    self._printed_at = -math.inf
    self._line = self._printed = ""

  def __enter__(self) -> Progress:
    if self._initial < self._total:
      self._line = (
        f"{self._phase} {self._initial}/{self._total}  compiling the first step"
      )
      self._print(-math.inf)  # the first update is shown whenever it comes
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def update(self, n: int, **numbers: float | str) -> None:
    """Shows that n steps are done, counted from the start of the run."""
    now = self._clock()
    gap = now - self._marks[-1][0] if self._marks else 0.0
    self._marks.append((now, n))
    self._line = self._format(n, numbers)
    if now - self._printed_at + gap > self._period:
      self._print(now)

  def note(self, text: str) -> None:
    """Prints a line of its own, "" none, beside the one that is rewritten."""
    if text:
      clear = "\r\x1b[K" if self._is_terminal else ""
      self._stream.write(f"{clear}{self._phase}: {text}\n")
      self._stream.flush()

  def close(self) -> None:
    """Prints the last state, and ends the line."""
    if self._line and self._line != self._printed:
      self._print(self._clock())
    if self._is_terminal and self._printed:
      self._stream.write("\n")
    self._stream.flush()

  def _format(self, n: int, numbers: Mapping[str, float | str]) -> str:
    parts = [f"{self._phase} {n}/{self._total}", f"{100 * n // self._total}%"]
    paces = [
      (t1 - t0) / (n1 - n0)
      for (t0, n0), (t1, n1) in itertools.pairwise(self._marks)
      if n1 > n0
    ]
    if paces:
      pace = statistics.median(paces)
      parts += [
        f"{pace:.{'2g' if pace < 10 else '0f'}} s/{self._unit}",
        f"ETA {format_seconds(pace * (self._total - n))}",
      ]
    for name, value in numbers.items():
      if not isinstance(value, str):
        sign = any(word in name for word in _SIGNED)
        value = short(value, sign=sign)
      parts.append(f"{name} {value}")
    return "  ".join(parts)

  def _print(self, now: float) -> None:
    if self._is_terminal:
      self._stream.write(f"\r{self._line}\x1b[K")
    else:
      self._stream.write(f"{self._line}\n")
    self._stream.flush()
    self._printed, self._printed_at = self._line, now


def format_seconds(seconds: float) -> str:
  """Returns m:ss, or h:mm:ss from an hour on."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minute:02d}:{second:02d}"
  return f"{minute}:{second:02d}"


def format_table(headers: Sequence[str], rows: Sequence[Sequence]) -> str:
  """Returns a table for terminals: numbers to the right, text to the left.

  Raises:
    ValueError: a row with another number of cells than headers.
  """
  for row in rows:
    if len(row) != len(headers):
      raise UserError(
        f"row {list(row)} has {len(row)} cells for {len(headers)} headers."
      )
  is_number = [
    bool(rows) and all(isinstance(row[i], int | float) for row in rows)
    for i in range(len(headers))
  ]
  cells = [[str(header) for header in headers]]
  for row in rows:
    cells.append([short(c, 4) if isinstance(c, float) else str(c) for c in row])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for row in cells:
    padded = [
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(row, widths, is_number, strict=True)
    ]
    lines.append("  ".join(padded).rstrip())
  lines.insert(1, "  ".join("-" * width for width in widths))
  return "\n".join(lines)
