"""rewards/sandbox: which walls hold, what is said of them, what ends."""

import errno
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.data.dataset import Data
from rlhf_jax.rewards import code_tests, texts, verifiers
from rlhf_jax.rewards.sandbox import seccomp, servers
from rlhf_jax.schema import UserError
from tests.rewards.test_texts import Letters

RIGHT = "def f(x):\n  return x"
REFERENCE = {"tests": ["assert f(2) == 2"]}
JOB = [
  {"blocks": [RIGHT], "preamble": "", "names": ["f"]},
  {"setup": "", "tests": ["assert f(2) == 2"], "names": ["f"]},
]
HEADERS = {
  "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
  "aarch64": "/usr/include/asm-generic/unistd.h",
}


def weaken(monkeypatch, level):
  walls = servers.Walls(level)
  reasons = {"namespace": "[Errno 1] unshare: Operation not permitted"}
  monkeypatch.setattr(servers, "offered", lambda command: (walls, reasons))


def test_less_isolation_than_asked_is_refused(monkeypatch):
  weaken(monkeypatch, "landlock")
  assert servers.find("landlock") == servers.find("audit")
  config = code_tests.Config()
  for act in (
    lambda: code_tests.prepare([REFERENCE], config),
    lambda: code_tests.score([RIGHT], [REFERENCE], config),
  ):
    with pytest.raises(UserError) as caught:
      act()
    message = str(caught.value)
    assert message.startswith(
      "isolation='namespace': this machine offers 'landlock' at most "
      "(namespace: [Errno 1] unshare: Operation not permitted), where Landlock "
    )
    assert message.endswith(
      "or accept it: isolation='landlock' in the verifier's settings."
    )


def test_the_level_is_said_once(monkeypatch, capsys):
  servers._say.cache_clear()
  weaken(monkeypatch, "audit")
  for _ in range(2):
    servers.find("audit")
  assert capsys.readouterr().out == (
    "code: isolation 'audit': ONLY an audit hook inside Python holds an answer "
    "back\n"
  )
  servers._say.cache_clear()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"isolation": "docker"},
      "isolation='docker' is unknown. Choose one of na",
    ),
    ({"command": "docker run"}, "its words: ('docker', 'run')."),
  ],
)
def test_wrong_settings_are_named(settings, message):
  with pytest.raises(UserError, match=re.escape(message)):
    verifiers.bind_parts("code", **settings)


def test_another_command_starts_python():
  command = ("env", sys.executable)
  config = code_tests.Config(isolation="audit", command=command)
  (result,) = code_tests.run_all([RIGHT], [REFERENCE], config)
  assert result.status == "passed"
  none = code_tests.Config(command=("rlhf_jax_no_such_program",))
  with pytest.raises(UserError, match="no limited child process starts"):
    code_tests.prepare([REFERENCE], none)


def pool():
  walls, _ = servers.offered()
  return servers.Servers(walls, servers.Limits())


def test_a_lost_server_is_replaced():
  some = pool()
  assert some.run("tests", JOB, 9.0).code == 0
  server = some._idle.get_nowait()
  os.killpg(server._process.pid, signal.SIGKILL)
  some._idle.put(server)
  assert some.run("tests", JOB, 9.0).code == 0
  some.close()


def test_without_servers_answers_score_zero_and_are_counted(monkeypatch):
  def lost(*_):
    raise servers.ServerLost("no memory")

  config = code_tests.Config(isolation="audit")
  monkeypatch.setattr(servers.Servers, "_run_once", lost)
  scores, logged = code_tests.score([RIGHT] * 2, [REFERENCE] * 2, config)
  assert scores.tolist() == [0.0, 0.0]
  assert logged["lost"].tolist() == [1.0, 1.0]


def test_servers_end_with_the_run():
  code = (
    "import os, time\n"
    "from rlhf_jax.rewards.sandbox import servers\n"
    "walls, _ = servers.offered()\n"
    "server = servers.Server(walls, servers.Limits())\n"
    "print(server._process.pid, flush=True)\n"
    "os.kill(os.getpid(), 9)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  pid = int(done.stdout)
  until = time.monotonic() + 10.0
  while time.monotonic() < until:
    try:
      os.killpg(pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.02)
  raise AssertionError("the server outlived the run")


def test_nothing_stays_from_answer_to_answer(monkeypatch):
  monkeypatch.setenv("API_TOKEN", "hidden")
  code = (
    "import json, os, sys\n"
    "def f(x):\n"
    "  found = [os.environ.get('API_TOKEN'), os.listdir('.'),\n"
    "    getattr(json, 'mark', 0), 'mark' in sys.modules]\n"
    "  json.mark = 1\n"
    "  sys.modules['mark'] = json\n"
    "  open('mark', 'w').close()\n"
    "  return found"
  )
  if servers.offered()[0].level != "namespace":
    pytest.skip("without namespaces an answer has no folder")
  reference = {"tests": ["assert f(0) == [None, [], 0, False]"]}
  config = code_tests.Config(workers=1, isolation="audit")
  found = code_tests.run_all([code] * 3, [reference] * 3, config)
  assert [result.status for result in found] == ["passed"] * 3
  twice = {"tests": ["f(0)\nassert f(0) == [None, ['mark'], 1, True]"]}
  (result,) = code_tests.run_all([code], [twice], config)
  assert result.status == "passed"


def test_a_bad_test_is_named_with_its_line(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  bad = {"tests": ["assert f(lambda: 1)"]}
  lines = [
    {"prompt": "a", "reference": reference}
    for reference in (REFERENCE, REFERENCE, bad)
  ]
  text = "\n".join(map(json.dumps, lines))
  Path("prompts.jsonl").write_text(text + "\n")
  settings = {"isolation": "audit"}
  part = {"verifier": "code", "weight": 1.0, "settings": settings}
  for verifier in (
    texts.Verifier("code", settings),
    texts.Verifier("sum", {"parts": (part,)}),
  ):
    data = Data(source="prompts.jsonl", format="prompt", max_length=8)
    with pytest.raises(UserError) as caught:
      texts.load(verifier.bound(), data, Letters())
    assert str(caught.value) == (
      f"prompts.jsonl:3: reference={str(bad)!r}: a test cannot be run against "
      "an answer: an argument of f: function is not plain data. Tests call "
      "what the answer defines, with plain data; rewrite or drop it."
    )


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_of_system_calls_are_those_of_the_kernel(machine):
  path = Path(HEADERS[machine])
  if not path.exists():
    pytest.skip(f"the kernel's headers are not installed: {path}")
  pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", path.read_text())
  numbers = dict(reversed(pairs))  # of two definitions, the first
  if machine == "aarch64":
    numbers["newfstatat"] = numbers["fstatat"]
  column = 1 + seccomp.MACHINES[machine][0]
  table = (seccomp.READING + seccomp.WRITING).split()
  table += [f"prlimit64:{seccomp.LIMITS}"]
  for rules in (seccomp.OPENING, seccomp.SECOND):
    table += [f"{name}:{rule[0]}" for name, rule in rules.items()]
  assert len(table) > 100
  for entry in table:
    name, number = entry.split(":")[0], entry.split(":")[column]
    assert number == numbers.get(name, "-"), name


def verdict(machine, may_write, number, *arguments, architecture=None):
  """Returns what the filter answers to a call, by running it."""
  given = [*arguments, *[0] * 6][:6]
  architecture = architecture or seccomp.MACHINES[machine][1]
  data = struct.pack("iIQ6Q", number, architecture, 0, *given)
  lines = list(struct.iter_unpack("HBBI", seccomp.program(machine, may_write)))
  held, at = 0, 0
  while True:
    code, on_true, on_false, value = lines[at]
    at += 1
    if code == seccomp.LOAD:
      (held,) = struct.unpack_from("I", data, value)
    elif code == seccomp.RETURN:
      return value
    else:
      is_so = held == value if code == seccomp.EQUAL else held & value
      at += on_true if is_so else on_false


@pytest.mark.parametrize("may_write", [False, True])
@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_by_running_it(machine, column, may_write):
  deny = 0x00050000 | errno.EPERM
  write = 0x7FFF0000 if may_write else deny
  for numbers, arguments, expected in [
    ((0, 63), (), 0x7FFF0000),  # read
    ((231, 94), (), 0x7FFF0000),  # exit_group
    ((62, 129), (1, 9), deny),  # kill
    ((41, 198), (), deny),  # socket
    ((56, 220), (17,), deny),  # clone
    ((59, 221), (), deny),  # execve
    ((424, 424), (), deny),  # pidfd_send_signal
    ((425, 425), (), deny),  # io_uring_setup
    ((257, 56), (0, 0, os.O_RDONLY | os.O_CLOEXEC), 0x7FFF0000),  # openat
    ((257, 56), (0, 0, os.O_WRONLY), write),
    ((257, 56), (0, 0, os.O_RDONLY | os.O_TRUNC), write),
    ((257, 56), (0, 0, os.O_TMPFILE | os.O_RDWR), write),
    ((263, 35), (), write),  # unlinkat
    ((76, 45), (), write),  # truncate
    ((72, 25), (3, 1), 0x7FFF0000),  # fcntl F_GETFD
    ((72, 25), (3, 8), deny),  # F_SETOWN
    ((72, 25), (3, 15), deny),  # F_SETOWN_EX
    ((72, 25), (3, 4), deny),  # F_SETFL, O_ASYNC among them
    ((16, 29), (0, 0x5401), 0x7FFF0000),  # ioctl TCGETS
    ((16, 29), (0, 0x5412), deny),  # TIOCSTI
    ((302, 261), (0, 7, 0), 0x7FFF0000),  # prlimit64 of itself
    ((302, 261), (0, 7, 1), deny),
    ((302, 261), (0, 7, 1 << 40), deny),
    ((302, 261), (99, 7, 0), deny),
    ((0x40000000, 0x40000000), (), deny),  # x32
  ]:
    found = verdict(machine, may_write, numbers[column], *arguments)
    assert found == expected, (numbers, arguments)
  other = seccomp.MACHINES[["aarch64", "x86_64"][column]][1]
  assert verdict(machine, True, 0, architecture=other) == deny
  assert verdict(machine, True, 0, architecture=0x40000003) == deny  # i386
