"""A config's section `algorithm`: a method by name, and its settings.

The section holds the name and the fields of every method of a family, all of
them None until somebody sets one: what is not set is the chosen method's own
default. A field that is set and that the method does not have is refused. Where
None is a value of its own (no value_clip), "inf" says the same.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, config_dict

from rlhf_jax.pipelines.config import ConfigError, nearest, section

Family = Mapping[str, ModuleType]


@dataclasses.dataclass(frozen=True)
class Method:
  """A method, ready to be used: its name, its module, its settings."""

  name: str
  module: ModuleType
  config: Any


def _own(module: ModuleType) -> set[str]:
  return {field.name for field in dataclasses.fields(module.Config)}


def tree(family: Family, name: str) -> ConfigDict:
  """Returns the section of a config: a name, and nothing set.

  Args:
    family: name -> module with a Config, such as registry.ALGORITHMS.
    name: of the method.
  """
  result = ConfigDict({"name": name})
  for module in family.values():
    hints = typing.get_type_hints(module.Config)
    for field in dataclasses.fields(module.Config):
      options = typing.get_args(hints[field.name]) or (hints[field.name],)
      kind = next(t for t in options if t is not type(None))
      result[field.name] = config_dict.FieldReference(None, field_type=kind)
  return result


def read(values: Any, family: Family, where: str = "algorithm") -> Method:
  """Returns the method of a section.

  Args:
    values: the section.
    family: name -> module with a Config.
    where: the section stands, for messages.

  Raises:
    ConfigError: no such method, or a field that is not its own or is wrong.
  """
  values = dict(values)
  name = values.pop("name", None)
  if name not in family:
    raise ConfigError(
      f"config.{where}.name={name!r}: must be one of {', '.join(family)}."
      f"{nearest(str(name), family)}"
    )
  module = family[name]
  given = {key: value for key, value in values.items() if value is not None}
  for key in given.keys() - _own(module):
    others = [other for other, known in family.items() if key in _own(known)]
    if others:
      raise ConfigError(
        f"config.{where}.{key}={given[key]!r}: {name!r} has no such setting "
        f"(it is one of {', '.join(others)}). Set it to None."
      )
  return Method(name, module, section(module.Config, given, where))
