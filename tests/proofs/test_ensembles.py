"""METHODS A3: ensembles keep gold where one reward model loses it.

`python -m tests.proofs.ensembles` prints the table.
"""

import pytest

from tests.proofs import ensembles as proof


@pytest.mark.slow
def test_a3_worst_case_and_uncertainty_weights_hold_on_to_gold():
  """On a third of the seeds: all ends are above that of one model."""
  single = proof.curves(("single",), 16)["single"]
  found = proof.curves(("mean", "uwo", "min"), 16)
  assert (single.peak - single.end).mean() > 1.0
  for curve in found.values():
    assert (curve.end - single.end).mean() > 0.3
    assert curve.peak.mean() > 0.95 * single.peak.mean()
