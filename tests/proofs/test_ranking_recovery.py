"""METHODS A5: rankings against pairs at equal labels; scores and grades.

`python -m tests.proofs.ranking_recovery` prints the table.
"""

import pytest

from tests.proofs import ranking_recovery as proof


@pytest.mark.slow
def test_a5_rankings_beat_pairs_at_as_many_judged_answers():
  row = proof.answers_row()
  assert row.holds, row


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["regression", "ordinal"])
def test_a5_scores_give_the_planted_direction(objective):
  row = proof.scores_row(objective, seeds=4)
  assert row.holds, row
