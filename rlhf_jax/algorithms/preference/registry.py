"""The preference methods by name, and what each needs from a pipeline.

A method is a module with a frozen Config and

  loss(logprobs [B, K, L], batch, config) -> losses [B], metrics

and, where labels can be wrong for it, check_labels(labels). One that compares
with a mean over the batch has `baseline` too (kto.py). A new one is one file
and one line here.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

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
REFERENCE_FREE = frozenset({"orpo", "simpo", "cpo"})
UNPAIRED = frozenset({"kto"})  # single answers, each with a mismatched one


def check_labels(name: str, labels: np.ndarray) -> None:
  """Raises ValueError for labels [P] that a method cannot express."""
  check = getattr(ALGORITHMS[name], "check_labels", None)
  if check is not None:
    check(labels)
