"""METHODS A11: a verifier alone takes the policy from 30 % to over 90 %.

`python -m tests.proofs.modular_addition` runs RLOO too.
"""

import pytest

from tests.proofs import modular_addition as proof


@pytest.mark.slow
def test_a11_grpo_learns_what_the_verifier_says():
  for row in proof.rows(names=("grpo",)):
    assert row.holds, row
