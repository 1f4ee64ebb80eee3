"""All proofs of learning in one table.

  python -m tests.proofs.table [MODULE ...]

prints, for every method and law, its optimum, how far the run ended from it,
the tolerance, how far the control that must miss is, and its floor, and
seconds; see rows.py for the columns, and each module for what its rows claim.
MODULE takes some of the modules only. It fails (exit code 1) where a row does.
"""

from __future__ import annotations

import sys
import time

from tests.proofs import (
  ensembles,
  fixed_points,
  iterated_online,
  kl_laws,
  modular_addition,
  objectives,
  planted_judge,
  preference_optima,
  reward_recovery,
  selection,
  token_rewards,
  transformer_optima,
)
from tests.proofs.rows import show

MODULES = {
  module.__name__.rpartition(".")[2]: module
  for module in (
    fixed_points,
    kl_laws,
    reward_recovery,
    planted_judge,
    ensembles,
    preference_optima,
    selection,
    token_rewards,
    iterated_online,
    transformer_optima,
    objectives,
    modular_addition,
  )
}


def main(names: list[str]) -> int:
  """Prints the rows of the named modules, all without names."""
  unknown = [name for name in names if name not in MODULES]
  if unknown:
    print(f"{unknown[0]!r} is no proof. Choose from {', '.join(MODULES)}.")
    return 2
  since, code = time.perf_counter(), 0
  for number, name in enumerate(names if names else MODULES):
    print(f"{'' if number == 0 else chr(10)}{name}")
    code |= show(MODULES[name].rows())
  print(f"\n{time.perf_counter() - since:.0f} s")
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
