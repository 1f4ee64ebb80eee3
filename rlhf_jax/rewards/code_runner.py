"""The child's side of code_tests.py; runs alone, on the standard library.

code_process.py starts it as `python -I -S -c SOURCE ROLE ...`, each role in a
process, session and folder of its own:

  answer   runs the policy's code and then does what it is asked: call a
           function with plain data, return plain data.
  judge    runs the tests. A function of the answer is a `Remote` there: it
           sends the arguments and receives a copy of the result, built from
           JSON. No object, frame, module or output of the policy's code is
           ever in the process that decides.
  program  runs the policy's code as a script on a given standard input.
  probe    reports what `isolate` achieves on this machine.

Left out: seccomp, read-only mounts and cgroups. See code_process.Isolation.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
import traceback

NOBODY = 65534
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER
PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8
CAPABILITY_VERSION = 0x20080522
CAP_DAC_READ_SEARCH = 1 << 2
REPLY_BYTES = 1 << 22  # of one result; more is a failure
# An answer may raise these through to a test. Those that steer Python itself
# are not: StopIteration inside map() would end all(map(...)) early, as true.
RAISED = {
  name
  for name, kind in vars(builtins).items()
  if isinstance(kind, type)
  and issubclass(kind, Exception)
  and not issubclass(
    kind, (StopIteration, StopAsyncIteration, AssertionError, Warning)
  )
}
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
PATH_EVENTS = (
  "open",
  "os.chflags",
  "os.chmod",
  "os.chown",
  "os.link",
  "os.listdir",
  "os.lockf",
  "os.mkdir",
  "os.remove",
  "os.rename",
  "os.rmdir",
  "os.scandir",
  "os.symlink",
  "os.truncate",
  "os.utime",
)


class AnswerDied(BaseException):
  """The answer ended, lacks the function, or returned no plain data.

  Not an Exception: a test that expects one must not take this for it.
  """


class AnswerRaised(Exception):
  """The answer raised something that is not one of RAISED."""


class UnsupportedTest(BaseException):
  """A test needs more than calls with plain data; not the answer's fault."""


def encode(value):
  """Returns a JSON form of plain data, exact types only.

  Raises:
    TypeError: a value of any other type, subclasses included.
  """
  kind = type(value)
  if value is None or kind in (bool, int, float, str):
    return value
  if kind is complex:
    return {"complex": [value.real, value.imag]}
  if kind in (bytes, bytearray):
    return {kind.__name__: list(value)}
  if kind in (list, tuple, set, frozenset):
    return {kind.__name__: [encode(item) for item in value]}
  if kind is dict:
    return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
  raise TypeError(f"{kind.__name__} is not plain data")


def decode(form):
  """Returns what `encode` was given, as fresh builtin objects."""
  if not isinstance(form, dict):
    return form
  ((kind, content),) = form.items()
  if kind == "complex":
    return complex(*content)
  if kind in ("bytes", "bytearray"):
    return {"bytes": bytes, "bytearray": bytearray}[kind](content)
  if kind == "dict":
    return {decode(k): decode(v) for k, v in content}
  kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
  return kinds[kind](decode(item) for item in content)


def become_nobody(libc, reads_all):
  """Gives root up for good, and with it every right but perhaps to read.

  Args:
    libc: the C library.
    reads_all: keep CAP_DAC_READ_SEARCH, for a Python that only root can read.
  """
  import ctypes

  if reads_all:
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
  os.setgroups([])
  os.setgid(NOBODY)
  os.setuid(NOBODY)
  if reads_all:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    kept = (ctypes.c_uint32 * 6)(CAP_DAC_READ_SEARCH, CAP_DAC_READ_SEARCH)
    if libc.capset(header, kept):
      raise OSError("capset failed")


def isolate(limits):
  """Gives up rights for good and returns which of them are really gone.

  Args:
    limits: seconds, memory_bytes, file_bytes, and user: "own", or what root
      becomes, "nobody" or "nobody_reading".
  """
  import ctypes

  libc = ctypes.CDLL(None, use_errno=True)

  def unshare(flags):
    return sys.platform == "linux" and libc.unshare(flags) == 0

  is_offline = os.geteuid() == 0 and unshare(NEW_NETWORK)
  if limits["user"] != "own":
    become_nobody(libc, limits["user"] == "nobody_reading")
  is_offline = is_offline or unshare(NEW_USER | NEW_NETWORK)
  if sys.platform == "linux":
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
  for name, value in (
    ("RLIMIT_AS", limits["memory_bytes"]),
    ("RLIMIT_CORE", 0),
    ("RLIMIT_CPU", int(limits["seconds"]) + 1),
    ("RLIMIT_FSIZE", limits["file_bytes"]),
    ("RLIMIT_NOFILE", 32),
    ("RLIMIT_NPROC", 0),
  ):
    resource.setrlimit(getattr(resource, name), (value, value))
  return {"is_offline": is_offline, "user": limits["user"]}


def refuse_by_audit(folder):
  """Makes Python itself refuse sockets, processes and files elsewhere.

  A guard rail in the policy's own interpreter, not a wall: native code does
  not pass through it.
  """
  real, within = os.path.realpath, os.path.commonpath
  folder = real(folder)
  libraries = [real(os.path.dirname(os.__file__))]
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  decoded = os.fsdecode

  def is_inside(path, parents):
    path = real(decoded(path))
    return any(within([path, parent]) == parent for parent in parents)

  def hook(event, arguments):
    if event.startswith(REFUSED_EVENTS):
      raise PermissionError(f"{event} is not allowed here")
    if event not in PATH_EVENTS:
      return
    parents = [folder]
    if event in ("os.listdir", "os.scandir") or (
      event == "open" and not arguments[2] & writing
    ):
      parents += libraries
    paths = arguments[:1] if event == "open" else arguments
    for path in paths:
      if isinstance(path, (str, bytes)) and not is_inside(path, parents):
        raise PermissionError(f"{event} {path!r} is not allowed here")

  sys.addaudithook(hook)


class Remote:
  """A function of the answer, as the tests see it."""

  calls = 0

  def __init__(self, name, requests, replies):
    self._name, self._requests, self._replies = name, requests, replies

  def __call__(self, *args, **kwargs):
    Remote.calls += 1
    try:
      form = {
        "name": self._name,
        "args": encode(args),
        "kwargs": encode(kwargs),
      }
    except (TypeError, RecursionError) as error:
      raise UnsupportedTest(f"an argument of {self._name}: {error}") from None
    try:
      self._requests.write(json.dumps(form).encode() + b"\n")
      line = self._replies.readline(REPLY_BYTES)
      reply = json.loads(line) if line.endswith(b"\n") else {}
      if "value" in reply:
        return decode(reply["value"])
      raised = str(reply["error"])
    except Exception:
      raise AnswerDied("no plain reply") from None
    if raised in RAISED:
      raise getattr(builtins, raised)("raised by the answer")
    raise AnswerRaised(raised)

  def _unsupported(self, *_):
    raise UnsupportedTest(
      f"{self._name} is used as a value; tests can only call it"
    )

  __bool__ = __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _unsupported
  __iter__ = __len__ = __getitem__ = __contains__ = _unsupported
  __hash__ = None

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    self._unsupported()


def run_tests(job, requests, replies, verdicts):
  """Runs the setup and each test, and writes one JSON line per test."""
  namespace = {"__name__": "__tests__"}
  for name in job["names"]:
    namespace[name] = Remote(name, requests, replies)
  for number, source in enumerate([job["setup"], *job["tests"]]):
    status, detail = "passed", ""
    try:
      exec(compile(source, "<tests>", "exec"), namespace)
    except BaseException as error:
      status = "failed"
      detail = traceback.format_exception_only(error)[-1].strip()[:200]
      if isinstance(error, UnsupportedTest):
        status = "unsupported"
    is_vacuous = Remote.calls == 0 and (status == "passed") == (number > 0)
    if is_vacuous:
      status = "unsupported"
      detail = f"it {detail or 'passed'} without calling the answer"
    if number or status == "unsupported":
      line = json.dumps({"status": status, "detail": detail})
      verdicts.write(line.encode() + b"\n")
    if status == "unsupported":
      return


def serve(code, requests, replies):
  """Runs the answer's code, then calls its functions until nobody asks."""
  namespace = {"__name__": "__answer__"}
  try:
    exec(compile(code, "<answer>", "exec"), namespace)
  except BaseException:
    return
  while line := requests.readline():
    request = json.loads(line)
    if request["name"] not in namespace:
      return
    function = namespace[request["name"]]
    try:
      value = function(*decode(request["args"]), **decode(request["kwargs"]))
    except Exception as error:
      reply = {"error": type(error).__name__}
    else:
      reply = {"value": encode(value)}
    replies.write(json.dumps(reply).encode() + b"\n")


def probe(report):
  """Prints what is isolated, after trying to start a process."""
  import fractions  # noqa: F401  (readable after the change of user?)

  try:
    if os.fork() == 0:
      os._exit(0)
    os.wait()
    report["is_fork_refused"] = False
  except OSError:
    report["is_fork_refused"] = True
  print(json.dumps(report), flush=True)


def main(arguments):
  """Runs one role: ROLE LIMITS-JSON CODE-FD REQUEST-FD REPLY-FD."""
  role, limits = arguments[0], json.loads(arguments[1])
  code_fd, request_fd, reply_fd = map(int, arguments[2:5])
  with os.fdopen(code_fd, "rb") as file:
    job = json.loads(file.read())
  report = isolate(limits)
  if role == "probe":
    probe(report)
    return
  if role == "judge":
    verdicts = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests = os.fdopen(request_fd, "wb", buffering=0)
    run_tests(job, requests, os.fdopen(reply_fd, "rb"), verdicts)
    return
  refuse_by_audit(os.getcwd())
  if role == "answer":
    replies = os.fdopen(reply_fd, "wb", buffering=0)
    serve(job["code"], os.fdopen(request_fd, "rb"), replies)
  else:
    exec(compile(job["code"], "<answer>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
  main(sys.argv[1:])
