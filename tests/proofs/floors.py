"""The oldest stack that setup.py allows: every package at its floor.

    python -m tests.proofs.floors > floors.txt
    PIP_CONSTRAINT=floors.txt .venv/bin/pip install -e '.[test]'

prints one `name==version` for each `name>=version` of setup.py, extras too, as
a constraints file of pip. It needs Python alone, so that it can run before
there is an environment. Packages that setup.py does not name are the newest
that go with these.
"""

from __future__ import annotations

import re
import runpy
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

SETUP = Path(__file__).parent.parent.parent / "setup.py"
_FLOOR = re.compile(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)")


def requirements(setup: Path = SETUP) -> list[str]:
  """Returns what a setup.py asks for, extras included, without setuptools."""
  asked: list[str] = []

  def record(*, install_requires=(), extras_require=None, **_) -> None:
    asked.extend(install_requires)
    for extra in (extras_require or {}).values():
      asked.extend(extra)

  names = ("", ".command", ".command.build_py")
  recorders = {f"setuptools{x}": types.ModuleType("setuptools") for x in names}
  recorders["setuptools"].setup = record
  recorders["setuptools"].find_packages = lambda **_: []
  recorders["setuptools.command.build_py"].build_py = object
  with mock.patch.dict(sys.modules, recorders):
    runpy.run_path(str(setup))
  return asked


def constraints(asked: Iterable[str]) -> list[str]:
  """Returns sorted lines `name==version`, one a package.

  Raises:
    ValueError: a requirement that is no floor, or two floors of one package.
  """
  floors: dict[str, str] = {}
  for requirement in asked:
    match = _FLOOR.fullmatch(requirement)
    if match is None:
      raise ValueError(f"{requirement!r} is no floor. Write name>=version.")
    name, version = match[1], match[3]
    if floors.setdefault(name, version) != version:
      raise ValueError(
        f"{name} has two floors, {floors[name]} and {version}. Keep one."
      )
  return [f"{name}=={floors[name]}" for name in sorted(floors)]


if __name__ == "__main__":
  print("\n".join(constraints(requirements())))
