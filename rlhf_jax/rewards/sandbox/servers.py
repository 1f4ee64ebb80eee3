"""Processes apart, for code that nobody has read.

A `Server` is a child process that runs server.py behind the walls of walls.py,
and forks a process for each answer. How strong the walls are depends on the
machine; `find` tries it, from the strongest down:

  namespace  Holds: an answer sees no file but Python's standard library and the
             shared libraries of the system, read-only, and an empty folder in
             memory; no network, no other process, no way to start one.
  landlock   Holds: the same, but it can write nothing at all, and it can learn
             whether a file exists, how large and how old it is.
  audit      Python's audit hook refuses files, sockets and processes, and the
             kernel the calls for them where it can filter calls. The hook is in
             the answer's own interpreter: whoever means to escape it, escapes,
             and may do what the user of the run may.

On every level: limits on memory, CPU and wall time, file size and open files;
another user (nobody) where root runs; killed with all that it started; the
tests and their values are in another process. Not held on any level: CPU time
and memory up to the limits, and faults of the kernel itself. For those, and
for machines that offer neither of the first two, let `command` start Python in
a container, or run the whole job in a virtual machine.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.rewards.sandbox.server import HEADER_BYTES
from rlhf_jax.rewards.sandbox.walls import LEVELS
from rlhf_jax.schema import UserError

MODULES = "values seccomp walls tripwire remote sources parts server".split()
SOURCES = {
  name: (Path(__file__).parent / f"{name}.py").read_text() for name in MODULES
}
BOOT = """
import json, sys, types
package = sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])
for name, source in json.loads(sys.argv[2]).items():
  module = sys.modules[f"{sys.argv[1]}.{name}"] = types.ModuleType(name)
  setattr(package, name, module)
  exec(compile(source, f"{name}.py", "exec", dont_inherit=True), vars(module))
package.server.serve(json.loads(sys.argv[3]))()
"""
START_SECONDS = 120.0  # of Python, perhaps from a slow disk or in a container
SPARE_SECONDS = 20.0  # beyond a job's own, until the server is given up
COMMAND_ENVIRONMENT = ("HOME", "DOCKER_HOST", "XDG_RUNTIME_DIR")
SHOWN = {
  "namespace": "each answer is in namespaces of its own, with a read-only view "
  "of Python's library, an empty folder and a filter of system calls",
  "landlock": "Landlock and a filter of system calls leave an answer nothing "
  "to open but Python's library",
  "audit": "ONLY an audit hook inside Python holds an answer back",
}


class Limits(NamedTuple):
  """Of one process: address space; each file, and the standard output."""

  memory_bytes: int = 512 << 20
  file_bytes: int = 1 << 20


class Walls(NamedTuple):
  """What holds answers back, and how Python is started behind it.

  level: of LEVELS.
  user: of Linux, on the levels below namespace: "nobody", which root becomes;
    "nobody_reading", the same with the right to read all files, because this
    Python is root's alone; "own".
  command: that starts Python; () for this one.
  has_tripwire: Python's audit hook is set beside the walls; tests of the walls
    do without.
  """

  level: str
  user: str = "own"
  command: tuple[str, ...] = ()
  has_tripwire: bool = True


class Outcome(NamedTuple):
  """Of one job. code: exit status, None if it ran out of time."""

  code: int | None
  output: bytes


class ServerLost(Exception):
  """The server ended or did not answer; the job may be tried on another."""


class Server:
  """A child process that runs jobs, one at a time.

  Raises:
    ServerLost: it did not start, with what it said.
  """

  def __init__(self, walls: Walls, limits: Limits):
    settings = {**walls._asdict(), **limits._asdict()}
    null = subprocess.DEVNULL
    try:
      self._process = subprocess.Popen(
        [*(walls.command or (sys.executable,)), "-I", "-S", "-B", "-c", BOOT]
        + [__package__, json.dumps(SOURCES), json.dumps(settings)],
        cwd="/",
        env={"LC_ALL": "C.UTF-8", **_environment(walls.command)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=null,
        bufsize=0,
        start_new_session=True,
      )
    except OSError as error:
      raise ServerLost(str(error)) from error
    hello = self._within(START_SECONDS, self._header)
    if not hello["ok"]:
      self.close()
      raise ServerLost(hello["why"])

  def run(self, role: str, texts: list[Any], seconds: float) -> Outcome:
    """Runs a job; see parts.py for its roles.

    Args:
      role: "tests", "program", "trial" or "probe".
      texts: what each part of it reads; JSON.
      seconds: wall time, and CPU time of each part.

    Raises:
      ServerLost: the server is gone.
    """
    sent = [json.dumps(text).encode() for text in texts]
    job = {"role": role, "seconds": seconds, "sizes": [len(x) for x in sent]}
    header = json.dumps(job).encode().ljust(HEADER_BYTES)

    def exchange() -> Outcome:
      for part in (header, *sent):
        self._write(part)
      found = self._header()
      return Outcome(found["code"], self._read(found["bytes"]))

    return self._within(seconds + SPARE_SECONDS, exchange)

  def close(self) -> None:
    """Kills the server and all that it started."""
    self._kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()

  def _kill(self) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)

  def _within(self, seconds: float, act: Any) -> Any:
    """Returns act(), for which the server has so many seconds."""
    timer = threading.Timer(seconds, self._kill)
    timer.daemon = True
    timer.start()
    try:
      return act()
    except (OSError, ValueError, KeyError) as error:
      self.close()
      raise ServerLost(str(error)) from error
    finally:
      timer.cancel()

  def _write(self, content: bytes) -> None:
    view = memoryview(content)
    while len(view):
      view = view[self._process.stdin.write(view) :]

  def _read(self, size: int) -> bytes:
    parts = []
    while size > 0:
      part = self._process.stdout.read(size)
      if not part:
        raise OSError("the process that runs answers ended")
      parts.append(part)
      size -= len(part)
    return b"".join(parts)

  def _header(self) -> dict[str, Any]:
    return json.loads(self._read(HEADER_BYTES))


def _environment(command: tuple[str, ...]) -> dict[str, str]:
  """Returns the little that starts Python: no key or token is among it."""
  names = ("PATH", *(COMMAND_ENVIRONMENT if command else ()))
  return {name: os.environ[name] for name in names if name in os.environ}


class Servers:
  """Servers behind the same walls, started when all others are busy."""

  def __init__(self, walls: Walls, limits: Limits):
    self._walls, self._limits = walls, limits
    self._idle: queue.SimpleQueue[Server] = queue.SimpleQueue()
    atexit.register(self.close)

  def run(self, role: str, texts: list[Any], seconds: float) -> Outcome:
    """As Server.run; a job whose server is lost is tried once on another."""
    try:
      return self._run_once(role, texts, seconds)
    except ServerLost:
      return self._run_once(role, texts, seconds)

  def _run_once(self, role: str, texts: list[Any], seconds: float) -> Outcome:
    try:
      server = self._idle.get_nowait()
    except queue.Empty:
      server = Server(self._walls, self._limits)
    outcome = server.run(role, texts, seconds)
    self._idle.put(server)
    return outcome

  def close(self) -> None:
    """Ends the servers that are idle."""
    with contextlib.suppress(queue.Empty):
      while True:
        self._idle.get_nowait().close()


def _witnessed(walls: Walls) -> None:
  """Raises ServerLost unless walls hold back what must not succeed."""
  with tempfile.NamedTemporaryFile() as file:
    os.chmod(file.name, 0o666)
    server = Server(walls, Limits())
    try:
      witness = {"path": file.name, "pid": os.getpid()}
      outcome = server.run("probe", [witness], 60.0)
    finally:
      server.close()
  if outcome.code != 0:
    raise ServerLost(f"a limited process ended with status {outcome.code}")
  found = json.loads(outcome.output)
  if found and walls.level != "audit":
    raise ServerLost(f"an answer could {', '.join(found)}")


def _candidates(command: tuple[str, ...]) -> Iterator[Walls]:
  users = ("nobody", "nobody_reading", "own")
  yield Walls("namespace", "own", command)
  may_be_root = os.geteuid() == 0 or bool(command)
  for level in LEVELS[1:]:
    for user in users if may_be_root else users[-1:]:
      yield Walls(level, user, command)


@functools.cache
def offered(command: tuple[str, ...] = ()) -> tuple[Walls, dict[str, str]]:
  """Returns the strongest walls of this machine; tried, not assumed.

  Args:
    command: that starts Python; () for this one.

  Returns:
    the walls, and why each of the stronger levels is not offered.

  Raises:
    UserError: no child process can be limited at all.
  """
  reasons: dict[str, str] = {}
  for walls in _candidates(command):
    try:
      _witnessed(walls)
    except ServerLost as error:
      reasons.setdefault(walls.level, str(error))
    else:
      return walls, {k: v for k, v in reasons.items() if k != walls.level}
  raise UserError(
    f"{' '.join(command) or sys.executable}: no limited child process starts, "
    f"so answers cannot be run ({reasons['audit']}). Check that the platform "
    "has setrlimit (Linux, macOS) and that 512 MiB are free."
  )


def find(isolation: str, command: tuple[str, ...] = ()) -> Walls:
  """Returns the walls for answers, and says once which level holds.

  Args:
    isolation: the weakest level of LEVELS that will do.
    command: that starts Python; () for this one.

  Raises:
    UserError: this machine offers less.
  """
  walls, reasons = offered(command)
  if LEVELS.index(walls.level) > LEVELS.index(isolation):
    why = "; ".join(f"{level}: {reason}" for level, reason in reasons.items())
    raise UserError(
      f"isolation={isolation!r}: this machine offers {walls.level!r} at most "
      f"({why}), where {SHOWN[walls.level]}. Allow user namespaces (sysctl "
      "kernel.apparmor_restrict_unprivileged_userns=0, "
      "user.max_user_namespaces > 0; of a container: --security-opt "
      "seccomp=unconfined), let `command` "
      f"start Python elsewhere, or accept it: isolation={walls.level!r} in "
      "the verifier's settings."
    )
  _say(walls)
  return walls


@functools.cache
def _say(walls: Walls) -> None:
  print(f"code: isolation {walls.level!r}: {SHOWN[walls.level]}", flush=True)


@functools.cache
def _servers(walls: Walls, limits: Limits, pid: int) -> Servers:
  return Servers(walls, limits)


def servers(walls: Walls, limits: Limits) -> Servers:
  """Returns the servers of this process behind such walls."""
  return _servers(walls, limits, os.getpid())
