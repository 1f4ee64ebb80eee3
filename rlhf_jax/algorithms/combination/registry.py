"""The combinations of several judges by name, and what a module must be.

A combination is a module with

  Config                       frozen dataclass, every field with a default
  check(judges, config)        raises ValueError for judges it cannot combine
  init(judges, config)         -> state: arrays that a checkpoint keeps
  observe(state, found, counts, judges, config) -> state with a batch seen
  combine(found, state, judges, config)  -> [N] scores
  details(found, state, judges, config)  -> {name: [N]} to log

and, where its state moves once a rollout,

  update(state, found, counts, judges, config) -> state, metrics

`found` is types.Components after components.conditioned, `judges` a tuple of
components.Judge. A new one is one file and one line here, or an import path in
an experiment.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from rlhf_jax.algorithms import signatures
from rlhf_jax.algorithms.combination import (
  lagrangian,
  safety_switch,
  weighted_sum,
)

COMBINATIONS: dict[str, ModuleType] = {
  "sum": weighted_sum,
  "switch": safety_switch,
  "lagrangian": lagrangian,
}
_SEEN = ("state", "found", "counts", "judges", "config")
_READ = ("found", "state", "judges", "config")
FUNCTIONS = {
  "check": ("judges", "config"),
  "init": ("judges", "config"),
  "observe": _SEEN,
  "combine": _READ,
  "details": _READ,
}


def check_module(module: Any) -> None:
  """Raises ValueError unless a module is a combination."""
  signatures.check_module(
    module, FUNCTIONS, "weighted_sum.py is the shortest example."
  )
  if moves(module):
    signatures.check_call(module.update, "update", _SEEN)


def moves(module: Any) -> bool:
  """Returns whether the state of a combination moves once a rollout."""
  return hasattr(module, "update")
