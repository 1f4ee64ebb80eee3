"""The preference methods by name, and what a module must be to be one.

A method is a module with

  Config     frozen dataclass, every field with a default
  loss(logprobs [B, K, L], batch, config) -> losses [B], metrics

and, where it needs them,

  REFERENCE_FREE = True    it compares with no reference policy (simpo.py)
  UNPAIRED = True          single answers, each with a mismatched one (kto.py)
  baseline(logprobs, batch) -> [B] of the mismatched answers, whose mean over
                           the batch it compares with; UNPAIRED then
  check_labels(labels)     raises ValueError for labels it cannot express

A new one of this package is one file and one line here; one of a user's own is
any module that `check_method` lets through.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from rlhf_jax.algorithms import signatures
from rlhf_jax.algorithms.preference import (
  cpo,
  dpo,
  ipo,
  kto,
  orpo,
  simpo,
  spin,
)

ALGORITHMS: dict[str, ModuleType] = {
  "dpo": dpo,
  "ipo": ipo,
  "kto": kto,
  "orpo": orpo,
  "simpo": simpo,
  "cpo": cpo,
  "spin": spin,
}


def is_reference_free(module: Any) -> bool:
  """Returns whether a method reads no reference_logprobs."""
  return getattr(module, "REFERENCE_FREE", False)


def is_unpaired(module: Any) -> bool:
  """Returns whether a method reads single answers, not pairs."""
  return getattr(module, "UNPAIRED", False)


def check_method(module: Any) -> None:
  """Raises ValueError unless a module is a method (module docstring)."""
  functions = {"loss": ("logprobs", "batch", "config")}
  signatures.check_module(module, functions, "dpo.py is the shortest example.")
  signatures.check_claims(module, ("REFERENCE_FREE", "UNPAIRED"))
  optional = {"baseline": ("logprobs", "batch"), "check_labels": ("labels",)}
  for name, arguments in optional.items():
    if hasattr(module, name):
      signatures.check_call(getattr(module, name), name, arguments)
  if hasattr(module, "baseline") and not is_unpaired(module):
    raise ValueError(
      f"method {signatures.name_of(module)}: baseline is there and UNPAIRED is "
      "not; a baseline is made of mismatched answers, which only unpaired data "
      "have. Set UNPAIRED = True, or leave baseline out."
    )


def check_labels(method: str | Any, labels: np.ndarray) -> None:
  """Raises ValueError for labels [P] that a method cannot express.

  Args:
    method: its module, or its name in ALGORITHMS.
    labels: [P].
  """
  module = ALGORITHMS[method] if isinstance(method, str) else method
  check = getattr(module, "check_labels", None)
  if check is not None:
    check(labels)
