"""METHODS 7, A12: best of n, BOND, J-BOND and RAFT against enumeration.

`python -m tests.proofs.selection` prints the whole table.
"""

import pytest

from tests.proofs import selection as proof


@pytest.mark.slow
def test_a12_bond_reaches_best_of_four():
  row = proof.bond_row("exact", 0.03, (0,))
  assert row.holds, row


def test_t12_the_kl_of_best_of_n_is_as_enumerated():
  for row in proof.kl_rows():
    assert row.holds, row


@pytest.mark.slow
def test_the_whole_table_holds():
  for row in proof.rows():
    assert row.holds, row
