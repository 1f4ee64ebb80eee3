"""Freed memory is kept, on Linux with the GNU C library."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from rlhf_jax import allocator

print(int(allocator.keep_blocks()))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
faults = []
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(64 << 20)
  libc.memset(block, 1, 64 << 20)
  libc.free(block)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""
is_glibc = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not is_glibc, reason="another C library")
@pytest.mark.parametrize("own", [False, True])
def test_a_block_is_paid_for_once(own):
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
  }
  if own:
    environment["MALLOC_ARENA_MAX"] = "2"
  found = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  told, faults = map(int, found.stdout.split())
  assert told == (not own)
  assert (faults < 100) == (not own)  # of 16,384 pages
