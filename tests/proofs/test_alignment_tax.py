"""METHODS A10: RL on one skill costs another; what pays it back.

`python -m tests.proofs.alignment_tax` runs more coefficients and three seeds.
"""

import pytest

from tests.proofs import alignment_tax as proof


@pytest.mark.slow
def test_a10_the_tax_is_paid_back():
  for row in proof.rows(seeds=1, betas=(0.0, 0.1)):
    assert row.holds, row
