"""A child process that is asked in lines of JSON, and killed when it is late.

What a library may do for ever, or with all memory, is done in such a process:
its answer is awaited by the clock, and the process sets its own limits of CPU
time and memory. Nothing here isolates code; rewards/sandbox does.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Child:
  """One process that answers a line for each line, an open resource.

  Args:
    worker: a file that Python runs; it sees the package only if it imports it.
    memory_bytes: its argument, of its address space.
    longest: bytes of an answer at most.
  """

  def __init__(self, worker: Path, memory_bytes: int, longest: int):
    self.memory_bytes, self.longest = memory_bytes, longest
    self.owner = os.getpid()
    self.process = subprocess.Popen(
      [sys.executable, "-P", str(worker), str(memory_bytes)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is the trainer's
    )
    self._selector = selectors.DefaultSelector()
    self._selector.register(self.process.stdout, selectors.EVENT_READ)

  @property
  def is_ours(self) -> bool:
    """Whether this process started it, and not the one we were forked from."""
    return self.owner == os.getpid()

  def line(self, seconds: float) -> bytes | None:
    """Returns the line that it writes; None if it ends, is late or too long.

    Args:
      seconds: by the clock.
    """
    parts: list[bytes] = []
    size, ends = 0, time.monotonic() + seconds
    while size < self.longest:
      if not self._selector.select(max(ends - time.monotonic(), 0.0)):
        return None
      part = os.read(self.process.stdout.fileno(), 1 << 16)
      if not part:
        return None
      parts.append(part)
      size += len(part)
      if part.endswith(b"\n"):
        return b"".join(parts)
    return None

  def ask(self, request: dict[str, Any], seconds: float) -> bytes | None:
    """Returns the line that answers a request, None as in `line`.

    Args:
      request: plain data.
      seconds: by the clock.
    """
    try:
      self.process.stdin.write(json.dumps(request).encode() + b"\n")
      self.process.stdin.flush()
    except BrokenPipeError:
      return None
    return self.line(seconds)

  def close(self) -> None:
    """Ends the process, whatever it does."""
    self._selector.close()
    self.process.kill()
    self.process.wait()
    for stream in (self.process.stdin, self.process.stdout):
      with contextlib.suppress(OSError):
        stream.close()
