"""One run at a time in a folder.

FOLDER/run.lock names who works there: user, host, process, since when. A second
start is refused before it writes anything. What a killed run leaves is taken
over with a word, so that the same command goes on:

  same kernel    its lock on the file (flock) ends with the process, however
                 that dies, in other containers too; on a file system without
                 such locks the process number decides, if it is of this
                 container
  before a boot  a file of this host that nobody touched since it started
  else           the owner touches the file every BEAT_SECONDS; a file that is
                 old, or that is not touched while somebody watches, has no
                 owner any more. A host's name tells little: clones share it

The file is removed at the end. Of several processes the first one holds it.
Left out: a process that was suspended for longer than QUIET_SECONDS, on a file
system where the kernel's lock does not reach other machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax import distributed
from rlhf_jax.schema import UserError

FILE = "run.lock"
BEAT_SECONDS = 5.0  # between touches of the file
QUIET_SECONDS = 90.0  # without a touch, watched: the owner is gone
SETTLE_SECONDS = 1.0  # where the kernel does not say which of two was first
OLD_SECONDS = 600.0  # without a touch, by the clocks: gone without watching


class HeldError(UserError):
  """Another run works in the folder."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
  """Holds a folder that is there, for this run alone, while inside `with`.

  Raises:
    HeldError: another run works there; on every process of this one.
  """
  file, refusal = None, ""
  if distributed.is_first():
    try:
      file = _acquire(Path(folder) / FILE)
    except HeldError as error:
      refusal = str(error)
    except OSError as error:  # told to the other processes, too
      refusal = (
        f"--workdir={str(folder)!r}: {FILE} cannot be written "
        f"({error.strerror}). Make room, or choose another folder."
      )
  if distributed.any_process(bool(refusal)):
    raise HeldError(
      refusal if refusal else f"{folder}: another run works there."
    )
  done = threading.Event()
  if file is not None:
    threading.Thread(
      target=_beat, args=(file, done), name="run.lock", daemon=True
    ).start()
  try:
    yield
  finally:
    done.set()
    if file is not None:
      _release(Path(folder) / FILE, file)


def _acquire(path: Path) -> int:
  """Returns the open lock file, with this process's name in it.

  Raises:
    HeldError: it is another's.
  """
  while True:
    try:
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as error:
      raise HeldError(
        f"{path}: is another user's, whose run works there or was killed. "
        "Choose another --workdir, or have that user delete the file."
      ) from error
    try:
      if _take(path, file):
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)  # its owner removed it just now


def _take(path: Path, file: int) -> bool:
  """Makes an open file ours; says whether it still has its name.

  Raises:
    HeldError: it is another's.
  """
  kernel = _kernel_lock(file)
  owner = _read(file)
  if kernel == "theirs" or (owner and _is_alive(owner, kernel, path)):
    raise HeldError(_refusal(path, owner))
  if not _is_same(path, file):
    return False
  if owner:
    print(
      f"{path.parent}: a run that is gone left {FILE}: {_shown(owner, path)}"
    )
  me = _me()
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps(me).encode(), 0)
  os.fsync(file)
  if kernel == "none":  # who else read that nobody works here has written now
    time.sleep(SETTLE_SECONDS)
    if _read(file) != me:
      raise HeldError(_refusal(path, _read(file)))
  return True


def _kernel_lock(file: int) -> str:
  """Returns "ours", "theirs", or "none" where files cannot be locked."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return "theirs"
  except OSError:
    return "none"
  return "ours"


def _is_same(path: Path, file: int) -> bool:
  """Says whether an open file still has its name."""
  try:
    found, here = os.stat(path), os.fstat(file)
  except FileNotFoundError:
    return False
  return (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino)


def _me() -> dict[str, Any]:
  try:
    user = getpass.getuser()
  except (KeyError, OSError):  # a number without a name
    user = str(os.getuid())
  return {
    "user": user,
    "host": socket.gethostname(),
    "boot": _boot(),
    "pids": _pids(),
    "pid": os.getpid(),
    "born": _born(os.getpid()),
    "since": time.time(),
  }


def _boot() -> str:
  """Returns what tells one start of this machine from the next, or ""."""
  with contextlib.suppress(OSError):
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  return ""


def _booted() -> float:
  """Returns when this machine started, in seconds since 1970; 0.0: unknown."""
  with contextlib.suppress(OSError, IndexError, ValueError):
    text = Path("/proc/stat").read_text()
    return float(text.partition("\nbtime ")[2].split()[0])
  return 0.0


def _pids() -> str:
  """Returns what tells one container's process numbers from others', or ""."""
  with contextlib.suppress(OSError):
    return os.readlink("/proc/self/ns/pid")
  return ""


def _born(pid: Any) -> str:
  """Returns when a process of this machine began, "" for none."""
  with contextlib.suppress(OSError, IndexError):
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[19]
  return ""


def _read(file: int) -> dict[str, Any]:
  """Returns who a lock file names; {} for nobody."""
  text = os.pread(file, 4096, 0)
  try:
    owner = json.loads(text)
  except ValueError:  # empty, or its owner was killed while it wrote
    return {}
  is_owner = isinstance(owner, dict) and isinstance(owner.get("pid"), int)
  return owner if is_owner else {}


def _is_alive(owner: dict[str, Any], kernel: str, path: Path) -> bool:
  """Says whether whom a file names, which is not locked by others, works."""
  me, touched = _me(), os.stat(path).st_mtime
  if me["boot"] and owner.get("boot") == me["boot"]:
    if kernel == "ours":
      return False
    if owner.get("pids") == me["pids"]:
      born = _born(owner["pid"])
      return bool(born) and born == owner.get("born")
  elif owner.get("host") == me["host"] and touched < _booted():
    return False
  if time.time() - touched > OLD_SECONDS:
    return False
  print(f"{path.parent}: is another run at work? {_shown(owner, path)}")
  return _beats(path)


def _beats(path: Path) -> bool:
  """Watches a file of another machine; says whether its owner touches it."""
  before, end = _touched(path), time.monotonic() + QUIET_SECONDS
  while time.monotonic() < end:
    time.sleep(min(1.0, BEAT_SECONDS / 2))
    if _touched(path) != before:
      return True
  return False


def _touched(path: Path) -> int:
  """Returns when a file was touched; opened, as NFS would remember."""
  try:
    with path.open() as file:
      return os.fstat(file.fileno()).st_mtime_ns
  except FileNotFoundError:  # its owner ended: no longer what it was
    return 0


def _beat(file: int, done: threading.Event) -> None:
  while not done.wait(BEAT_SECONDS):
    with contextlib.suppress(OSError):
      os.utime(file)


def _release(path: Path, file: int) -> None:
  with contextlib.suppress(OSError):
    if _is_same(path, file):
      path.unlink()
  os.close(file)


def _shown(owner: dict[str, Any], path: Path) -> str:
  now = time.time()
  since = owner.get("since")
  minutes = (now - since) / 60 if isinstance(since, int | float) else 0.0
  try:
    seconds = max(now - os.stat(path).st_mtime, 0.0)
  except FileNotFoundError:
    seconds = 0.0
  user, host = owner.get("user"), owner.get("host")
  return (
    f"process {owner.get('pid')} of {user} on {host}, "
    f"since {minutes:.0f} min, last seen {seconds:.0f} s ago"
  )


def _refusal(path: Path, owner: dict[str, Any]) -> str:
  who = _shown(owner, path) if owner else "it has just started"
  return (
    f"--workdir={str(path.parent)!r}: another run works there ({who}). Wait "
    "until it ends, stop it, or choose another folder."
  )
