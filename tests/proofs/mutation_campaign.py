"""Plants small faults, one at a time, and asks whether a test notices.

    python -m tests.proofs.mutation_campaign --only=losses --jobs=2

Each fault of mutations.py is planted in a copy of the tree, and the tests
named with it run there; with --whole all tests of the default suite follow
where the named ones pass. Tests that killed a fault run once more on a tree
without faults: where they fail there too, the kill does not count. Exit code 1
when less than 95 % are killed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.proofs import mutations
from tests.proofs.mutations import Mutation

ROOT = Path(__file__).parent.parent.parent
SERVER = Path(__file__).parent / "warm_pytest.py"
# What takes long to import, and is no part of this repository.
IMPORTED = (
  "flax.linen",
  "gguf",
  "grain",
  "jax.numpy",
  "jinja2.sandbox",
  "matplotlib.backends.backend_agg",
  "matplotlib.backends.backend_svg",
  "matplotlib.figure",
  "ml_collections",
  "optax",
  "orbax.checkpoint",
  "pytest",
  "safetensors.numpy",
  "tokenizers",
)
PASSING_SHARE = 0.95
PATIENCE = 900.0  # seconds of one pytest; a fault may make a program endless
_ENDED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_COPIED = (
  ".ci",
  "benchmarks",
  "configs",
  "docs",
  "rlhf_jax",
  "tests",
  "tpu_scripts",
)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What became of one fault.

  killer: id of the test that failed, "time" where none ended, "" for none.
  """

  mutation: Mutation
  killer: str
  seconds: float


def copy_tree(target: Path) -> None:
  """Copies what tests read, with the times of files, to a new folder."""
  target.mkdir()
  for path in ROOT.iterdir():
    if path.is_file() and path.name != ".git":  # a file in a linked tree
      shutil.copy2(path, target)
    elif path.name in _COPIED:
      shutil.copytree(path, target / path.name, symlinks=True)


def environment(folder: Path) -> dict[str, str]:
  """Returns the environment of tests in trees below a folder.

  Most of their time is compiling, and a fault changes few programs: all runs
  keep compiled ones beside the trees.
  """
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
  }


class Tests:
  """Runs tests in trees below a folder, one run after the other."""

  def __init__(self, folder: Path, imported: Sequence[str] = IMPORTED) -> None:
    self._output = folder / f"output_{id(self)}.txt"
    self._server = subprocess.Popen(
      [sys.executable, str(SERVER), *imported],
      env=environment(folder),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __enter__(self) -> Tests:
    return self

  def __exit__(self, *_: object) -> None:
    self._server.stdin.close()
    self._server.wait()
    self._server.stdout.close()

  def run(self, root: Path, tests: Sequence[str]) -> tuple[bool, list[str]]:
    """Returns whether tests pass in a tree, and the ids of those that do not.

    Args:
      root: of the tree.
      tests: paths or ids; none for the whole default suite.

    Raises:
      RuntimeError: pytest itself failed.
    """
    arguments = ["-x", "-q", "-rfE", *tests]
    arguments += ["-p", "no:cacheprovider", "--tb=no"]
    job = {
      "root": str(root),
      "arguments": arguments,
      "output": str(self._output),
      "patience": PATIENCE,
    }
    self._server.stdin.write(json.dumps(job) + "\n")
    self._server.stdin.flush()
    answer = self._server.stdout.readline().strip()
    if answer == "time":
      return False, ["time"]
    code, said = int(answer), self._output.read_text()
    failed = _ENDED.findall(said)
    if code == 0:
      return True, []
    if code not in (1, 2) or not failed:
      if code < 0:  # the interpreter died in a test
        return False, [f"signal {-code}"]
      raise RuntimeError(f"pytest {' '.join(arguments)}:\n{said[-3000:]}")
    return False, failed


@contextlib.contextmanager
def planted(mutation: Mutation, root: Path) -> Iterator[None]:
  """Plants a fault in a tree, and takes it out again.

  Args:
    mutation: the fault.
    root: of a copy of the tree.
  """
  path = mutations.place(mutation, root)
  source, times = path.read_text(), path.stat()
  path.write_text(mutations.mutated(mutation, source))
  try:
    yield
  finally:
    path.write_text(source)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    # Compiled files are told apart by seconds and size, which may be the same.
    Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


def judge(
  mutation: Mutation, root: Path, tests: Tests, is_whole: bool
) -> Verdict:
  """Returns what becomes of a fault.

  Args:
    mutation: the fault.
    root: of a copy of the tree, in which it is planted.
    tests: run them.
    is_whole: run all tests where the named ones pass.
  """
  start = time.monotonic()
  with planted(mutation, root):
    is_alive, failed = tests.run(root, mutations.test_files(mutation, root))
    if is_alive and is_whole:
      is_alive, failed = tests.run(root, [])
  killer = "" if is_alive else failed[0]
  return Verdict(mutation, killer, time.monotonic() - start)


def discounted(
  verdicts: list[Verdict], root: Path, tests: Tests
) -> list[Verdict]:
  """Returns the verdicts without kills by tests that fail anyway.

  Args:
    verdicts: of faults.
    root: of a copy of the tree without faults.
    tests: run them.
  """
  suspects = sorted({v.killer for v in verdicts if ".py" in v.killer})
  broken: set[str] = set()
  while suspects:
    passes, failed = tests.run(root, suspects)
    if passes:
      break
    broken |= set(failed)
    left = [test for test in suspects if test not in broken]
    if len(left) == len(suspects):  # not one of them: a broken tree
      broken |= set(suspects)
      break
    suspects = left
  return [
    dataclasses.replace(v, killer="") if v.killer in broken else v
    for v in verdicts
  ]


def chosen(only: str, part: str) -> list[Mutation]:
  """Returns the faults of an area or a name, and of them every N-th.

  Args:
    only: area, or a piece of names; "" for all.
    part: "K/N", the K-th of N parts.

  Raises:
    SystemExit: nothing is chosen.
  """
  everything = mutations.everything()
  areas = {m.area for m in everything}
  found = [
    m
    for m in everything
    if only in ("", m.area) or (only not in areas and only in m.name)
  ]
  index, _, count = part.partition("/")
  found = found[int(index) - 1 :: int(count)]
  if not found:
    raise SystemExit(f"--only={only} --part={part}: no such fault.")
  return found


def campaign(
  faults: Sequence[Mutation], jobs: int, is_whole: bool
) -> list[Verdict]:
  """Returns what became of each fault, and says so as it goes on.

  Args:
    faults: to plant.
    jobs: how many at a time.
    is_whole: see `judge`.
  """
  for fault in faults:
    mutations.place(fault, ROOT)
    mutations.test_files(fault, ROOT)
  with tempfile.TemporaryDirectory() as name:
    folder, idle = Path(name), queue.SimpleQueue()

    def one(fault: Mutation) -> Verdict:
      tests, root = idle.get()
      try:
        verdict = judge(fault, root, tests, is_whole)
      finally:
        idle.put((tests, root))
      print(line(verdict), flush=True)
      return verdict

    with contextlib.ExitStack() as stack:
      for number in range(jobs):
        root = folder / f"tree_{number}"
        copy_tree(root)
        idle.put((stack.enter_context(Tests(folder)), root))
      with ThreadPoolExecutor(jobs) as pool:
        verdicts = list(pool.map(one, faults))
      tests, root = idle.get()
      return discounted(verdicts, root, tests)


def line(verdict: Verdict) -> str:
  """Returns area, name, what killed it and seconds as one line."""
  fault, killer = verdict.mutation, verdict.killer
  path, colons, test = killer.partition("::")  # a parameter may hold a "/"
  killer = f"{path.rpartition('/')[2]}{colons}{test}" or "SURVIVED"
  return (
    f"{fault.area:10s}  {fault.name:52s}  {killer}  {verdict.seconds:.0f} s"
  )


def table(verdicts: Sequence[Verdict]) -> str:
  """Returns all lines, and in the last one how many were killed."""
  killed = sum(bool(verdict.killer) for verdict in verdicts)
  lines = [line(verdict) for verdict in verdicts]
  minutes = sum(verdict.seconds for verdict in verdicts) / 60
  last = f"killed {killed} of {len(verdicts)}, {minutes:.1f} minutes of tests"
  return "\n".join([*lines, last])


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--only", default="", help="an area, or part of a name")
  parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts")
  parser.add_argument("--jobs", type=int, default=1, help="at a time")
  parser.add_argument("--whole", action="store_true", help="then all tests")
  options = parser.parse_args()
  verdicts = campaign(
    chosen(options.only, options.part), options.jobs, options.whole
  )
  print("\n" + table(verdicts))
  share = sum(bool(v.killer) for v in verdicts) / len(verdicts)
  raise SystemExit(share < PASSING_SHARE)


if __name__ == "__main__":
  main()
