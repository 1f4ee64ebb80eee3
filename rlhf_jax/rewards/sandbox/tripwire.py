"""A guard rail inside the interpreter of an answer: Python's audit hook.

It stops what a policy stumbles on, not native code, nor what Python does not
report. Runs alone, on the standard library. sys.addaudithook, PEP 578.
"""

from __future__ import annotations

import os
import sys

from rlhf_jax.rewards.sandbox import walls

REFUSED_EVENTS = (
  "socket.",
  "ctypes.",
  "subprocess.",
  "os.exec",
  "os.fork",
  "os.kill",
  "os.posix_spawn",
  "os.spawn",
  "os.system",
  "os.setxattr",
  "os.removexattr",
  "pty.",
  "resource.",
  "fcntl.",
  "syslog.",
)
CHANGING_EVENTS = (
  "os.chdir",
  "os.chflags",
  "os.chmod",
  "os.chown",
  "os.link",
  "os.lockf",
  "os.mkdir",
  "os.remove",
  "os.rename",
  "os.rmdir",
  "os.symlink",
  "os.truncate",
  "os.utime",
)
# Of these, native code opens files without asking Python.
REFUSED_IMPORTS = "_ctypes _dbm _gdbm _multiprocessing _posixshmem _sqlite3"
REFUSED_CALLS = "mkfifo mknod memfd_create pidfd_open openpty"


def set_tripwire(has_walls):
  """Makes Python itself refuse processes, sockets, native code and files.

  A guard rail in the policy's own interpreter, not a wall. Files are left to
  the walls where there are some; else nothing can be changed, and nothing read
  outside the standard library.
  """
  libraries, packages = walls.readable()  # found before, see server.py
  real, within, decoded = os.path.realpath, os.path.commonpath, os.fsdecode
  libraries = [real(path) for path in libraries]
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  native = frozenset(REFUSED_IMPORTS.split())

  def is_inside(path, parents):
    return any(within([path, parent]) == parent for parent in parents)

  def hook(event, arguments):
    if event.startswith(REFUSED_EVENTS):
      raise PermissionError(f"{event} is not allowed here")
    if has_walls:
      return
    is_refused = event in CHANGING_EVENTS
    if event == "import":
      is_refused = arguments[0] in native
    elif event in ("open", "os.listdir", "os.scandir"):
      path = arguments[0]
      if event == "open" and arguments[2] & writing:
        is_refused = not isinstance(path, int)
      elif isinstance(path, (str, bytes)):
        path = real(decoded(path))
        is_refused = not is_inside(path, libraries) or is_inside(path, packages)
    if is_refused:
      raise PermissionError(f"{event} {arguments[:1]} is not allowed here")

  sys.addaudithook(hook)
  if not has_walls:
    for name in REFUSED_CALLS.split():
      for module in (os, sys.modules["posix"]):
        if hasattr(module, name):
          delattr(module, name)
