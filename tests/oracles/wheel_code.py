"""Parts of a library, read out of its unpacked wheel and run alone.

A trainer needs half a machine to be imported, its loss a few tensors. `Code`
compiles single functions, or consecutive statements out of a longer one, in a
scope of what they name; nothing else of the library runs. `empty_modules`
lets a whole file be imported where it is only the names of its imports that
are missing.
"""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path
from typing import Any

_FLAGS = annotations.compiler_flag


class Code:
  """Functions and statements of the files of one unpacked wheel."""

  def __init__(self, folder: Path, **scope: Any) -> None:
    self.folder = folder
    self.scope = scope

  def _find(self, file: str, name: str) -> ast.FunctionDef:
    tree = ast.parse((self.folder / file).read_text())
    found = [
      node
      for node in ast.walk(tree)
      if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if len(found) != 1:
      raise LookupError(f"{file} has {len(found)} functions named {name}.")
    return found[0]

  def function(self, file: str, name: str) -> Any:
    """Returns a function or method, undecorated; it sees the scope."""
    node = self._find(file, name)
    node.decorator_list = []
    code = compile(ast.Module([node], []), file, "exec", flags=_FLAGS)
    exec(code, self.scope)
    return self.scope[name]

  def add(self, file: str, *names: str) -> None:
    """Puts functions of a file into the scope of all others."""
    for name in names:
      self.function(file, name)

  def statements(
    self, file: str, name: str, first: str, last: str, names: dict[str, Any]
  ) -> dict[str, Any]:
    """Runs part of a function and returns its variables.

    Args:
      file: path in the wheel.
      name: the function, which may nest them deeper.
      first: what the first statement starts with, as `ast.unparse` writes it.
      last: the same of the last, the next one in the same block.
      names: the variables that they read.
    """
    for node in ast.walk(self._find(file, name)):
      body = getattr(node, "body", None)
      if not isinstance(body, list):
        continue
      texts = [ast.unparse(x) for x in body]
      begins = [i for i, x in enumerate(texts) if x.startswith(first)]
      ends = [i for i, x in enumerate(texts) if x.startswith(last)]
      if begins and any(i >= begins[0] for i in ends):
        end = next(i for i in ends if i >= begins[0])
        part = ast.Module(body[begins[0] : end + 1], [])
        variables = dict(names)
        exec(compile(part, file, "exec", flags=_FLAGS), self.scope, variables)
        return variables
    raise LookupError(f"{file}: {name} has no {first!r} before {last!r}.")


class Anything(types.ModuleType):
  """A module whose every attribute is a class that takes any argument."""

  def __getattr__(self, name: str) -> type:
    if name.startswith("__"):
      raise AttributeError(name)
    methods = {
      "__init__": lambda self, *_, **__: None,
      "__getattr__": lambda self, _: lambda *_, **__: None,
    }
    made = type(name, (dict,), methods)
    setattr(self, name, made)
    return made


def empty_modules(
  folder: Path, packages: tuple[str, ...], emptied: tuple[str, ...]
) -> None:
  """Makes files of a folder importable without their dependencies.

  Args:
    folder: an unpacked wheel.
    packages: whose __init__.py is not run; the modules below are real.
    emptied: modules that are replaced by Anything.
  """
  sys.path.insert(0, str(folder))
  for name in packages:
    package = types.ModuleType(name)
    package.__path__ = [str(folder / name.replace(".", "/"))]
    sys.modules[name] = package
  for name in emptied:
    sys.modules[name] = Anything(name)


class Fields(dict):
  """A dict whose keys are attributes too, for configs and arguments."""

  __getattr__ = dict.__getitem__
  __setattr__ = dict.__setitem__
