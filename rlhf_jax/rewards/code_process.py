"""Child processes with limits, for code that nobody has read.

Each runs code_runner.py in a session of its own; `Isolation` says what that
keeps apart and what it does not. Left out: system-call filters (seccomp),
hidden or read-only file systems, cgroups; a container does those better.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.rewards import code_runner

RUNNER = Path(code_runner.__file__).read_text()
PROBE_SECONDS = 30.0


class Limits(NamedTuple):
  """Of one process. seconds: CPU time, rounded up. file_bytes: each file."""

  seconds: float = 5.0
  memory_bytes: int = 512 << 20
  file_bytes: int = 1 << 20


class Isolation(NamedTuple):
  """What holds on this machine; tried, not assumed.

  Always: own session, killed with its group on timeout; limits on address
  space, CPU seconds, file size and open files; an empty environment and
  working folder; Python refuses sockets, processes, ctypes, writes outside the
  folder and reads outside it and the standard library. That refusal is an
  audit hook inside the policy's interpreter: it stops what a policy stumbles
  on, not native code that means to escape. No system calls are filtered and
  no file system is hidden. Do not run the code of an adversary; use a
  container or virtual machine around the whole job for that.

  is_offline: an empty network namespace (Linux `unshare`), where even native
    code reaches nothing. If False, only Python refuses.
  user: "nobody": root gave itself up, and file permissions protect the run;
    "nobody_reading": the same, but everything can still be read, because this
    Python's library is root's alone; "own": code that passes the hook may do
    with files and processes what the trainer's user may.
  is_fork_refused: forks and threads fail (RLIMIT_NPROC = 0, which root
    ignores).
  """

  is_offline: bool
  user: str
  is_fork_refused: bool


def start(
  role: str,
  job: dict[str, Any],
  limits: Limits,
  folder: str,
  user: str,
  *,
  fds: tuple[int, int] = (-1, -1),
  **streams: Any,
) -> subprocess.Popen:
  """Starts code_runner in a session of its own.

  Args:
    role: see code_runner.
    job: what it reads first; JSON.
    limits: of the process.
    folder: its working folder.
    user: see Isolation.
    fds: where it reads requests and writes replies, or the other way round.
    **streams: stdin and stdout; the null device by default.
  """
  settings = {**limits._asdict(), "user": user}
  null = subprocess.DEVNULL
  with tempfile.TemporaryFile() as job_file:
    job_file.write(json.dumps(job).encode())
    job_file.seek(0)
    passed = (job_file.fileno(), *fds)
    return subprocess.Popen(
      [sys.executable, "-I", "-S", "-B", "-c", RUNNER, role]
      + [json.dumps(settings), *map(str, passed)],
      cwd=folder,
      env={"TMPDIR": folder, "LC_ALL": "C.UTF-8"},
      stderr=null,
      start_new_session=True,
      pass_fds=[fd for fd in passed if fd >= 0],
      **({"stdin": null, "stdout": null} | streams),
    )


def ends_in_time(process: subprocess.Popen, seconds: float) -> bool:
  try:
    process.wait(seconds)
  except subprocess.TimeoutExpired:
    return False
  return True


def kill(process: subprocess.Popen) -> None:
  """Kills a process and its group, and forgets it."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    pass  # it has ended already
  process.wait()


def _probe(user: str) -> Isolation | None:
  with tempfile.TemporaryFile() as output:
    limits = Limits()
    process = start("probe", {}, limits, "/", user, stdout=output)
    ends_in_time(process, PROBE_SECONDS)
    kill(process)
    output.seek(0)
    report = output.read()
  return Isolation(**json.loads(report)) if report else None


@functools.cache
def isolation() -> Isolation:
  """Returns what is isolated here, and warns once of what is not.

  Raises:
    RuntimeError: no child process can be limited at all.
  """
  users = ("nobody", "nobody_reading", "own")
  report = None
  for user in users if os.geteuid() == 0 else users[-1:]:
    report = _probe(user)
    if report is not None:
      break
  if report is None:
    raise RuntimeError(
      f"{sys.executable}: a limited child process did not start, so answers "
      "cannot be run. Check that the platform has setrlimit (Linux, macOS) "
      "and that 512 MiB are free."
    )
  missing = [
    name
    for name, is_there in [
      ("network (only Python refuses sockets)", report.is_offline),
      ("processes (a fork bomb is not capped)", report.is_fork_refused),
    ]
    if not is_there
  ]
  if missing:
    warnings.warn(
      f"code tests run without isolation of: {'; '.join(missing)}. Run as an "
      "ordinary user where user namespaces are allowed, or in a container.",
      stacklevel=2,
    )
  return report
