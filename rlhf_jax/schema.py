"""Values -> frozen dataclasses: what an experiment says, checked once.

What a pipeline can be told is one frozen dataclass, its Settings. Each field is
a section (the dataclass that stands beside the code which it configures), a
method by name, or a plain value, and each has a default. config_tree.py makes
the ml_collections tree out of it that an experiment file changes; `read` makes
the dataclass again, with errors that name value, rule and remedy.

Nothing below main sees a tree: it gets dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from rlhf_jax import imported
from rlhf_jax.imported import nearest

T = TypeVar("T")
Family = Mapping[str, Any]  # name -> module with a Config

_WORDS = {
  int: "a whole number",
  float: "a number",
  bool: "True or False",
  str: "text",
  type(None): "None",
}
# (section.)field.of.a.section, and what says that a value follows
_FIELD = re.compile(r"(?:(\w+)\.)?(\w+)((?:\.\w+)*)(?==|:| is empty)")

# Words in the names of fields that multiply: an infinite one makes NaN, where
# an infinite bound, such as a clip, is none.
_FACTORS = frozenset(
  "rate decay epsilon temperature beta gamma weight value coefficient penalty"
  " margin centering discount".split()
)
_HUGE = 3.4e38  # about the largest float32
_LARGEST = 2**63 - 1  # of whole numbers: no array holds a larger one
SEED_LIMIT = 2**31
_BUCKETS = ("gs", "s3", "az")
_ADDRESSES = ("http", "https", "ftp", "hf", "file")


class UserError(ValueError):
  """What a person gave cannot be right; the message says what, why, and how.

  Everything else that is raised is a bug.
  """


class FieldError(UserError):
  """A UserError whose message begins with a field of the settings.

  Whoever knows where the settings stand in an experiment puts that in front
  (`located`).
  """


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a pipeline can be told; each pipeline has a subclass."""


@dataclasses.dataclass(frozen=True)
class Method:
  """A method of a family, ready to be used.

  name: in its family, or an import path.
  module: has Config and the method's functions.
  config: an instance of that Config.
  given: fields of it that the experiment set.
  """

  name: str
  module: Any
  config: Any
  given: frozenset[str] = frozenset()


def method(
  family: Family,
  name: str,
  check: Callable[[Any], None] | None = None,
  what: str = "",
) -> Any:
  """Returns a field of Settings that is a method by its name.

  Its section holds the name and the fields of all methods of the family, None
  until somebody sets one: what is not set is the chosen method's own default.

  Args:
    family: name -> module with a Config, such as registry.ALGORITHMS.
    name: of the default.
    check: raises ValueError for a module that is no method; it is asked about
      modules that an experiment names by import path.
    what: all of the family do, said of a name that is not in it.
  """
  module = family[name]
  return dataclasses.field(
    default=Method(name, module, module.Config()),
    metadata={"family": family, "check": check, "what": what},
  )


@contextlib.contextmanager
def located(prefix: str) -> Iterator[None]:
  """Puts "config." and a prefix before the field that an error is about.

  Options that the message names, --config.x=1, get the prefix too.

  Args:
    prefix: where the settings stand, "" or "policy.".
  """
  try:
    yield
  except FieldError as error:
    raise UserError(_in_full(str(error), prefix)) from error


def _in_full(message: str, prefix: str) -> str:
  return f"config.{prefix}{message.replace('--config.', f'--config.{prefix}')}"


@contextlib.contextmanager
def as_field(name: str = "") -> Iterator[None]:
  """Makes FieldErrors of ValueErrors whose message begins with a field.

  A FieldError passes: it says where it is.

  Args:
    name: put before it, "algorithm.".
  """
  try:
    yield
  except FieldError:
    raise
  except ValueError as error:
    raise FieldError(f"{name}{error}") from error


def check_choice(field: str, value: str, allowed: Collection[str]) -> None:
  """Raises FieldError unless the value is an allowed one."""
  if value not in allowed:
    names = ", ".join(name or '""' for name in allowed)
    raise FieldError(
      f"{field}={value!r}: must be one of {names}."
      f"{nearest(str(value), allowed)}"
    )


def check_local(path: str, field: str) -> None:
  """Raises FieldError for an address, such as that of a bucket.

  Runs append to their files and rename them into place, which buckets cannot.

  Args:
    path: of a folder or a file.
    field: that gave it.
  """
  scheme, colon, _ = str(path).partition("://")
  if colon and scheme.lower() in _ADDRESSES:
    raise FieldError(
      f"{field}={str(path)!r}: must be a local path, not an address. Download "
      "it, and give its path."
    )
  scheme, colon, _ = str(path).partition(":/")
  if colon and scheme in _BUCKETS:
    raise FieldError(
      f"{field}={str(path)!r}: must be a local or mounted folder. Mount the "
      f"bucket (gcsfuse; tpu_scripts/setup.sh does), or copy what you need."
    )


def absence(path: str | Path) -> str:
  """Returns why a path is no file that can be read: what is there instead."""
  # Those of os.path take names that are too long, or no names, for absent.
  if os.path.isdir(path):
    return "is a folder, not a file"
  if os.path.exists(path):
    return "is no regular file (a pipe, a socket or a device)"
  if os.path.islink(path):
    return "a link to nothing"
  if "$" in str(path):
    return "no such file, and no variable is filled in here"
  return "no such file"


def check_seed(seed: int, field: str = "seed") -> None:
  """Raises FieldError for a seed that, with room, is not a 32-bit number."""
  if not 0 <= seed < SEED_LIMIT:
    raise FieldError(f"{field}={seed}: must be >= 0 and below 2**31.")


def check_least(settings: Any, **least: float) -> None:
  """Raises FieldError for a field below its least value."""
  for field, bound in least.items():
    if getattr(settings, field) < bound:
      raise FieldError(
        f"{field}={getattr(settings, field)}: must be >= {bound}."
      )


@functools.lru_cache(maxsize=256)
def hints(cls: type) -> dict[str, Any]:
  """Returns field -> type of a dataclass."""
  return typing.get_type_hints(cls)


def options(hint: Any) -> tuple:
  """Returns the alternatives of a type hint."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.get_args(hint)
  return (hint,)


def _plain(value: Any) -> Any:
  if isinstance(value, ml_collections.ConfigDict):
    return value.to_dict()
  return value


def _fits(value: Any, hint: Any) -> bool:
  for option in options(hint):
    kind = typing.get_origin(option) or option
    if kind is Any or (kind is float and type(value) is int):
      return True
    if kind is int and isinstance(value, bool):
      continue
    if isinstance(kind, type) and isinstance(value, kind):
      return True
  return False


def _checked(value: Any, hint: Any, name: str) -> Any:
  """Returns a value of a field's type; whole numbers become floats there."""
  if not _fits(value, hint):
    wanted = " or ".join(
      _WORDS.get(option, str(option)) for option in options(hint)
    )
    raise UserError(
      f"config.{name}={value!r}: must be {wanted}, not {type(value).__name__}."
    )
  if type(value) is int and abs(value) > _LARGEST:
    raise UserError(
      f"config.{name}: a whole number of {value.bit_length()} bits; must be "
      "within 63."
    )
  if isinstance(value, float) and math.isnan(value):
    raise UserError(f"config.{name}={value}: must be a number.")
  words = set(name.rpartition(".")[2].split("_"))
  is_huge = isinstance(value, float) and abs(value) > _HUGE
  if is_huge and words & _FACTORS and "clip" not in words:
    raise UserError(f"config.{name}={value}: must be finite, as a float32 too.")
  is_float = float in options(hint) and int not in options(hint)
  return float(value) if is_float and type(value) is int else value


def read(
  cls: type[T],
  values: Any,
  name: str = "",
  stage: Callable[[Any, str, Mapping[str, Any]], Any] | None = None,
) -> T:
  """Returns the dataclass of a config section, or of a whole experiment.

  Args:
    cls: frozen dataclass with range checks in __post_init__.
    values: ConfigDict or dict.
    name: where the section stands, for messages ("policy.optimizer").
    stage: (values, name, metadata) -> what a field that is a stage of a whole
      run is read into; None where there is none.

  Raises:
    UserError: for an unknown field (with the nearest known one), a missing
      one, a wrong type or a value out of range.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  values = _given(cls, values, name, fields)
  found = {}
  for key, value in values.items():
    field, where = fields[key], f"{name}.{key}" if name else key
    if "family" in field.metadata:
      found[key] = _read_method(value, where, **field.metadata)
    elif hasattr(field.default, "as_tree"):
      found[key] = stage(value, where, field.metadata)
    elif isinstance(hints(cls)[key], type) and dataclasses.is_dataclass(
      hints(cls)[key]
    ):
      found[key] = read(hints(cls)[key], value, where, stage)
    else:
      found[key] = _checked(_plain(value), hints(cls)[key], where)
  try:
    return cls(**found)
  except ValueError as error:
    raise UserError(_placed(str(error), name, fields)) from error


def _given(
  cls: type, values: Any, name: str, fields: dict[str, dataclasses.Field]
) -> dict[str, Any]:
  """Returns the values by field, none unknown and none missing."""
  dotted = f"{name}." if name else ""
  is_whole = issubclass(cls, Settings)
  if not isinstance(values, (ml_collections.ConfigDict, dict)):
    first = next(iter(fields))
    raise UserError(
      f"config.{name}={values!r}: is a section. Set its fields, for example "
      f"config.{dotted}{first}."
    )
  values = {key: values[key] for key in values}
  if is_whole:
    values.pop("pipeline", None)
  for key in values:
    if key not in fields:
      what = "no such section or field" if is_whole else "no such field"
      raise UserError(
        f"config.{dotted}{key}: {what}.{nearest(key, fields)} Known: "
        f"{', '.join(sorted(fields))}."
      )
  for key, field in fields.items():
    if key in values:
      continue
    if is_whole:
      raise UserError(
        f"config.{dotted}{key} is missing. Start the experiment file from "
        "rlhf_jax.pipelines.defaults, which holds every field."
      )
    if (field.default, field.default_factory) == (dataclasses.MISSING,) * 2:
      raise UserError(f"config.{dotted}{key}: not set, has no default.")
  return values


def _read_method(
  values: Any, where: str, *, family: Family, check: Any, what: str
) -> Method:
  """Returns the method that a section names, with the settings of its own."""
  values = {key: _plain(values[key]) for key in values}
  name = values.pop("name", None)
  if name in family:
    module = family[name]
  elif isinstance(name, str) and imported.is_path(name):
    module = _imported_method(name, f"config.{where}.name", check)
  else:
    reason = f", which {what}" if what else ""
    raise UserError(
      f"config.{where}.name={name!r}: must be one of {', '.join(family)}"
      f"{reason}, or the import path of a module.{nearest(str(name), family)}"
    )
  own = {field.name for field in dataclasses.fields(module.Config)}
  given = {key: value for key, value in values.items() if value is not None}
  for key in given.keys() - own:
    others = [
      other
      for other, known in family.items()
      if key in {field.name for field in dataclasses.fields(known.Config)}
    ]
    if others:
      raise UserError(
        f"config.{where}.{key}={given[key]!r}: {name!r} has no such setting "
        f"(it is one of {', '.join(others)}). Set it to None."
      )
  config = read(module.Config, given, where)
  return Method(name, module, config, frozenset(given))


def _imported_method(name: str, field: str, check: Any) -> Any:
  try:
    module = imported.load(name, field)
    if check is not None:
      check(module)
  except ValueError as error:
    message = str(error)
    told = message if message.startswith(field) else f"{field}={name!r}: "
    raise UserError(told if told == message else told + message) from error
  return module


def _placed(message: str, name: str, known: Collection[str]) -> str:
  """Returns a message about a field, with the field's full name."""
  dotted = f"{name}." if name else ""
  found = _FIELD.match(message)
  if found is not None:
    first = found[1] if found[1] else found[2]
    if first in known:
      return _in_full(message, dotted)
    if found[2] in known:  # "optimizer.learning_rate=..." says its section
      return f"config.{dotted}{message[found.start(2) :]}"
  return f"config.{name}: {message}" if name else message
