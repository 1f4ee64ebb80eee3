"""METHODS A14: rounds of labels on new answers beat as many at once.

`python -m tests.proofs.iterated_online` prints the whole.
"""

import pytest

from tests.proofs import iterated_online as proof


@pytest.mark.slow
def test_a14_rounds_win_at_equal_kl_and_rounds_of_the_reference_do_not():
  won, gain = proof.wins("policy", seeds=2, draws=4)
  missed, _ = proof.wins("reference", seeds=2, draws=4)
  assert won == 2 and gain[-1] > 0.5
  assert missed == 0
