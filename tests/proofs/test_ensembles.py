"""METHODS A3: ensembles keep gold where one reward model loses it.

`python -m tests.proofs.ensembles` prints the table.
"""

import pytest

from tests.proofs import ensembles as proof


@pytest.mark.slow
def test_a3_worst_case_and_uncertainty_weights_hold_on_to_gold():
  """Six seeds: what min and UWO gain is many times the error."""
  single = proof.curves(("single",), 6)["single"]
  low = proof.curves(("min",), 6)["min"]
  assert (single.peak - single.end).mean() > 5.0
  assert (low.end - single.end).mean() > 3.0
  assert low.peak.mean() > 0.95 * single.peak.mean()
