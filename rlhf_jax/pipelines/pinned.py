"""Names of the hub in an experiment -> commits, the same when it goes on.

A run records what each name meant when it began (`pinned` in its config.json),
and later starts in its folder read that commit, whatever the branch is then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax import distributed
from rlhf_jax.models import hub
from rlhf_jax.models.pretrained import Model
from rlhf_jax.schema import UserError

_FIELDS = frozenset(field.name for field in dataclasses.fields(Model))


def pin(config: Any, record: Path) -> dict[str, str]:
  """Pins the models of an experiment, in place.

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
  for field, section in _models(config):
    source = section["source"]
    name = hub.parse(source) if isinstance(source, str) else None
    if name is None or name.is_pinned:
      continue
    if source not in found:
      commit = known[source] if source in known else None
      found[source] = commit or _agreed(source, f"{field}.source")
    section["source"] = found[source]
  return found


def _models(config: Any, prefix: str = "config") -> Iterator[tuple[str, Any]]:
  """Yields (field, section) of the Model sections of a tree."""
  for name in config:
    value = config[name]
    if not hasattr(value, "keys"):
      continue
    if set(value) >= _FIELDS:
      yield f"{prefix}.{name}", value
    else:
      yield from _models(value, f"{prefix}.{name}")


def _recorded(path: Path) -> Mapping[str, str]:
  """Returns what a run that has begun pinned."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text()).get("pinned", {})
  except (ValueError, AttributeError):
    return {}  # workdir.changed_settings says so
  return found if isinstance(found, dict) else {}


def _agreed(source: str, field: str) -> str:
  """Returns what the first process takes a name for, the same on all."""
  if jax.process_count() == 1:
    return hub.pin(source, field)
  mine, error = "", None
  if distributed.is_first():
    try:
      mine = hub.pin(source, field)
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
