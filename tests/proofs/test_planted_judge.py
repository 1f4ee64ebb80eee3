"""METHODS A13: a judge's faults, planted, measured and averaged away.

`python -m tests.proofs.planted_judge` prints the table.
"""

from tests.proofs import planted_judge as proof


def test_a13_labels_of_both_orders_are_as_good_as_gold():
  for row in proof.rows():
    assert row.holds, row
