"""Runs attacks behind given walls, as the process of a run would; a script.

  python run.py SETTINGS-JSON     prints {"scores": {name: 0 or 1}, ...}

Root may name another user: the script goes on as that user, in a mount
namespace where all folders above Python and this repository can be entered.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

NEW_MOUNTS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
ROOT = Path(__file__).resolve().parents[3]
PREFIX = "secret-"
PRELUDE = """
import os, sys
globals().update({given!r})
try:
  import ctypes
  libc = ctypes.CDLL(None, use_errno=True)
  def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
      raise OSError(ctypes.get_errno(), 'refused')
    return result
except BaseException:
  pass
def reply(form):
  import json
  for fd in range(3, 32):
    try: os.write(fd, json.dumps(form).encode() + bytes([10]))
    except OSError: pass
def attack():
{body}
def answer(x):
  return attack()
"""


def source(body, given):
  """Returns the code of an answer that makes an attack."""
  lines = body.strip("\n").split("\n")
  shift = len(lines[0]) - len(lines[0].lstrip())
  body = "\n".join("  " + line[shift:] for line in lines)
  return PRELUDE.format(given=given, body=body)


def become(user, paths):
  """Goes on as another user who can reach these paths; for root, on Linux."""
  libc = ctypes.CDLL(None, use_errno=True)

  def mount(kind, origin, target, flags):
    origin, target, kind = (
      None if part is None else str(part).encode()
      for part in (origin, target, kind)
    )
    if libc.mount(origin, target, kind, ctypes.c_ulong(flags), b"mode=755"):
      raise OSError(ctypes.get_errno(), "mount")

  if libc.unshare(NEW_MOUNTS):
    raise OSError(ctypes.get_errno(), "unshare")
  mount(None, None, "/", MS_REC | MS_PRIVATE)
  closed = {
    path: [p for p in path.parents if not p.stat().st_mode & 1]
    for path in paths
  }
  held = {path: os.open(path, os.O_PATH) for path in paths if closed[path]}
  for top in {closed[path][-1] for path in held}:
    mount("tmpfs", "tmpfs", top, 0)
  for path, fd in held.items():
    path.mkdir(parents=True, exist_ok=True)
    mount(None, f"/proc/self/fd/{fd}", path, MS_BIND | MS_REC)
    os.close(fd)
  os.setgroups([])
  os.setgid(user)
  os.setuid(user)


def state():
  """Returns what others may change of this process."""
  import resource

  limits = {
    name: resource.getrlimit(getattr(resource, name))
    for name in dir(resource)
    if name.startswith("RLIMIT_")
  }
  scheduler = (os.nice(0), os.sched_getaffinity(0), os.sched_getscheduler(0))
  return limits, scheduler, os.environ["SECRET"]


def left_processes(mark):
  """Returns the ids of processes that have a mark in their command line."""
  found = []
  for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
      if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
        found.append(int(pid))
    except OSError:
      pass
  return found


def main(settings):
  """Runs the attacks; see the module's docstring."""
  import shutil
  import tempfile
  import time
  from concurrent.futures import ThreadPoolExecutor

  sys.path.insert(0, str(ROOT))
  from rlhf_jax.rewards.sandbox import servers
  from tests.rewards.attacks import files, resources, system

  outside = settings["outside"]
  os.chdir(outside)
  sockets = tempfile.mkdtemp()
  listeners, given = listen(sockets)
  given |= {"OUTSIDE": outside, "HOST": os.getpid(), "PREFIX": PREFIX}
  secret = Path("secret.txt").read_text()
  held = ctypes.create_string_buffer(secret.encode())  # what others may reach
  given["SECRET_AT"] = ctypes.addressof(held)
  programs = files.PROGRAMS | system.PROGRAMS | resources.PROGRAMS
  mark = f"attacked={os.getpid()}"
  command = (sys.executable, "-X", mark)
  walls = servers.Walls(
    settings["level"], settings["user"], command, settings["has_tripwire"]
  )
  pool = servers.Servers(walls, servers.Limits())
  test = {"setup": "", "tests": [f"assert answer(0) == {secret!r}"]}
  before = state()

  def score(body):
    code = source(body, given)
    answer = {"blocks": [code], "preamble": "", "names": ["answer"]}
    judge = {**test, "names": ["answer"]}
    try:
      outcome = pool.run("tests", [answer, judge], settings["seconds"])
    except servers.ServerLost as error:
      return f"lost: {error}"
    return int(json.loads(outcome.output or b"[]") == ["passed", ""])

  honest = source("return HONEST", given | {"HONEST": secret})
  right = [
    {"blocks": [honest], "preamble": "", "names": ["answer"]},
    {**test, "names": ["answer"]},
  ]
  with open("secret.txt"), ThreadPoolExecutor(4) as threads:
    controls = [pool.run("tests", right, 60.0)]
    scores = dict(
      zip(programs, threads.map(score, programs.values()), strict=True)
    )
    controls.append(pool.run("tests", right, 60.0))  # it goes on
  harm = [name for name, one in listeners.items() if was_reached(one)]
  if held.value.decode() != secret:
    harm.append("memory of the run was changed")
  if state() != before:
    harm.append(f"{before} became {state()}")
  pool.close()
  shutil.rmtree(sockets)
  until = time.monotonic() + 5.0  # the dead are gone when init has seen them
  while left_processes(mark.encode()) and time.monotonic() < until:
    time.sleep(0.05)
  if left_processes(mark.encode()):
    harm.append("processes are left")
  is_right = all(json.loads(c.output) == ["passed", ""] for c in controls)
  print(json.dumps({"scores": scores, "harm": harm, "control": is_right}))


def listen(folder):
  """Returns sockets of this process by kind, and what attacks know of them."""
  import socket

  tcp = socket.create_server(("127.0.0.1", 0))
  udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
  udp.bind(tcp.getsockname())
  unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
  name = f"rlhf_jax_{os.getpid()}"
  unix.bind(f"{folder}/socket")
  abstract.bind("\0" + name)
  for one in (unix, abstract):
    one.listen()
  found = {"tcp": tcp, "udp": udp, "unix": unix, "abstract": abstract}
  for one in found.values():
    one.setblocking(False)
  port = tcp.getsockname()[1]
  return found, {"PORT": port, "SOCKET": f"{folder}/socket", "NAME": name}


def was_reached(listener):
  """Says whether anybody connected to a socket, or sent to it."""
  import socket

  try:
    if listener.type == socket.SOCK_DGRAM:
      listener.recv(1)
    else:
      listener.accept()
  except BlockingIOError:
    return False
  return True


if __name__ == "__main__":
  given_settings = json.loads(sys.argv[1])
  if given_settings.pop("uid", 0):
    places = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    become(json.loads(sys.argv[1])["uid"], [p.resolve() for p in places])
    again = [sys.executable, __file__, json.dumps(given_settings)]
    os.execv(sys.executable, again)
  main(given_settings)
