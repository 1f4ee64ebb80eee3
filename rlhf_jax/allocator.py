"""Large blocks of memory are kept for the next step, not given back.

A step on a CPU has temporary arrays of hundreds of MiB. The C library gives
such a block back to the system when it is free, and the next step pays for
every page of it again.
"""

from __future__ import annotations

import ctypes
import os

# Of malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1
# A user who sets one of these has a plan of their own.
_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES")


def keep_blocks() -> bool:
  """Tells the GNU C library to keep freed memory; says whether it was told.

  All threads then share one arena, so that a block that one of them has freed
  serves the next. Nothing is done where the environment sets malloc up, or
  where there is another C library. Call it before there are threads.
  """
  if any(name.startswith(_VARIABLES) for name in os.environ):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # no GNU C library
    return False
  settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
  return all([mallopt(name, value) for name, value in settings])
