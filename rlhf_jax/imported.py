"""Code of a user's own, named in a config by its import path.

  my_file.py:name   folder/my_file.py:name   package.module:name

or my_file.py alone for the module itself. A relative path starts in the
working folder. A file runs once, and again only when it has changed; its
module is in sys.modules under a name made of its path, so that its dataclasses
work and its objects can be pickled. Every message begins with the field that
gave the path.

Left out: names inside classes. The folder of a file is not put on sys.path: a
file that imports its neighbour needs the folder on PYTHONPATH.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

FORM = "FILE.py:NAME or package.module:NAME"
T = TypeVar("T")
_UNFILLED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_path(text: str) -> bool:
  """Says whether a text is an import path, not the name of a built-in."""
  return ":" in text or text.endswith(".py")


def nearest(word: str, known: Collection[str]) -> str:
  """Returns " Did you mean 'x'?", or "" where no known word is near."""
  near = difflib.get_close_matches(word, [k for k in known if k != word], 1)
  return f" Did you mean {near[0]!r}?" if near else ""


def load(path: str, field: str) -> Any:
  """Returns what an import path names.

  Args:
    path: see the module's docstring.
    field: what gave it, for messages ("verifier.name").

  Raises:
    ValueError: it is of another form, the file, module or name is missing, or
      the code raises. The message begins with FIELD='PATH'.
  """
  file, name = path, None
  if not path.endswith(".py"):
    file, _, name = path.rpartition(":")
    if not file or not name.isidentifier():
      raise ValueError(f"{field}={path!r}: no import path. Write {FORM}.")
  try:
    if file.endswith(".py"):
      module = _file_module(file)
    else:
      module = _package_module(file)
    return module if name is None else _attribute(module, name, file)
  except _Refused as error:
    raise ValueError(f"{field}={path!r}: {error}") from error.__cause__


def find(
  name: Any, table: Mapping[str, T], kind: type[T], field: str, remedy: str
) -> T:
  """Returns what a table has under a name, or what an import path names.

  Args:
    name: a key of the table, or an import path.
    table: of the built-in ones.
    kind: what they are, and must be.
    field: what gave the name, for messages.
    remedy: a sentence on how one is made.

  Raises:
    ValueError: nothing of that name, or it is of another kind. The message
      begins with FIELD='NAME'.
  """
  if name in table:
    return table[name]
  one = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
  if not isinstance(name, str) or not is_path(name):
    raise ValueError(
      f"{field}={name!r}: must be one of {', '.join(table)}, or the import "
      f"path of {one}.{nearest(str(name), table)}"
    )
  found = load(name, field)
  if not isinstance(found, kind):
    raise ValueError(
      f"{field}={name!r}: is a {type(found).__name__}, not {one}. {remedy}"
    )
  return found


def fingerprint(path: str) -> str:
  """Returns a digest of the file that an import path names; "" of no file.

  Modules that the file imports do not count.

  Args:
    path: that was loaded, or "".
  """
  file = path if path.endswith(".py") else path.rpartition(":")[0]
  if not file:
    return ""
  if not file.endswith(".py"):
    spec = importlib.util.find_spec(file)
    file = "" if spec is None or spec.origin is None else spec.origin
  place = Path(file).expanduser()
  if not place.is_file():
    return ""
  return hashlib.sha256(place.read_bytes()).hexdigest()[:16]


def fingerprints(**paths: str) -> dict[str, str]:
  """Returns what a checkpoint must agree with about code of a user's own.

  Args:
    paths: field -> an import path that was loaded; names of built-ins and ""
      have no digest of their own.
  """
  return {
    f"{field}_fingerprint": fingerprint(path)
    for field, path in paths.items()
    if is_path(path)
  }


class _Refused(Exception):
  """What is wrong with an import path, and the remedy."""


def _attribute(module: ModuleType, name: str, file: str) -> Any:
  if hasattr(module, name):
    return getattr(module, name)
  known = [
    other
    for other, value in vars(module).items()
    if not other.startswith("_") and not isinstance(value, ModuleType)
  ]
  raise _Refused(
    f"{file} has no {name!r}.{nearest(name, known)} It has "
    f"{', '.join(known) if known else 'no names at all'}. Give one of its "
    "names, or define this one there."
  )


def _file_module(file: str) -> ModuleType:
  place = Path(file).expanduser().absolute()
  if not place.is_file():
    what = "is a folder" if place.is_dir() else "no such file"
    if place.exists() and not place.is_dir():
      what = "is no regular file"
    near = nearest(place.name, [p.name for p in place.parent.glob("*.py")])
    raise _Refused(
      f"{place}: {what}.{near} Give the path of a Python file; a relative one "
      "starts in the working folder."
    )
  return _run_file(str(place), place.stat().st_mtime_ns)


@functools.cache
def _run_file(file: str, changed: int) -> ModuleType:
  """Returns the module of a file in the state of that time.

  Args:
    file: absolute path.
    changed: nanoseconds; only tells one state of the file from the next.
  """
  del changed
  digest = hashlib.sha256(file.encode()).hexdigest()[:12]
  name = f"{re.sub(r'[^0-9a-zA-Z_]', '_', Path(file).stem)}_{digest}"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  before = sys.modules.get(name)
  sys.modules[name] = module
  try:
    # Not exec_module: its cached bytecode may be that of an older second.
    exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    if before is not None:
      sys.modules[name] = before
    raise _failure(error, file) from error
  return module


def _package_module(name: str) -> ModuleType:
  if not all(part.isidentifier() for part in name.split(".")):
    raise _Refused(f"{name!r} is no module's name. Write {FORM}.")
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise _failure(error) from error
    parent, _, last = error.name.rpartition(".")
    folders = None
    if parent:
      folders = getattr(sys.modules[parent], "__path__", [])
    known = [found.name for found in pkgutil.iter_modules(folders)]
    raise _Refused(
      f"no module {error.name!r}{f' in {parent!r}' if parent else ''}."
      f"{nearest(last, known)} Install it or put its folder on PYTHONPATH; for "
      "a file write FILE.py:NAME."
    ) from error
  except (Exception, SystemExit) as error:
    raise _failure(error) from error


def _failure(error: BaseException, file: str | None = None) -> _Refused:
  remedy = "Correct it there."
  if isinstance(error, ModuleNotFoundError):
    remedy = "Install it, or put the folder that holds it on PYTHONPATH."
  return _Refused(
    f"{_line(error, file)}: {type(error).__name__}: {error}. {remedy}"
  )


def _line(error: BaseException, file: str | None) -> str:
  """Returns "FILE:LINE": the last line of a file that an error passed.

  Args:
    error: raised and caught.
    file: None for any file.
  """
  if isinstance(error, SyntaxError) and file in (None, error.filename):
    return f"{error.filename}:{error.lineno}"
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith("<frozen")
    and file in (None, frame.filename)
  ]
  if not frames:
    return "an unknown line" if file is None else file
  return f"{frames[-1].filename}:{frames[-1].lineno}"


def line_of(error: BaseException, function: Any) -> str:
  """Returns "FILE:LINE" where an error left a function.

  Args:
    error: what the function raised, caught.
    function: the last line of its own file is named; where that cannot be
      known, the last line of all.
  """
  code = getattr(inspect.unwrap(function), "__code__", None)
  return _line(error, None if code is None else code.co_filename)


def check_call(
  function: Any,
  allowed: Sequence[str],
  required: Sequence[str],
  field: str,
  path: str,
) -> tuple[str, ...]:
  """Checks that a function can be called by keywords, and says with which.

  Args:
    function: anything.
    allowed: keywords that the caller can fill.
    required: those of them that the function must take.
    field, path: what gave the function, for messages.

  Returns:
    the names of `allowed` that it takes, in that order.

  Raises:
    ValueError: it cannot be called, takes an argument that nobody fills or
      only by its position, or leaves out a required one.
  """
  start = f"{field}={path!r}: "
  choices = ", ".join(allowed)
  if not callable(function):
    raise ValueError(
      f"{start}is a {type(function).__name__}, not a function. Name a "
      f"function whose parameters are among {choices}."
    )
  try:
    parameters = inspect.signature(function).parameters.values()
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{start}its parameters cannot be read ({error}). Wrap it in a def "
      f"whose parameters are among {choices}."
    ) from None
  for parameter in parameters:
    if parameter.kind in _UNFILLED:
      raise ValueError(
        f"{start}takes {parameter}, and arguments are filled by their names. "
        f"Name the parameters it reads, among {choices}."
      )
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
      raise ValueError(
        f"{start}takes {parameter.name!r} by position only, and arguments are "
        "filled by their names. Remove the '/' from its parameters."
      )
    is_filled = parameter.name in allowed
    if not is_filled and parameter.default is inspect.Parameter.empty:
      raise ValueError(
        f"{start}nothing fills its parameter {parameter.name!r}."
        f"{nearest(parameter.name, allowed)} Name it one of {choices}, or "
        "give it a default."
      )
  names = {parameter.name for parameter in parameters}
  for name in required:
    if name not in names:
      raise ValueError(
        f"{start}lacks the parameter {name!r}. Add it; the names that are "
        f"filled are {choices}."
      )
  return tuple(name for name in allowed if name in names)
