"""METHODS A5, A15: the planted reward is found, up to the noise of labels.

`python -m tests.proofs.reward_recovery` prints the table.
"""

import pytest

from tests.proofs import reward_recovery as proof


@pytest.mark.slow
def test_a5_accuracy_reaches_the_ceiling_of_the_labels():
  row = proof.accuracy_row()
  assert row.holds, row


@pytest.mark.slow
def test_the_whole_table_holds():
  for row in proof.rows():
    assert row.holds, row
