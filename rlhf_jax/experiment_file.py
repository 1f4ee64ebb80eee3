"""Experiment files: where they are, their configuration, what is wrong in one.

Those of configs/ come with the package: in a checkout they stand beside it, and
an installed package has a copy inside (setup.py).
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

SHIPPED = "configs"  # the folder, and how paths into it begin


def shipped() -> dict[str, Path]:
  """Returns the experiments of the package: "sft", "recipes/ppo" -> file."""
  package = Path(__file__).parent
  folder = package / SHIPPED
  if not folder.is_dir():
    folder = package.parent / SHIPPED
  return {
    path.relative_to(folder).with_suffix("").as_posix(): path
    for path in sorted(folder.glob("**/*.py"))
  }


def place(file: str) -> str:
  """Returns where an experiment file is: as it is named, or in the package.

  Args:
    file: "my.py", "configs/sft.py:argument"; a name under configs/ that is not
      here is that of the package.
  """
  name, colon, argument = os.path.expanduser(file).partition(":")
  path = Path(name)
  if path.exists() or path.parts[:1] != (SHIPPED,):
    return name + colon + argument
  known = path.relative_to(SHIPPED).with_suffix("").as_posix()
  found = shipped().get(known) if path.suffix == ".py" else None
  return (
    name + colon + argument if found is None else f"{found}{colon}{argument}"
  )


def load(file: str) -> Any:
  """Returns what get_config() of an experiment file returns."""
  name, colon, argument = place(file).partition(":")
  get_config = runpy.run_path(name)["get_config"]
  return get_config(argument) if colon else get_config()


def complaint(file: str, error: BaseException) -> str:
  """Returns what is wrong in an experiment file, with its line."""
  name, colon, argument = file.partition(":")
  line, cause = None, error
  while error is not None:
    if isinstance(error, SyntaxError):
      text = (error.text or "").strip()
      return f"{error.filename}:{error.lineno}: {error.msg}: {text!r}."
    trace = error.__traceback__
    while trace is not None:
      if os.path.abspath(trace.tb_frame.f_code.co_filename) == os.path.abspath(
        name
      ):
        line, cause = trace.tb_lineno, error
      trace = trace.tb_next
    error = error.__context__ if error.__cause__ is None else error.__cause__
  if line is not None:
    return f"{name}:{line}: {type(cause).__name__}: {_text(cause)}"
  if isinstance(cause, KeyError) and "get_config" in str(cause):
    return f"{name}: it has no get_config(). See configs/sft.py for one."
  if "get_config" in str(cause) and colon:
    return f"{file}: get_config() takes no argument. Leave out :{argument}."
  if "get_config" in str(cause):
    return f"{name}: get_config() wants an argument: --config={name}:ARGUMENT."
  return f"{name}: {type(cause).__name__}: {cause}"


def _text(error: BaseException) -> str:
  """Returns an error's message in one line, without the quotes of a KeyError.

  A ConfigDict wraps a KeyError into an AttributeError.
  """
  while len(error.args) == 1 and isinstance(error, (KeyError, AttributeError)):
    inner = error.args[0]
    if not isinstance(inner, BaseException):
      return " ".join(str(inner).split())
    error = inner
  return " ".join(str(error).split())
