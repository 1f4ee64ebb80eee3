"""What holds an answer back, outside Python; runs in the child processes.

  namespace   user, mount, pid, network, IPC and host name namespaces: a file
              system that holds Python's library read-only and, for each answer,
              an empty folder in memory; no /proc, no process but its own.
  landlock    the same user and processes, but Landlock lets it read nothing but
              Python's library and write nothing.
  audit       neither. See tripwire.py.

All but "audit" need the filter of system calls too (seccomp.py), and root
becomes nobody first. Linux system calls through ctypes: unshare(2),
mount_setattr(2), pivot_root(2), landlock(7), capabilities(7).
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
import sysconfig

from rlhf_jax.rewards.sandbox import seccomp

LEVELS = ("namespace", "landlock", "audit")  # from the strongest
WORK = "/work"  # of an answer, in a namespace
NEW_ROOT = "/tmp"
FOLDER_FILES = 256
FOLDER_BYTES = 16  # times the limit of one file
NOBODY = 65534
NEW_MOUNTS = 0x00020000
# CLONE_NEWUSER, _NEWPID, _NEWNET, _NEWIPC, _NEWUTS, _NEWCGROUP
NEW_ALL = NEW_MOUNTS | 0x10000000 | 0x20000000 | 0x40000000
NEW_ALL |= 0x08000000 | 0x04000000 | 0x02000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
DETACH, EMPTY_PATH, RECURSIVE = 2, 0x1000, 0x8000
ATTRIBUTE_READ_ONLY, ATTRIBUTE_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_SET_NO_NEW_PRIVS = 38
SIGKILL = 9
CAPABILITY_VERSION = 0x20080522
CAP_DAC_READ_SEARCH = 1 << 2
MOUNT_SETATTR = 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def checked(result, what):
  """Raises OSError for a C function that failed."""
  if result < 0:
    raise OSError(ctypes.get_errno(), f"{what}: {_reason()}")
  return result


def _reason():
  return os.strerror(ctypes.get_errno())


def c_library():
  """Returns the C library."""
  return ctypes.CDLL(None, use_errno=True)


@functools.cache
def readable():
  """Returns folders that an answer may read, and those in them it may not."""
  library = os.path.dirname(os.path.realpath(os.__file__))
  base = os.path.join(sys.base_exec_prefix, "lib")
  named = [
    library,
    sysconfig.get_path("platstdlib", vars={"base": sys.base_prefix}),
    os.path.join(sys.base_exec_prefix, sys.platlibdir),
    base,
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
  ]
  folders = []
  for folder in sorted({p for p in named if os.path.isdir(p)}):
    if not any(folder.startswith(f"{parent}/") for parent in folders):
      folders.append(folder)
  names = ("site-packages", "dist-packages")
  parents = (library, os.path.join(base, "python3"), "/usr/lib/python3")
  packages = {os.path.join(p, name) for p in parents for name in names}
  return folders, sorted(p for p in packages if os.path.isdir(p))


def _mount(libc, source, target, kind, flags, options=None):
  parts = [
    None if part is None else part.encode() for part in (source, target, kind)
  ]
  data = None if options is None else options.encode()
  checked(libc.mount(*parts, ctypes.c_ulong(flags), data), f"mount {target}")


def _only_libraries(libc):
  """Makes the root a read-only tree of Python's library and /dev/null."""
  _mount(libc, None, "/", None, MS_REC | MS_PRIVATE)
  folders, packages = readable()
  opened = [(path, os.open(path, os.O_PATH)) for path in folders]
  opened.append(("/dev/null", os.open("/dev/null", os.O_PATH)))
  own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
  _mount(libc, "tmpfs", NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
  os.mkdir(NEW_ROOT + WORK)
  for path, fd in opened:
    target = NEW_ROOT + path
    if path == "/dev/null":
      os.mkdir(os.path.dirname(target))
      os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    else:
      os.makedirs(target)
    _mount(libc, f"/proc/self/fd/{fd}", target, None, MS_BIND | MS_REC)
    os.close(fd)
  for path in packages:
    _mount(libc, "tmpfs", NEW_ROOT + path, "tmpfs", MS_NOSUID | MS_NODEV)
  os.close(own)
  attributes = (ctypes.c_uint64 * 4)(ATTRIBUTE_READ_ONLY | ATTRIBUTE_NOSUID)
  root = NEW_ROOT.encode()
  result = libc.syscall(
    MOUNT_SETATTR, -100, root, RECURSIVE, ctypes.byref(attributes), 32
  )
  checked(result, "mount_setattr")
  os.chdir(NEW_ROOT)
  number = PIVOT_ROOT[os.uname().machine]
  checked(libc.syscall(number, b".", b"."), "pivot_root")
  checked(libc.umount2(b".", DETACH), "umount")
  os.chdir("/")


def become_nobody(libc, reads_all):
  """Gives root up for good, and with it every right but perhaps to read.

  Args:
    libc: the C library.
    reads_all: keep CAP_DAC_READ_SEARCH, for a Python that only root can read.
  """
  if reads_all:
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
  os.setgroups([])
  os.setgid(NOBODY)
  os.setuid(NOBODY)
  if reads_all:
    set_capabilities(libc, CAP_DAC_READ_SEARCH)


def set_capabilities(libc, kept):
  """Keeps these capabilities, a set of bits below 32, and no others."""
  header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
  data = (ctypes.c_uint32 * 6)(kept, kept)
  checked(libc.capset(header, data), "capset")


def enter_namespaces(libc):
  """Moves this process and its children into namespaces of their own.

  Root sees the folders of a Python that nobody else may enter: it makes the
  new file system before it becomes nobody.

  Raises:
    OSError: the kernel or whoever runs this machine does not allow it.
  """
  own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
  is_root = os.geteuid() == 0
  if is_root:
    checked(libc.unshare(NEW_MOUNTS), "unshare")
    _only_libraries(libc)
    become_nobody(libc, reads_all=False)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else uid_map is root's
  user, group = os.geteuid(), os.getegid()
  checked(libc.unshare(NEW_ALL), "unshare")
  for name, text in (
    ("setgroups", "deny"),
    ("uid_map", f"{NOBODY} {user} 1"),
    ("gid_map", f"{NOBODY} {group} 1"),
  ):
    fd = os.open(name, os.O_WRONLY, dir_fd=own)
    os.write(fd, text.encode())
    os.close(fd)
  os.close(own)
  if not is_root:
    _only_libraries(libc)


def own_folder(libc, file_bytes):
  """Mounts an empty folder in memory, for this process alone, and enters it."""
  checked(libc.unshare(NEW_MOUNTS), "unshare")
  size = FOLDER_BYTES * file_bytes
  options = f"size={size},nr_inodes={FOLDER_FILES},mode=700"
  flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
  _mount(libc, "tmpfs", WORK, "tmpfs", flags, options)
  os.chdir(WORK)


def _parts(folder, hidden):
  """Yields (path, rights) that allow a folder without what is hidden in it."""
  if folder in hidden:
    return
  if not any(path.startswith(f"{folder}/") for path in hidden):
    yield folder, READ_DIR | READ_FILE
    return
  yield folder, 0
  for entry in os.scandir(folder):
    if entry.is_dir(follow_symlinks=False):
      yield from _parts(entry.path, hidden)
    elif entry.is_file():
      yield entry.path, READ_FILE


def enter_landlock(libc):
  """Leaves this process and its children nothing to open but the library.

  Raises:
    OSError: the kernel has no Landlock, or it is switched off.
  """
  version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
  checked(version, "landlock")
  files = (1 << 13) - 1
  for since, bit in ((2, 13), (3, 14), (5, 15)):
    files |= (version >= since) << bit
  handled = (ctypes.c_uint64 * 3)(
    files, 3 if version >= 4 else 0, 3 if version >= 6 else 0
  )
  size = 8 if version < 4 else 16 if version < 6 else 24
  rules = libc.syscall(LANDLOCK_CREATE, ctypes.byref(handled), size, 0)
  checked(rules, "landlock_create_ruleset")
  folders, packages = readable()
  for folder in folders:
    for path, rights in _parts(os.path.realpath(folder), packages):
      _allow(libc, rules, path, rights)
  libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
  os.close(rules)


def _allow(libc, rules, path, rights):
  """Adds a rule. To list a folder is a right on all below: rights 0 adds it."""

  class Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("fd", ctypes.c_int32)]

  fd = os.open(path, os.O_PATH)
  rule = Beneath(rights or READ_DIR, fd)
  result = libc.syscall(LANDLOCK_ADD, rules, 1, ctypes.byref(rule), 0)
  os.close(fd)
  checked(result, f"landlock_add_rule {path}")


def limit(limits, seconds):
  """Sets the limits of this process for good.

  Args:
    limits: memory_bytes, file_bytes.
    seconds: CPU time, rounded up.
  """
  for name, value in (
    ("RLIMIT_AS", limits["memory_bytes"]),
    ("RLIMIT_CORE", 0),
    ("RLIMIT_CPU", int(seconds) + 1),
    ("RLIMIT_FSIZE", limits["file_bytes"]),
    ("RLIMIT_NOFILE", 64),
    ("RLIMIT_NPROC", 0),
    ("RLIMIT_MSGQUEUE", 0),
  ):
    if hasattr(resource, name):
      resource.setrlimit(getattr(resource, name), (value, value))


def lock(libc, level, user):
  """Gives up the last rights for good; nothing above it runs afterwards.

  Args:
    libc: the C library.
    level: of LEVELS.
    user: "nobody_reading" keeps the right to read a Python that is root's.

  Raises:
    OSError: a level that needs the filter has none.
  """
  if sys.platform != "linux":
    return
  libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
  libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
  kept = CAP_DAC_READ_SEARCH if user == "nobody_reading" else 0
  set_capabilities(libc, kept)
  checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
  try:
    seccomp.restrict(libc, may_write=level == "namespace")
  except OSError:
    if level != "audit":
      raise
