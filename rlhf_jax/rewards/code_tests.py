"""Python answers, judged by unit tests or by what they print.

  score = 1 if every test passes, else 0     (credit="share": the share)

The policy's code runs in one process, the tests in another, and only plain
data crosses between them (sandbox/values.py). So an answer cannot exit, patch,
print, compare or look its way to a reward: sys.exit(0) is a missing reply, an
object whose __eq__ says yes is never asked, and the expected values are never
in its process. Chen et al. 2021, arXiv:2107.03374 (pass@k of unit tests).

A reference is one of
  {"tests": ["assert f(2) == 4", ...]}       and "setup" (run before the tests)
  {"cases": [{"input": "2\\n", "output": "4\\n"}, ...]}        stdin and stdout
and, optionally, "preamble": code put before the answer (HumanEval prompts).
Tests call functions, classes and methods of the answer, await its coroutines
and use objects of classes that they name (s = Stack(); len(s)); f(2) finds a
method of a class Solution too. `prepare` tries all tests before a run.

Left out: see sandbox/remote.py; packages outside the standard library, threads,
/dev/stdin.
What is and is not isolated: sandbox/servers.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_jax.rewards import code_blocks, code_names, marked, rows
from rlhf_jax.rewards.sandbox import servers as sandbox
from rlhf_jax.schema import UserError


@dataclass(frozen=True)
class Config:
  """Limits of one answer, and how tests add up."""

  seconds: float = 5.0  # wall clock of all tests; of each case of a program
  memory_bytes: int = 512 << 20  # address space of each process
  file_bytes: int = 1 << 20  # of each file and of the standard output
  workers: int = 2  # answers judged at a time, two processes each
  # The weakest isolation that will do, of sandbox.LEVELS: "namespace",
  # "landlock", "audit". The strongest that the machine offers is used.
  isolation: Literal["namespace", "landlock", "audit"] = "namespace"
  # That starts Python for answers, () for this one. A container: ("docker",
  # "run", "--rm", "-i", "--network=none", "python:3.12-slim", "python3").
  command: tuple[str, ...] = ()
  # "all" or nothing, or the "share" of tests passed, which rewards answers
  # that handle easy cases only.
  credit: Literal["all", "share"] = "all"
  max_characters: int = 20_000  # longer responses hold no code
  # What stands in <tag> is no answer, also where the prompt's template opened
  # it; None: it is read as well.
  thought_tag: str | None = "think"

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
    if self.isolation not in sandbox.LEVELS:
      raise UserError(
        f"isolation={self.isolation!r} is unknown. Choose one of "
        f"{', '.join(sandbox.LEVELS)}."
      )
    marked.check_tag("thought_tag", self.thought_tag)
    if isinstance(self.command, str):
      raise UserError(
        f"command={self.command!r} is one text. Give its words: "
        f"{tuple(self.command.split())!r}."
      )
    if self.credit not in ("all", "share"):
      raise UserError(
        f"credit={self.credit!r} is unknown. Choose 'all' or 'share'."
      )

  @property
  def servers(self) -> sandbox.Servers:
    """Returns what runs answers.

    Raises:
      UserError: the machine offers less isolation.
    """
    walls = sandbox.find(self.isolation, tuple(self.command))
    limits = sandbox.Limits(self.memory_bytes, self.file_bytes)
    return sandbox.servers(walls, limits)


class Result(NamedTuple):
  """What became of one answer.

  status: "passed", "failed", "timeout", "no_code", or the judge's own fault:
    "bad_test", which no answer can be judged by, or "lost", a server that
    ended (killed for lack of memory, say).
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
  names: tuple[str, ...]  # that tests read, and Python does not know
  wanted: tuple[str, ...]  # those of them that tests do not bind


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
  names: tuple[tuple[str, ...], ...] = ((), ())
  if tests:
    try:
      names = code_names.unknown((setup, *tests))
    except (SyntaxError, ValueError) as error:
      raise bad(f"the tests cannot judge: {error}") from None
  return Suite(tuple(tests), setup, pairs, preamble, *names)


TRIED_AT_ONCE = 256  # references
TRIAL_SECONDS = 600.0  # of so many


def _run_tests(blocks: list[str], suite: Suite, config: Config) -> Result:
  """Runs the answer and its judge side by side."""
  answer = {
    "blocks": blocks,
    "preamble": suite.preamble,
    "names": suite.wanted,
  }
  outcome = config.servers.run(
    "tests", [answer, _tests_of(suite)], config.seconds
  )
  lines = [json.loads(line) for line in outcome.output.splitlines()]
  total = len(suite.tests)
  for status, detail in lines:
    if status == "unsupported":
      return Result("bad_test", 0, total, detail)
  passed = sum(status == "passed" for status, _ in lines)
  failures = [detail for status, detail in lines if status != "passed"]
  if outcome.code is None:
    return Result("timeout", passed, total, "out of time")
  is_complete = passed == total
  detail = "" if is_complete else [*failures, "the judge ended early"][0]
  return Result("passed" if is_complete else "failed", passed, total, detail)


def _tests_of(suite: Suite) -> dict[str, Any]:
  return {"tests": suite.tests, "setup": suite.setup, "names": suite.names}


def _printed(text: str) -> list[str]:
  """Returns the lines of an output without trailing space or empty lines."""
  return [line.rstrip() for line in text.rstrip().splitlines()]


def _run_case(
  blocks: list[str], given: str, wanted: str, suite: Suite, config: Config
) -> str:
  """Runs a program on one input; returns the status of that case."""
  answer = {"blocks": blocks, "preamble": suite.preamble}
  outcome = config.servers.run("program", [answer, given], config.seconds)
  if outcome.code is None:
    return "timeout"
  printed = outcome.output.decode(errors="replace")
  is_right = outcome.code == 0 and _printed(printed) == _printed(wanted)
  return "passed" if is_right else "failed"


def run(text: str, suite: Suite, config: Config) -> Result:
  """Returns what becomes of one response; no response makes it raise.

  Args:
    text: the response; of its Python blocks the one that is meant is run.
    suite: from parse_reference.
    config: limits.

  Raises:
    UserError: the machine offers less isolation.
  """
  total = len(suite.tests) + len(suite.cases)
  said = marked.spoken(text, config.thought_tag)
  blocks = (
    code_blocks.extract(said) if len(text) <= config.max_characters else []
  )
  if not blocks:
    return Result("no_code", 0, total, "no complete Python block")
  try:
    if suite.tests:
      return _run_tests(blocks, suite, config)
    return _run_cases(blocks, suite, config)
  except sandbox.ServerLost as error:
    return Result("lost", 0, total, str(error))


def _run_cases(blocks: list[str], suite: Suite, config: Config) -> Result:
  found: list[str] = []
  for given, wanted in suite.cases:
    found.append(_run_case(blocks, given, wanted, suite, config))
    if found[-1] != "passed" and config.credit == "all":
      break
  total, passed = len(suite.cases), found.count("passed")
  if passed == total:
    return Result("passed", passed, total)
  status = "timeout" if "timeout" in found else "failed"
  first = next(i for i, one in enumerate(found) if one != "passed")
  return Result(status, passed, total, f"input {suite.cases[first][0][:80]!r}")


def prepare(references: Sequence[Any], config: Config) -> None:
  """Tries all that answers will be judged by, before there are answers.

  The tests of each reference run for real, against an answer that agrees with
  everything. Prints which isolation holds.

  Args:
    references: N; see the module's docstring.
    config: limits.

  Raises:
    UserError: the machine offers less isolation, or rows.BadReference: a
      reference that no answer can be judged by.
  """
  servers = config.servers
  suites = [parse_reference(r, row) for row, r in enumerate(references)]
  left = [row for row, suite in enumerate(suites) if suite.tests]
  while left:
    jobs = [_tests_of(suites[row]) for row in left[:TRIED_AT_ONCE]]
    try:
      outcome = servers.run("trial", [jobs], TRIAL_SECONDS)
    except sandbox.ServerLost as error:
      raise UserError(
        f"the tests of references cannot be tried: {error}. Check that the "
        "machine has memory to spare."
      ) from error
    lines = [json.loads(line) for line in outcome.output.splitlines()]
    if outcome.code is None:
      lines = lines or [[]]  # so slow that it counts as tried
    elif len(lines) < len(jobs):
      lines.append(["it ends the process that judges"])
    for row, wrong in zip(left, lines, strict=False):
      if wrong:
        raise _bad_test(row, references[row], wrong[0])
    left = left[len(lines) :]


def _bad_test(row: int, reference: Any, detail: str) -> rows.BadReference:
  return rows.bad_reference(
    row,
    reference,
    f"a test cannot be run against an answer: {detail}",
    "Tests call what the answer defines, with plain data; rewrite or drop it.",
  )


def run_all(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> list[Result]:
  """Returns what became of each response, for logs: timeouts stand apart.

  Args:
    texts: N responses.
    references: N; see the module's docstring.
    config: limits.

  Raises:
    UserError: lengths differ, a reference that cannot judge, or the machine
      offers less isolation.
  """
  rows.check(texts, references)
  suites = [parse_reference(r, row) for row, r in enumerate(references)]
  if not suites:
    return []
  with ThreadPoolExecutor(config.workers) as pool:
    return list(pool.map(run, texts, suites, [config] * len(suites)))


COUNTED = ("timeout", "no_code", "bad_test", "lost")


def score(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns [N] float32: 1 where the code of an answer passes all its tests.

  With credit="share" it is the share of them, in which tests that passed before
  a timeout count. No code scores 0. Beside the scores stand [N] 0 or 1 each of
  COUNTED. Many timeouts may be the checker's doing: give more seconds, fewer
  workers. More than none of bad_test or lost is a fault that is not the
  answers'.

  Args, Raises: as `run_all`.
  """
  results = run_all(texts, references, config)
  if config.credit == "share":
    scores = [result.passed / result.total for result in results]
  else:
    scores = [result.status == "passed" for result in results]
  return np.array(scores, np.float32), {
    status: np.array([r.status == status for r in results], np.float32)
    for status in COUNTED
  }
