"""METHODS 3.5, 13, A2a, A6, A9: the KL controller, and score against KL.

`python -m tests.proofs.kl_laws` prints the whole table.
"""

import pytest

from tests.proofs import kl_laws as proof


def test_t13_exact_tilts_gain_the_root_of_twice_their_kl():
  row = proof.tilt_row()
  assert row.holds, row


@pytest.mark.slow
def test_the_whole_table_holds():
  for row in proof.rows():
    assert row.holds, row
