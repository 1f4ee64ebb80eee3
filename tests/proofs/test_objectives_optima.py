"""Several objectives settle at the optimum of their problem.

`python -m tests.proofs.objectives` prints the table.
"""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.algorithms.combination import lagrangian
from tests.proofs import objectives

CASES = {case.name: case for case in objectives.cases()}


def test_the_constraint_binds_where_it_says():
  """lambda* > 0 with E c = d exactly, and 0 where E c < d without it."""
  for name, case in CASES.items():
    if case.module is not lagrangian:
      continue
    for seed in (0, 1, 2):
      reward, cost, log_ref = objectives.problem(seed)
      log_p, force = objectives.optimum(case, reward, cost, log_ref)
      mean = float(np.sum(np.exp(log_p) * cost))
      if "not" in name:
        assert force == 0.0 and mean < case.config.limit
      else:
        assert force > 0.3 and abs(mean - case.config.limit) < 1e-6


def test_a_bound_constraint_settles_at_its_known_optimum():
  """One short run of a seed, with its control."""
  case = CASES["constraint that binds"]
  found = objectives.measure(case, (0,), steps=400)
  assert found.is_good, found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_whole_table_holds(name):
  found = objectives.measure(CASES[name], (0, 1, 2))
  assert found.is_good, found


@pytest.mark.parametrize(
  "change",
  [{"distance": 6e-3}, {"control": 0.09}, {"force": 0.2}, {"excess": 0.03}],
)
def test_the_check_can_fail(change):
  good = objectives.Result(1e-3, 1.0, 0.01, 0.0, 1.0, 0.0)
  assert good.is_good
  assert not dataclasses.replace(good, **change).is_good
