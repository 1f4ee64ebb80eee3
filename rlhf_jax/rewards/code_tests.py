"""Python answers, judged by unit tests or by what they print.

  score = 1 if every test passes, else 0     (credit="share": the share)

The policy's code runs in one process, the tests in another, and only plain
data crosses between them (code_runner.py). So an answer cannot exit, patch,
print, compare or look its way to a reward: sys.exit(0) is a missing reply, an
object whose __eq__ says yes is not plain data, and the expected values are
never in its process. Chen et al. 2021, arXiv:2107.03374 (pass@k of unit tests).

A reference is one of
  {"tests": ["assert f(2) == 4", ...]}       and "setup" (run before the tests)
  {"cases": [{"input": "2\\n", "output": "4\\n"}, ...]}        stdin and stdout
and, optionally, "preamble": code put before the answer (HumanEval prompts).

Left out: classes and functions as arguments or results, tests of arguments
changed in place, packages outside the standard library, threads. What is and
is not isolated: code_process.Isolation.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_jax.rewards import code_process, code_runner, rows
from rlhf_jax.schema import UserError


@dataclass(frozen=True)
class Config:
  """Limits of one answer, and how tests add up."""

  seconds: float = 5.0  # wall clock of all tests; of each case of a program
  memory_bytes: int = 512 << 20  # address space of each process
  file_bytes: int = 1 << 20  # of each file and of the standard output
  workers: int = 2  # answers judged at a time, two processes each
  # "all" or nothing, or the "share" of tests passed, which rewards answers
  # that handle easy cases only.
  credit: Literal["all", "share"] = "all"
  max_characters: int = 20_000  # longer responses hold no code

  def __post_init__(self):
    if not 0.0 < self.seconds <= 3600.0:
      raise UserError(
        f"seconds={self.seconds}: an answer may never end. Set 0 < seconds "
        "<= 3600."
      )
    if self.memory_bytes < 64 << 20:
      raise UserError(
        f"memory_bytes={self.memory_bytes}: Python itself needs some 30 MiB. "
        "Set memory_bytes >= 67108864."
      )
    for name in ("file_bytes", "workers", "max_characters"):
      if getattr(self, name) < 1:
        raise UserError(
          f"{name}={getattr(self, name)}: nothing could run. Set it >= 1."
        )
    if self.credit not in ("all", "share"):
      raise UserError(
        f"credit={self.credit!r} is unknown. Choose 'all' or 'share'."
      )

  @property
  def limits(self) -> code_process.Limits:
    """Returns what each process may use."""
    return code_process.Limits(self.seconds, self.memory_bytes, self.file_bytes)


class Result(NamedTuple):
  """What became of one answer.

  status: "passed", "failed", "timeout" or "no_code".
  passed, total: tests.
  detail: of the first test that failed; for people.
  """

  status: str
  passed: int
  total: int
  detail: str = ""


class Suite(NamedTuple):
  """A checked reference."""

  tests: tuple[str, ...]
  setup: str
  cases: tuple[tuple[str, str], ...]
  preamble: str
  names: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def _unknown_names(sources: tuple[str, ...]) -> tuple[str, ...]:
  """Returns names that tests read and Python does not know: the answer's."""
  trees = [ast.parse(source) for source in sources]
  nodes = [node for tree in trees for node in ast.walk(tree)]
  is_judged = any(
    isinstance(node, (ast.Assert, ast.Raise))
    or (isinstance(node, ast.Attribute) and node.attr.startswith("assert"))
    for node in nodes
  )
  if not is_judged:
    raise SyntaxError("no test asserts anything")
  names = {
    node.id
    for node in nodes
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
  }
  return tuple(sorted(names - set(vars(builtins))))


def parse_reference(reference: Any, row: int) -> Suite:
  """Returns a checked reference.

  Raises:
    ValueError: neither tests nor cases, tests that do not parse or assert
      nothing, or fields of the wrong type.
  """

  def bad(rule: str) -> ValueError:
    return rows.bad_reference(
      row, reference, rule, "Correct the record; see rewards/code_tests.py."
    )

  if not isinstance(reference, dict):
    raise bad("it is not an object with 'tests' or 'cases'")
  unknown = set(reference) - {"tests", "setup", "cases", "preamble"}
  if unknown:
    raise bad(f"field {sorted(unknown)[0]!r} is unknown")
  tests, cases = reference.get("tests", []), reference.get("cases", [])
  if bool(tests) == bool(cases):
    raise bad("it must hold either 'tests' or 'cases', and not be empty")
  setup, preamble = reference.get("setup", ""), reference.get("preamble", "")
  if not isinstance(tests, (list, tuple)) or not all(
    isinstance(text, str) for text in [*tests, setup, preamble]
  ):
    raise bad("'tests' is a list of texts, 'setup' and 'preamble' are texts")
  try:
    pairs = tuple((case["input"], case["output"]) for case in cases)
  except (TypeError, KeyError):
    raise bad("a case lacks 'input' or 'output'") from None
  if not all(isinstance(text, str) for pair in pairs for text in pair):
    raise bad("'input' and 'output' of a case are texts")
  names: tuple[str, ...] = ()
  if tests:
    try:
      names = _unknown_names((setup, *tests))
    except SyntaxError as error:
      raise bad(f"the tests cannot judge: {error}") from None
  return Suite(tuple(tests), setup, pairs, preamble, names)


_FENCE = re.compile(r"```[ \t]*([^\s`]*)[^\n`]*\n(.*?)```", re.DOTALL)
_PYTHON = ("", "python", "python3", "py")


def extract_code(text: str) -> str | None:
  """Returns the last ```python block, or the text if it has no fence at all.

  None when a fence is open, or belongs to another language, only.
  """
  blocks = [
    body
    for language, body in _FENCE.findall(text)
    if language.lower() in _PYTHON
  ]
  if blocks:
    return blocks[-1]
  return None if "```" in text else text


def _run_tests(code: str, suite: Suite, config: Config) -> Result:
  """Runs the answer and its judge side by side."""
  user = code_process.isolation().user
  tests = {"tests": suite.tests, "setup": suite.setup, "names": suite.names}
  with (
    tempfile.TemporaryDirectory() as folder,
    tempfile.TemporaryFile() as output,
  ):
    if user != "own":
      os.chown(folder, code_runner.NOBODY, code_runner.NOBODY)
    asked, ask = os.pipe()
    told, tell = os.pipe()
    started = []
    try:
      for role, job, fds, place, stream in (
        ("answer", {"code": code}, (asked, tell), folder, subprocess.DEVNULL),
        ("judge", tests, (ask, told), "/", output),
      ):
        started.append(
          code_process.start(
            role, job, config.limits, place, user, fds=fds, stdout=stream
          )
        )
      for fd in (asked, ask, told, tell):
        os.close(fd)
      is_in_time = code_process.ends_in_time(started[-1], config.seconds)
    finally:
      for process in started:
        code_process.kill(process)
    output.seek(0)
    verdicts = [json.loads(line) for line in output.read().splitlines()]
  for verdict in verdicts:
    if verdict["status"] == "unsupported":
      raise UserError(
        f"a test cannot be run against an answer: {verdict['detail']}. Tests "
        "call functions of the answer with plain data; rewrite or drop it."
      )
  passed = sum(verdict["status"] == "passed" for verdict in verdicts)
  failures = [v["detail"] for v in verdicts if v["status"] != "passed"]
  if not is_in_time:
    return Result("timeout", passed, len(suite.tests), "out of time")
  is_complete = passed == len(suite.tests)
  detail = "" if is_complete else [*failures, "the judge ended early"][0]
  status = "passed" if is_complete else "failed"
  return Result(status, passed, len(suite.tests), detail)


def _printed(text: str) -> list[str]:
  """Returns the lines of an output without trailing space or empty lines."""
  return [line.rstrip() for line in text.rstrip().splitlines()]


def _run_case(code: str, given: str, wanted: str, config: Config) -> str:
  """Runs a program on one input; returns the status of that case."""
  user = code_process.isolation().user
  with (
    tempfile.TemporaryDirectory() as folder,
    tempfile.TemporaryFile() as source,
    tempfile.TemporaryFile() as output,
  ):
    if user != "own":
      os.chown(folder, code_runner.NOBODY, code_runner.NOBODY)
    source.write(given.encode())
    source.seek(0)
    process = code_process.start(
      "program",
      {"code": code},
      config.limits,
      folder,
      user,
      stdin=source,
      stdout=output,
    )
    is_in_time = code_process.ends_in_time(process, config.seconds)
    code_process.kill(process)
    output.seek(0)
    printed = output.read().decode(errors="replace")
  if not is_in_time:
    return "timeout"
  is_right = process.returncode == 0 and _printed(printed) == _printed(wanted)
  return "passed" if is_right else "failed"


def run(text: str, suite: Suite, config: Config) -> Result:
  """Returns what becomes of one response.

  Args:
    text: the response; its last Python block is run.
    suite: from parse_reference.
    config: limits.

  Raises:
    ValueError: a test that no answer could be judged by.
  """
  total = len(suite.tests) + len(suite.cases)
  code = None
  if len(text) <= config.max_characters:
    code = extract_code(text)
  if code is None or not code.strip():
    return Result("no_code", 0, total, "no complete Python block")
  code = f"{suite.preamble}\n{code}" if suite.preamble else code
  if suite.tests:
    return _run_tests(code, suite, config)
  found = []
  for given, wanted in suite.cases:
    found.append(_run_case(code, given, wanted, config))
    if found[-1] != "passed" and config.credit == "all":
      break
  passed = found.count("passed")
  if passed == total:
    return Result("passed", passed, total)
  status = "timeout" if "timeout" in found else "failed"
  first = next(i for i, one in enumerate(found) if one != "passed")
  return Result(status, passed, total, f"input {suite.cases[first][0][:80]!r}")


def run_all(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> list[Result]:
  """Returns what became of each response, for logs: timeouts stand apart.

  Args:
    texts: N responses.
    references: N; see the module's docstring.
    config: limits.

  Raises:
    ValueError: lengths differ, or a reference that cannot judge.
  """
  rows.check(texts, references)
  suites = [parse_reference(r, row) for row, r in enumerate(references)]

  def one(row: int) -> Result:
    try:
      return run(texts[row], suites[row], config)
    except ValueError as error:
      raise UserError(f"references[{row}]: {error}") from None

  with ThreadPoolExecutor(config.workers) as pool:
    return list(pool.map(one, range(len(texts))))


def score(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns [N] float32: 1 where the code of an answer passes all its tests.

  With credit="share" it is the share of them, in which tests that passed before
  a timeout count. No code scores 0. Beside the scores stand [N] 0 or 1 each of
  "timeout" and "no_code". Many timeouts may be the checker's doing: give more
  seconds, fewer workers.

  Args, Raises: as `run_all`.
  """
  results = run_all(texts, references, config)
  if config.credit == "share":
    scores = [result.passed / result.total for result in results]
  else:
    scores = [result.status == "passed" for result in results]
  return np.array(scores, np.float32), {
    status: np.array([r.status == status for r in results], np.float32)
    for status in ("timeout", "no_code")
  }
