"""Settings -> the tree that an experiment file and the command line change.

`schema.read` goes the other way. Fields that may be None become typed
references: they keep their type while they are None, so that the command line
can set them again.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from rlhf_jax import imported
from rlhf_jax.schema import Family, hints, options


def _reference(hint: Any, value: Any) -> config_dict.FieldReference:
  """Returns a field that may be None and keeps its type while it is."""
  kinds = [t for t in options(hint) if t is not type(None)]
  kind = typing.get_origin(kinds[0]) or kinds[0]
  return config_dict.FieldReference(value, field_type=kind)


def method_tree(name: str, family: Family) -> ml_collections.ConfigDict:
  """Returns the section of a method: its name, and nothing set.

  Args:
    name: in the family, or the import path of a module.
    family: see `method`.
  """
  modules = list(family.values())
  if name not in family and imported.is_path(name):
    modules.append(imported.load(name, "algorithm.name"))
  result = ml_collections.ConfigDict({"name": name})
  for module in modules:
    for field in dataclasses.fields(module.Config):
      hint = hints(module.Config)[field.name]
      result[field.name] = _reference(hint, None)
  return result


def tree(values: Any) -> ml_collections.ConfigDict:
  """Returns a config section with the values of a dataclass.

  Args:
    values: an instance, or a class for its defaults; a field without one is
      left out.
  """
  cls = values if isinstance(values, type) else type(values)
  section = ml_collections.ConfigDict()
  for field in dataclasses.fields(cls):
    if values is not cls:
      value = getattr(values, field.name)
    elif field.default is not dataclasses.MISSING:
      value = field.default
    elif field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    else:
      continue
    hint = hints(cls)[field.name]
    if "family" in field.metadata:
      section[field.name] = method_tree(value.name, field.metadata["family"])
    elif hasattr(value, "as_tree"):  # a stage: programs/pipeline.py
      section[field.name] = value.as_tree()
    elif dataclasses.is_dataclass(value):
      section[field.name] = tree(value)
    elif isinstance(value, dict):
      section[field.name] = ml_collections.ConfigDict(value)
    elif type(None) in options(hint):
      section[field.name] = _reference(hint, value)
    else:
      section[field.name] = value
  return section
