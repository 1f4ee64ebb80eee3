"""Several processes as one: start, who writes, values back on the host.

Every process runs the same program on the same configuration; arrays are
global, files are written by process 0, and all read them from a shared
folder. When a process dies the others cannot go on: they leave within seconds
with EXIT_PEER_LOST, and the launcher starts all of them again (main.py's
command resumes from the last checkpoint).

Left out: elastic training (going on with fewer processes).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax.schema import UserError
from rlhf_jax.types import PyTree

# The exit status when another process died: nothing was saved, start all
# processes again. Differs from EXIT_INTERRUPTED (75), where a checkpoint was.
EXIT_PEER_LOST = 42
HEARTBEAT_SECONDS = 20  # until a silent process counts as dead
CLOSING_SECONDS = 5.0  # of a process whose peer died, to say itself what failed
JOIN_SECONDS = "RLHF_JAX_JOIN_SECONDS"  # environment: until all must be there
_PEER_LOST = re.compile(
  "Gloo|DEADLINE_EXCEEDED|UNAVAILABLE|coordination|heartbeat|Connection "
  "(reset|closed)|Broken pipe|preempted|peer|ABORTED",
  re.IGNORECASE,
)
_HANDLERS: list[Any] = []  # kept alive: C calls them
_LINES: list[socket.socket] = []  # to the other processes, until the farewell
_ADDRESS = re.compile(r"(?P<address>[^,\s]+:\d+),(?P<count>\d+),(?P<index>\d+)")


def initialise(text: str) -> None:
  """Joins this process to the others; call it before any other use of JAX.

  Args:
    text: "off" for one process; "auto" for what the machine says: a TPU slice
      of several hosts (TPU_WORKER_HOSTNAMES), Slurm or Open MPI, else one
      process; or "HOST:PORT,PROCESSES,INDEX".

  Raises:
    UserError: text of another form, an index out of range, or a port where
      another process listens already.
  """
  if text == "off" or (text == "auto" and not _is_cluster(os.environ)):
    return
  if text == "auto":
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    return
  found = _ADDRESS.fullmatch(text)
  if found is None:
    raise UserError(
      f"--distributed={text!r}: must be auto, off or HOST:PORT,PROCESSES,INDEX,"
      " such as 10.0.0.2:1234,4,0 on the first of four."
    )
  count, index = int(found["count"]), int(found["index"])
  if not 0 <= index < count:
    raise UserError(
      f"--distributed={text!r}: index {index} of {count} processes. Number "
      f"them 0 to {count - 1}."
    )
  if index == 0:
    _check_port(int(found["address"].rpartition(":")[2]))
  if "cpu" in str(jax.config.jax_platforms):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  seconds = _whole(os.environ, JOIN_SECONDS, 300)
  guard = _AbortGuard(seconds)
  jax.distributed.initialize(
    found["address"],
    count,
    index,
    initialization_timeout=seconds,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )
  host = found["address"].rpartition(":")[0]
  guard.lines = _connect(host, count, index, seconds)
  _LINES.extend(guard.lines)
  threading.Thread(target=_watch, args=(guard.lines,), daemon=True).start()


def _check_port(port: int) -> None:
  """Refuses a port at which another process listens.

  gRPC would listen there beside it, and the system would hand the processes of
  two runs to either.
  """
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of the last
    # run, which may just have ended
    try:
      probe.bind(("", port))
      probe.listen(1)
    except (OSError, OverflowError) as error:
      raise UserError(
        f"--distributed: process 0 cannot listen at port {port} ({error}). "
        "Another run may: give each run a port of its own."
      ) from error


def farewell() -> None:
  """Tells the other processes that this one ends as it should.

  Without it they take the end of this process for its death.
  """
  for line in _LINES:
    with contextlib.suppress(OSError):  # the other has left already
      line.sendall(b"\n")
  _LINES.clear()


def _watch(lines: list[socket.socket]) -> None:
  """Leaves with EXIT_PEER_LOST when a process ends without a farewell."""
  open_lines = list(lines)
  while open_lines:
    for line in select.select(open_lines, [], [])[0]:
      try:
        is_farewell = line.recv(1) != b""
      except OSError:  # reset
        is_farewell = False
      if not is_farewell and _LINES:
        time.sleep(CLOSING_SECONDS)  # the cause may be one of all processes
        _leave("another process of this run died.")
      open_lines.remove(line)


def _leave(why: str) -> None:
  os.write(2, f"error: {why} Start all processes again.\n".encode())
  os._exit(EXIT_PEER_LOST)


def _connect(
  host: str, count: int, index: int, seconds: int
) -> list[socket.socket]:
  """Returns open connections: of process 0 to all others, of these to it.

  When a process dies its system closes them.

  Raises:
    RuntimeError: they cannot be opened.
  """
  try:
    if index > 0:
      port = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
      return [socket.create_connection((host, port), timeout=seconds)]
    with socket.create_server(("", 0), backlog=count) as server:
      server.settimeout(seconds)
      port = server.getsockname()[1]
      multihost_utils.broadcast_one_to_all(np.int32(port))
      return [server.accept()[0] for _ in range(count - 1)]
  except OSError as error:
    raise RuntimeError(
      f"--distributed: processes cannot reach each other at port {port} of "
      f"{host} ({error}). Process 0 listens on a port of the system's choice "
      "so that all notice when one dies: allow traffic between the hosts."
    ) from error


class _AbortGuard:
  """Makes the aborts by which JAX reports a missing peer EXIT_PEER_LOST.

  JAX aborts the process, from a thread of its own, when the others do not
  join in time, when process 0 dies, and when a peer has been silent for
  HEARTBEAT_SECONDS; often that is sooner than the error of the collective in
  progress, and JAX offers no other way to be told. So SIGABRT is handled: the
  process leaves with EXIT_PEER_LOST if not all have joined or if a connection
  of `lines` has been closed. Any other abort is a bug's and goes on.

  Args:
    seconds: that joining may take, for the message.
  """

  def __init__(self, seconds: int) -> None:
    self._seconds = seconds
    self.lines: list[socket.socket] | None = None  # until all have joined
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)
    _HANDLERS.append(handler)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGABRT), handler)

  def _handle(self, number: int) -> None:
    if self.lines is None:
      _leave(
        f"not all processes of this run joined within {self._seconds} s "
        f"(${JOIN_SECONDS})."
      )
    # Process 0 may be about to leave for the same reason: wait for it.
    closed, _, _ = select.select(self.lines, [], [], CLOSING_SECONDS)
    if closed:
      _leave("another process of this run died.")
    faulthandler.dump_traceback()  # then abort() ends the process


def _is_cluster(environment: Any) -> bool:
  """Says whether the environment is that of one of several processes."""
  workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  slices = _whole(environment, "MEGASCALE_NUM_SLICES", 1)
  tasks = [
    _whole(environment, name, 1)
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
  ]
  return len(workers) > 1 or slices > 1 or max(tasks) > 1


def _whole(environment: Any, name: str, usual: int) -> int:
  """Returns a positive whole number of the environment."""
  text = environment.get(name, "").strip()
  if not text:
    return usual
  if not text.isdecimal() or not 0 < len(text) < 10 or int(text) < 1:
    raise UserError(
      f"{name}={text!r} in the environment: must be a whole number from 1 on. "
      "Correct or unset it."
    )
  return int(text)


def is_first() -> bool:
  """Says whether this process writes the files and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes are here; files of process 0 are then there."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(is_so: bool) -> bool:
  """Says whether something is so on at least one process; all must ask."""
  if jax.process_count() == 1:
    return is_so
  return bool(np.any(multihost_utils.process_allgather(np.bool_(is_so))))


def fetch(tree: PyTree) -> PyTree:
  """Returns the tree as numpy arrays, whole on every process.

  Every process must call it, in the same order: rows of a batch live on
  devices of several processes.
  """

  def one(leaf: Any) -> np.ndarray:
    is_here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if is_here or leaf.is_fully_replicated:
      return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

  return jax.tree.map(one, tree)


def by_share(compute: Callable[[slice], PyTree], count: int) -> PyTree:
  """Returns host arrays of `count` rows, each row computed by one process.

  For work whose outcome may differ from process to process, such as what a
  time limit ends: all processes must go on with the same numbers.

  Args:
    compute: rows -> tree of arrays [rows, ...]; of no rows too.
    count: rows of all processes, the same on each.
  """
  processes = jax.process_count()
  if processes == 1:
    return compute(slice(0, count))
  size = -(-count // processes)
  begin = min(jax.process_index() * size, count)

  def gather(mine: np.ndarray) -> np.ndarray:
    padding = [(0, size - len(mine))] + [(0, 0)] * (mine.ndim - 1)
    every = multihost_utils.process_allgather(np.pad(mine, padding), tiled=True)
    return np.asarray(every)[:count]

  return jax.tree.map(gather, compute(slice(begin, min(begin + size, count))))


def is_peer_lost(error: BaseException) -> bool:
  """Says whether an error came from the death of another process."""
  if jax.process_count() == 1:
    return False
  is_runtime = isinstance(error, jax.errors.JaxRuntimeError)
  return is_runtime and bool(_PEER_LOST.search(str(error)))
