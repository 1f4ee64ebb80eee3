"""The process that answers are forked from; child of servers.py.

It takes jobs from its standard input. A job is a header of HEADER_BYTES and the
texts that it names; its outcome is a header and what the parts wrote. A part
reads its own text: no code and no test is ever in the memory of the server.
Runs alone, on the standard library.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import time

from rlhf_jax.rewards.sandbox import parts, tripwire, walls

HEADER_BYTES = 512
COPY_BYTES = 1 << 16
MOST_DESCRIPTORS = 1 << 20
VERDICT_BYTES = 1 << 26  # of tests; file_bytes is of an answer


def _read(fd, size):
  """Returns exactly so many bytes of a file; fewer only at its end."""
  parts = []
  while size > 0 and (part := os.read(fd, min(size, 1 << 20))):
    parts.append(part)
    size -= len(part)
  return b"".join(parts)


def _buffer_file():
  """Returns the descriptor of an empty file without a name."""
  if hasattr(os, "memfd_create"):
    return os.memfd_create("part")
  with tempfile.TemporaryFile() as file:
    return os.dup(file.fileno())


def _let_loops_run():
  """Lets asyncio.run work where nobody may open a socket.

  A loop has a pair of sockets to be woken through by other threads, of which an
  answer has none, and waits in epoll, for which it has no right.
  """
  sys.modules["ssl"] = None  # large, and nobody can connect
  import asyncio.selector_events
  import selectors

  del sys.modules["ssl"]

  loops = asyncio.selector_events.BaseSelectorEventLoop
  loops._csock = None
  loops._make_self_pipe = loops._close_self_pipe = lambda self: None
  selectors.DefaultSelector = selectors.SelectSelector


class Server:
  """Forks the parts of jobs, and ends them."""

  def __init__(self, settings):
    self.settings = settings
    self.level, self.user = settings["level"], settings["user"]
    self.libc = walls.c_library() if sys.platform == "linux" else None
    self.null = os.open(os.devnull, os.O_RDWR)
    walls.readable()
    _let_loops_run()

  def enter(self):
    """Raises the walls around the server itself; OSError if it cannot."""
    if self.level == "namespace":
      walls.enter_namespaces(self.libc)
      self._become_first()
    elif self.user != "own":
      walls.become_nobody(self.libc, self.user == "nobody_reading")
    if self.level == "landlock":
      walls.enter_landlock(self.libc)
    os.chdir("/")
    with open(os.path.join(os.path.dirname(os.__file__), "this.py"), "rb"):
      pass  # the library can be read

  def _become_first(self):
    """Goes on as the first process of the namespace, which ends it with it."""
    pid = os.fork()
    if pid:
      for fd in (0, 1):
        os.close(fd)
      _, status = os.waitpid(pid, 0)
      os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    self.libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

  def start(self, role, sizes, seconds, keep):
    """Forks a part, which reads its texts from fd 0, and returns its id.

    In the part itself it returns None, and the texts, decoded from JSON.

    Args:
      role: see parts.py.
      sizes: of its texts in bytes.
      seconds: its limit of CPU time.
      keep: descriptors that it needs, besides the first three.
    """
    done, is_done = os.pipe()
    pid = os.fork()
    if pid:
      os.close(is_done)
      os.read(done, 1)  # its end: the part has read what is its own
      os.close(done)
      return pid, None
    os.setsid()
    texts = [json.loads(_read(0, size)) for size in sizes]
    for fd in (0, 1, 2):
      os.dup2(self.null, fd)
    edges = [2, *sorted(keep), MOST_DESCRIPTORS]
    for low, high in zip(edges, edges[1:], strict=False):
      os.closerange(low + 1, high)
    is_answer, limits = role in ("answer", "program"), self.settings
    if not is_answer:
      limits = {**limits, "file_bytes": VERDICT_BYTES}
    if self.level == "namespace" and is_answer:
      walls.own_folder(self.libc, self.settings["file_bytes"])
    if role == "program":
      self._set_streams(texts.pop(), keep[0])
    walls.limit(limits, seconds)
    walls.lock(self.libc, self.level, self.user)
    if self.settings["has_tripwire"] and is_answer:
      tripwire.set_tripwire(self.level != "audit")
    return None, texts

  def _set_streams(self, given, output):
    """Gives a program its standard input and output."""
    source = _buffer_file()
    _write(source, given.encode())
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.dup2(output, 1)
    os.close(source)
    os.close(output)
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w")):
      stream = open(fd, mode, encoding="utf-8", errors="replace")
      setattr(sys, name, stream)
      setattr(sys, f"__{name}__", stream)

  def run(self, job):
    """Runs a job; returns what a part has to do now, None in the server."""
    output = _buffer_file()
    seconds = job["seconds"]
    sizes = job["sizes"]
    pids = []
    if job["role"] == "tests":
      asked, ask = os.pipe()
      told, tell = os.pipe()
      pid, texts = self.start("answer", sizes[:1], seconds, (asked, tell))
      if texts is not None:
        return lambda: parts.serve_answer(texts[0], asked, tell)
      pids.append(pid)
      os.close(asked)
      os.close(tell)
      pid, texts = self.start("judge", sizes[1:], seconds, (ask, told, output))
      if texts is not None:
        return lambda: parts.judge(texts[0], ask, told, output)
      os.close(ask)
      os.close(told)
    else:
      pid, texts = self.start(job["role"], sizes, seconds, (output,))
      if texts is not None:
        act = {
          "program": parts.run_program,
          "trial": parts.trial,
          "probe": parts.probe,
        }
        arguments = texts if job["role"] == "program" else [*texts, output]
        return lambda: act[job["role"]](*arguments)
    pids.append(pid)
    code = self._wait(pid, time.monotonic() + seconds)
    self._end(pids)
    self._answer(code, output)
    return None

  def _wait(self, pid, until):
    """Returns the exit status of a part, None if it takes too long."""
    pause = 0.0002
    while True:
      found, status = os.waitpid(pid, os.WNOHANG)
      if found:
        return os.waitstatus_to_exitcode(status)
      if time.monotonic() > until:
        return None
      time.sleep(pause)
      pause = min(1.5 * pause, 0.01)

  def _end(self, pids):
    """Kills all parts, and in a namespace everything that is in it."""
    for pid in pids:
      for kill in (os.killpg, os.kill):
        try:
          kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
          pass  # it has ended already
    if self.level == "namespace":
      try:
        os.kill(-1, signal.SIGKILL)
      except ProcessLookupError:
        pass
    try:
      while True:
        os.waitpid(-1, 0)
    except ChildProcessError:
      pass

  def _answer(self, code, output):
    """Sends the outcome, and leaves nothing of it in this memory."""
    size = os.fstat(output).st_size
    header = json.dumps({"code": code, "bytes": size}).encode()
    _write(1, header.ljust(HEADER_BYTES))
    os.lseek(output, 0, os.SEEK_SET)
    buffer = bytearray(COPY_BYTES)
    while size > 0:
      count = os.readv(output, [memoryview(buffer)[: min(size, COPY_BYTES)]])
      if count == 0:  # it became shorter
        _write(1, bytes(size))
        break
      _write(1, memoryview(buffer)[:count])
      size -= count
    buffer[:] = bytes(COPY_BYTES)
    os.close(output)


def _write(fd, content):
  while len(content):
    content = content[os.write(fd, content) :]


def serve(settings):
  """Takes jobs until there are none; returns what a part has to do."""
  server = Server(settings)
  try:
    server.enter()
    hello = {"ok": True}
  except Exception as error:
    hello = {"ok": False, "why": f"{type(error).__name__}: {error}"[:200]}
  gc.freeze()  # fewer pages are copied in each part
  _write(1, json.dumps(hello).encode().ljust(HEADER_BYTES))
  while hello["ok"]:
    header = _read(0, HEADER_BYTES)
    if not header:
      break
    act = server.run(json.loads(header))
    if act is not None:
      return act
  return lambda: None
