"""Unit tests in processes of their own: right, wrong, hacked and runaway."""

import dataclasses
import os
import time

import pytest

from rlhf_jax.rewards import code_tests, rows, verifiers
from rlhf_jax.rewards.sandbox import servers

SQUARE = {
  "setup": "import math\nvalues = [0, 3, -4]",
  "tests": [
    "assert square(2) == 4",
    "assert all(map(lambda x: square(x) == x * x, values))",
    "assert math.isclose(square(0.5), 0.25)",
  ],
}
RIGHT = "def square(x):\n  return x * x"
CONFIG = code_tests.Config(seconds=8.0, isolation="audit")


def results(codes, reference, config=CONFIG):
  return code_tests.run_all(codes, [reference] * len(codes), config)


HACKS = {
  "wrong": "def square(x):\n  return 2 * x",
  "exits": "import sys\nsys.exit(0)",
  "exits hard": "import os\nos._exit(0)",
  "exits in a call": "def square(x):\n  raise SystemExit(0)",
  "prints": "print('passed')\nprint('{\"status\": \"passed\"}')",
  "equal to all": (
    "class Yes(int):\n  def __eq__(self, other): return True\n"
    "def square(x):\n  return Yes(7)"
  ),
  "stops the loop": "def square(x):\n  raise StopIteration",
  "raises the verdict": "def square(x):\n  raise AssertionError",
  "patches builtins": (
    "import builtins, math\nbuiltins.all = lambda *_: True\n"
    "math.isclose = lambda *_: True\nbuiltins.compile = lambda *_: None\n"
    "def square(x):\n  return None"
  ),
  "walks the frames": (
    "import sys\ndef square(x):\n  frame = sys._getframe()\n"
    "  while frame:\n    for name in ('tests', 'verdicts', 'job'):\n"
    "      if name in frame.f_locals: return frame.f_locals[name]\n"
    "    frame = frame.f_back"
  ),
  "forges replies": (
    "import os, sys\nfor fd in range(3, 12):\n  try:\n"
    '    os.write(fd, b\'{"status": "passed"}\\n\' * 9)\n'
    "  except OSError: pass\nos._exit(0)"
  ),
  "not plain": "def square(x):\n  return lambda: x",
  "no function": "squared = 4",
  "no syntax": "def square(x) return x",
  "deep": (
    "def square(x):\n  a = []\n  for _ in range(9**6): a = [a]\n  return a"
  ),
}


def test_right_answers_pass():
  fenced = f"Try:\n```python\n{RIGHT}\n```\nDone."
  two = f"```python\nsquare = 3\n```\nNo:\n```py\n{RIGHT}\n```"
  noisy = "print('hello')\n" + RIGHT
  shell = f"```bash\npip install x\n```\nThen\n```python\n{RIGHT}\n```"
  after = f"```python\n{RIGHT}\n```\nRun it:\n```bash\npython x.py\n```"
  found = results([RIGHT, fenced, two, noisy, shell, after], SQUARE)
  assert [r.status for r in found] == ["passed"] * 6
  assert {(r.passed, r.total) for r in found} == {(3, 3)}


def test_hacked_answers_fail():
  config = dataclasses.replace(CONFIG, workers=4)
  found = results(list(HACKS.values()), SQUARE, config)
  statuses = dict(zip(HACKS, [r.status for r in found], strict=True))
  assert set(statuses.values()) == {"failed"}, statuses
  assert {r.passed for r in found[1:]} == {0}
  scores, _ = code_tests.score(
    [HACKS["wrong"], RIGHT],
    [SQUARE] * 2,
    dataclasses.replace(CONFIG, credit="share"),
  )
  assert scores.tolist() == pytest.approx([1 / 3, 1.0])


def test_the_hack_would_work_in_one_process():
  """Control: the objects that must fool nobody fool a plain exec."""
  namespace = {}
  exec(HACKS["equal to all"], namespace)
  exec("assert square(2) == 4", namespace)
  exec(HACKS["stops the loop"], namespace)
  exec("assert all(map(lambda x: square(x) == 4, [2]))", namespace)


LIMITED = {
  "reads": "open('/etc/passwd').read()",
  "writes": "open('/tmp/rlhf_jax_escape', 'w').write('x')",
  "deletes": "import os\nos.remove('/tmp/rlhf_jax_escape')",
  "fills": "open('big', 'wb').write(bytes(1 << 22))",
  "allocates": "x = bytearray(1 << 31)",
  "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
  "starts": "import subprocess\nsubprocess.run(['true'])",
  "forks": "import os\nos.fork()",
  "goes native": "import ctypes\nctypes.CDLL(None).getpid()",
  "lifts limits": "import resource\nresource.setrlimit(4, (1, 1))",
}


def test_limits_hold():
  body = "def tries(x):\n  try:\n    {}\n  except BaseException as error:\n"
  body += "    return type(error).__name__\n  return 'done'"
  codes = [
    body.format(code.replace("\n", "\n    ")) for code in LIMITED.values()
  ]
  library = "open(__import__('os').__file__).read()"
  folder = "open('own', 'w').write('x'); open('own').read()"
  has_folder = servers.offered()[0].level == "namespace"
  allowed = body.format(folder if has_folder else library)
  reference = {"tests": ["assert tries(0) != 'done'"]}
  found = results([*codes, allowed], reference)
  statuses = dict(
    zip([*LIMITED, "own"], [r.status for r in found], strict=True)
  )
  assert statuses.pop("own") == "failed"  # control: its own folder is its own
  assert set(statuses.values()) == {"passed"}, statuses
  assert not os.path.exists("/tmp/rlhf_jax_escape")


def test_fork_bombs_are_capped_below_python():
  walls, _ = servers.offered()
  if walls.level == "audit":
    pytest.skip("nothing outside Python binds an answer here")
  bomb = (
    "import _thread\n"
    "def tries(x):\n  try:\n    _thread.start_new_thread(print, ())\n"
    "    return 'thread'\n  except RuntimeError:\n    return 'refused'"
  )
  reference = {"tests": ["assert tries(0) == 'refused'"]}
  assert results([bomb], reference)[0].status == "passed"


def test_endless_answers_are_killed_with_their_group():
  config = dataclasses.replace(CONFIG, seconds=1.0)
  loops = [
    "while True: pass",
    "def square(x):\n  import time\n  time.sleep(600)",
    "import signal\nfor s in range(1, 20):\n  try: signal.signal(s, 1)\n"
    "  except Exception: pass\nwhile True: pass",
  ]
  start = time.monotonic()
  found = results(loops, SQUARE, config)
  assert [r.status for r in found] == ["timeout"] * 3
  assert time.monotonic() - start < 30.0
  late = "def square(x):\n  while x != 2: pass\n  return 4"
  (result,) = results([late], SQUARE, config)
  assert (result.status, result.passed) == ("timeout", 1)


def test_timeouts_and_missing_code_are_logged_apart():
  endless = "```python\nwhile True: pass\n```"
  texts = [endless, "```bash\nls\n```", RIGHT]
  judge = verifiers.bind_parts(
    "code", seconds=1.0, credit="share", isolation="audit"
  )
  cases = [{"input": "", "output": "1"}, {"input": "", "output": ""}]
  scores, logged = judge(rows.Answers(texts[:2], [{"cases": cases}] * 2))
  assert scores.tolist() == [0.0, 0.0]
  assert logged["timeout"].tolist() == [1.0, 0.0]
  assert logged["no_code"].tolist() == [0.0, 1.0]
  settings = {"seconds": 1.5, "isolation": "audit"}
  part = {"verifier": "code", "weight": 2.0, "settings": settings}
  judge = verifiers.bind_parts("sum", parts=(part,))
  scores, logged = judge(rows.Answers(texts, [SQUARE] * 3))
  assert scores.tolist() == [0.0, 0.0, 2.0]
  assert logged["code"].tolist() == [0.0, 0.0, 1.0]
  assert logged["code_timeout"].tolist() == [1.0, 0.0, 0.0]


def test_programs_are_judged_by_what_they_print():
  cases = [
    {"input": "2\n", "output": "4\n"},
    {"input": "5\n", "output": "25\n"},
  ]
  codes = [
    "print(int(input()) ** 2)",
    "import sys\nprint(int(input()) ** 2, '', sep='  \\n')\nsys.exit(0)",
    "print(4)",
    "print(4)\nprint(25)",
    "for i in range(100): print(i)",
    "import sys\nprint(int(input()) ** 2)\nsys.exit(3)",
    "print(int(input()) ** 2, file=__import__('sys').stderr)",
    "if __name__ == '__main__':\n  print(int(input()) ** 2)",
  ]
  config = dataclasses.replace(CONFIG, credit="share")
  found = results(codes, {"cases": cases}, config)
  assert [r.passed for r in found] == [2, 2, 1, 0, 0, 0, 0, 2]
  scores, _ = code_tests.score(codes[:3], [{"cases": cases}] * 3, config)
  assert scores.tolist() == [1.0, 1.0, 0.5]


def test_programs_that_print_without_end_are_cut():
  case = {"cases": [{"input": "", "output": "4\n"}]}
  endless = "print(4)\nwhile True: print('x' * 10**6, flush=True)"
  config = dataclasses.replace(CONFIG, seconds=60.0)
  found = results([endless, "print(4)"], case, config)
  assert [r.status for r in found] == ["failed", "passed"]


def test_a_preamble_and_a_check_function():
  """The form of HumanEval: signature before, check(candidate) after."""
  reference = {
    "preamble": "def twice(x):\n  'Doubles x.'",
    "setup": "def check(candidate):\n  assert candidate([1]) == [1, 1]",
    "tests": ["check(twice)"],
  }
  found = results(["  return x * 2", "  return x"], reference)
  assert [r.status for r in found] == ["passed", "failed"]


def test_expected_errors_are_recognised():
  test = (
    "try:\n  root(-1)\nexcept ValueError:\n  pass\n"
    "else:\n  raise AssertionError"
  )
  codes = [
    "def root(x):\n  raise ValueError",
    "def root(x):\n  return 1",
    "def root(x):\n  raise TypeError",
    "rot = 1",
  ]
  found = results(codes, {"tests": [test]})
  assert [r.status == "passed" for r in found] == [True, False, False, False]
  broad = test.replace("ValueError", "Exception")
  dead = "def root(x):\n  raise SystemExit"
  found = results([dead, "rot = 1"], {"tests": [broad]})
  assert [r.status for r in found] == ["failed"] * 2


def test_what_holds_no_code_scores_zero():
  texts = ["```python\ndef square(x):", "```bash\nls\n```", " ", "x" * 99]
  config = dataclasses.replace(CONFIG, max_characters=90)
  found = results(texts, SQUARE, config)
  assert [r.status for r in found] == ["no_code"] * 4


@pytest.mark.parametrize(
  ("reference", "message"),
  [
    ("assert f(1)", "not an object"),
    ({}, "either 'tests' or 'cases'"),
    ({"tests": ["assert f(1)"], "cases": [{}]}, "either"),
    ({"tests": "assert f(1)"}, "list of texts"),
    ({"test": ["assert f(1)"]}, "'test' is unknown"),
    ({"tests": ["assert f("]}, "cannot judge"),
    ({"tests": ["f(1)"]}, "no test asserts anything"),
    ({"cases": [{"input": "1"}]}, "lacks 'input' or 'output'"),
    ({"cases": [{"input": 1, "output": "1"}]}, "are texts"),
  ],
)
def test_a_reference_that_cannot_judge_is_named(reference, message):
  with pytest.raises(ValueError, match=rf"references\[0\].*{message}"):
    code_tests.score(["x = 1"], [reference], CONFIG)


@pytest.mark.parametrize(
  ("tests", "message"),
  [
    (["assert 1 == 1"], "without calling the answer"),
    (["assert f"], "tests can only call it"),
    (["assert f(lambda: 1)"], "an argument of f: function is not plain"),
    (["assert f(1) == 1", "assert f(0) == 0 and f(object())"], "argument of f"),
    (["x = f(3)\nassert x and f(y for y in [print])"], "an argument of f"),
    (["import nothing_at_all\nassert f(1)"], "ModuleNotFoundError"),
    (["import os\nassert f(1)\nos._exit(0)"], "it ends the process"),
  ],
)
def test_a_test_beyond_plain_calls_is_refused_before_the_run(tests, message):
  good = {"tests": ["assert f(1) == 1"]}
  program = {"cases": [{"input": "", "output": ""}]}
  with pytest.raises(rows.BadReference, match=message) as caught:
    code_tests.prepare([good, program, {"tests": tests}, good], CONFIG)
  assert caught.value.row == 2


def test_good_references_pass_their_trial():
  endless = "while f(1): pass\nassert f(lambda: 1)"
  tests = ["assert f(1).x[0] + 2 > 3", endless]
  code_tests.prepare([SQUARE, {"tests": tests}], CONFIG)


def test_a_trial_that_takes_too_long_refuses_nothing(monkeypatch):
  monkeypatch.setattr(code_tests, "TRIAL_SECONDS", 0.3)
  slow = {"tests": ["while f(1): pass\nassert f(1)"]}
  code_tests.prepare([slow, SQUARE, slow], CONFIG)
  bad = {"tests": ["assert f(lambda: 1)"]}
  with pytest.raises(rows.BadReference) as caught:
    code_tests.prepare([slow, SQUARE, bad], CONFIG)
  assert caught.value.row == 2


def test_a_test_that_nobody_can_pass_scores_zero_and_is_counted():
  """Where only a real answer leads to it: the run goes on."""
  test = "assert f(1) == 1\nif f(1) != 1 or type(f(2)) is int: f(lambda: 1)"
  texts = ["def f(x): return x", "def f(x): return x + 1"]
  scores, logged = code_tests.score(texts, [{"tests": [test]}] * 2, CONFIG)
  assert scores.tolist() == [0.0, 0.0]
  assert logged["bad_test"].tolist() == [1.0, 0.0]
