"""METHODS A1, A12, A15: preference methods reach their own optimum, or miss.

The table of all methods and three seeds is
`python -m tests.proofs.preference_optima`; here a part of it.
"""

import numpy as np
import pytest

from tests.proofs import preference_data as data
from tests.proofs import preference_optima as proof
from tests.proofs import preference_targets as targets

CASES = {case.name: case for case in proof.cases()}
FAST = ("dpo",)


@pytest.mark.parametrize("name", FAST)
def test_a1_each_method_reaches_its_own_optimum(name):
  row = proof.case_row(name, (0,))
  assert row.holds, row


@pytest.mark.slow
def test_the_whole_table_holds():
  for row in proof.rows():
    assert row.holds, row


@pytest.mark.slow
def test_a1_the_error_falls_as_one_over_the_comparisons():
  means = [
    np.mean(proof.errors(CASES["dpo"], range(16), count))
    for count in (5_000, 50_000, 500_000)
  ]
  for more, less in zip(means[:-1], means[1:], strict=True):
    assert 4.0 < more / less < 15.0


def test_a1_targets_are_stationary():
  """IPO's and KTO's forms in closed form zero the gradient of their losses."""
  bandit = data.make_bandit(0)
  log_p = targets.ipo(bandit, 0.3)
  h = data.differences(log_p - bandit.reference)
  goal = (2.0 * bandit.wins - 1.0) / (2.0 * 0.3)
  np.testing.assert_allclose(np.sum(h - goal, axis=1), 0.0, atol=1e-9)

  shown, liked = np.exp(bandit.reference), data.sigmoid(bandit.reward)
  log_p = targets.kto(shown, liked, bandit.reference, 0.5)
  p, is_kept = np.exp(log_p), np.isfinite(log_p)
  u = np.where(is_kept, log_p - bandit.reference, -1e3)
  slope = 0.5 * data.sigmoid(0.5 * u) * data.sigmoid(-0.5 * u)
  pull = shown * (2.0 * liked - 1.0) * slope
  np.testing.assert_allclose(pull, p * pull.sum(), atol=1e-9)
  np.testing.assert_array_equal(is_kept, liked > 0.5)
