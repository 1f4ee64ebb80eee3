"""Small faults of the package, and where each of them is planted.

A fault is data: the file, the text that stands there once, what stands there
instead, and the tests that must notice: a file, or one test of a file where all
of it would take long. `mutants/` lists them by area; mutation_campaign.py
plants them one by one.

Files move and tests are moved with them, so both are looked for: a text that
is not in its file may stand once in another one of the package, and a test
file is named without its folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

PACKAGE = "rlhf_jax"


class StaleError(ValueError):
  """A fault that cannot be planted any more."""


@dataclasses.dataclass(frozen=True)
class Mutation:
  """One fault.

  file: below the package, where `before` stands exactly once.
  tests: names of test files, without folders, or of tests in them
    (FILE::NAME), any of which must fail; the cheapest first.
  """

  area: str
  name: str
  file: str
  before: str
  after: str
  tests: tuple[str, ...]


def of(
  area: str, file: str, tests: str, *faults: tuple[str, ...]
) -> tuple[Mutation, ...]:
  """Returns the faults of one file.

  Args:
    area: what the fault is about.
    file: below the package.
    tests: names of test files, parted by spaces; "test_" and ".py" are added.
      A test in a file is FILE::NAME, where "test_" is added too.
    faults: (name, before, after), or with tests of its own as the fourth.
  """
  return tuple(
    Mutation(area, name, file, before, after, _names(*own) or _names(tests))
    for name, before, after, *own in faults
  )


def _names(tests: str = "") -> tuple[str, ...]:
  """Returns names of files, or FILE::NAME, of what `of` takes."""
  parts = [part.partition("::") for part in tests.split()]
  return tuple(
    f"test_{file}.py" + (f"::test_{name}" if name else "")
    for file, _, name in parts
  )


def place(mutation: Mutation, root: Path) -> Path:
  """Returns the file of the package in which the text of a fault stands.

  Args:
    mutation: the fault.
    root: of the repository, or of a copy of it.

  Raises:
    StaleError: the text stands nowhere, or in more than one place.
  """
  named = root / PACKAGE / mutation.file
  if named.is_file():
    count = named.read_text().count(mutation.before)
    if count == 1:
      return named
    if count:
      raise StaleError(
        f"{mutation.name}: {mutation.file} holds {mutation.before!r} {count} "
        "times. Make the text longer."
      )
  found = {
    path: path.read_text().count(mutation.before)
    for path in sorted((root / PACKAGE).rglob("*.py"))
  }
  found = {path: count for path, count in found.items() if count}
  if list(found.values()) == [1]:
    return next(iter(found))
  raise StaleError(
    f"{mutation.name}: {mutation.before!r} stands in "
    f"{[str(p.relative_to(root)) for p in found]}, and not once in "
    f"{mutation.file}. Write the fault anew in tests/proofs/mutants/."
  )


def mutated(mutation: Mutation, source: str) -> str:
  """Returns the source with the fault in it."""
  return source.replace(mutation.before, mutation.after)


def test_files(mutation: Mutation, root: Path) -> list[str]:
  """Returns the ids, below root, of the tests that must notice a fault.

  Raises:
    StaleError: there is no file, or more than one, of a name, or no test.
  """
  ids = []
  for test in mutation.tests:
    name, colons, function = test.partition("::")
    found = sorted((root / "tests").rglob(name))
    if len(found) != 1:
      raise StaleError(
        f"{mutation.name}: {len(found)} files are called {name}. Name the "
        "tests anew in tests/proofs/mutants/."
      )
    if function and f"def {function}(" not in found[0].read_text():
      raise StaleError(
        f"{mutation.name}: {name} has no {function}. Name the tests anew in "
        "tests/proofs/mutants/."
      )
    ids.append(f"{found[0].relative_to(root)}{colons}{function}")
  return ids


def everything() -> tuple[Mutation, ...]:
  """Returns all faults, area by area."""
  from tests.proofs.mutants import (
    data,
    evaluation,
    exports,
    judges,
    losses,
    policy,
    rollouts,
    runs,
    tools,
    verifiers,
  )

  modules = (
    losses,
    policy,
    rollouts,
    evaluation,
    runs,
    data,
    verifiers,
    judges,
    tools,
    exports,
  )
  return tuple(fault for module in modules for fault in module.FAULTS)
