"""Names of the hub in an experiment -> commits, the same when it goes on.

A run records what each name meant when it began (`pinned` in its config.json),
and later starts in its folder read that commit, whatever the branch is then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax import distributed
from rlhf_jax.data import hub_sources, sources
from rlhf_jax.data.section import Data
from rlhf_jax.models import hub
from rlhf_jax.models.pretrained import Model
from rlhf_jax.schema import UserError

_MODEL, _DATA = (
  frozenset(field.name for field in dataclasses.fields(section))
  for section in (Model, Data)
)


def pin(config: Any, record: Path) -> dict[str, str]:
  """Pins the models and data sets of an experiment, in place.

  Args:
    config: a tree of defaults.py, changed.
    record: config.json of the run, if it has begun.

  Returns:
    name as it was given -> name@commit; empty where nothing is of the hub.

  Raises:
    UserError: a name that the hub does not know, or cannot be asked about.
  """
  known = _recorded(record)
  found = {}

  def pinned(source: str, field: str, ask: Callable[[str, str], str]) -> str:
    if source not in found:
      commit = known[source] if source in known else None
      found[source] = commit or _agreed(source, field, ask)
    return found[source]

  for field, section in _sections(config, _MODEL):
    source = section["source"]
    name = hub.parse(source) if isinstance(source, str) else None
    if name is not None and not name.is_pinned:
      section["source"] = pinned(source, f"{field}.source", hub.pin)
  for field, section in _sections(config, _DATA):
    for inner in ("source", "exclude"):
      source = section[inner]
      if isinstance(source, str) and hub_sources.PREFIX in source:
        section[inner] = ",".join(
          pinned(part, f"{field}.{inner}", hub_sources.pin)
          if _moves(part)
          else part
          for part in sources.parts(source)
        )
  return found


def _moves(part: str) -> bool:
  """Says whether a part of a source is a name of the hub that may move."""
  is_name = part.startswith(hub_sources.PREFIX)
  return is_name and not hub_sources.parse(part).name.is_pinned


def _sections(
  config: Any, fields: frozenset[str], prefix: str = "config"
) -> Iterator[tuple[str, Any]]:
  """Yields (field, section) of the sections that have these fields."""
  for name in config:
    value = config[name]
    if not hasattr(value, "keys"):
      continue
    if set(value) >= fields:
      yield f"{prefix}.{name}", value
    else:
      yield from _sections(value, fields, f"{prefix}.{name}")


def _recorded(path: Path) -> Mapping[str, str]:
  """Returns what a run that has begun pinned."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text()).get("pinned", {})
  except (ValueError, AttributeError):
    return {}  # workdir.changed_settings says so
  return found if isinstance(found, dict) else {}


def _agreed(source: str, field: str, ask: Callable[[str, str], str]) -> str:
  """Returns what the first process takes a name for, the same on all."""
  if jax.process_count() == 1:
    return ask(source, field)
  mine, error = "", None
  if distributed.is_first():
    try:
      mine = ask(source, field)
    except UserError as raised:
      error = raised
  sent = np.zeros(512, np.uint8)
  sent[: len(mine)] = np.frombuffer(mine.encode(), np.uint8)
  got = bytes(multihost_utils.broadcast_one_to_all(sent)).rstrip(b"\0").decode()
  if error is not None:
    raise error
  if not got:
    raise UserError(f"{field}={source!r}: the first process says why not.")
  return got
