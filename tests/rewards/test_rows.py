"""Rows of answers: all columns of one length, and their order."""

import pytest

from rlhf_jax.rewards.rows import Answers


def test_take_keeps_each_row_together():
  answers = Answers(
    texts=["a", "b", "c"],
    references=[1, None, 3],
    prompts=["p", "p", "q"],
    records=[{"n": 1}, {"n": 2}, {"n": 3}],
    token_ids=[[1], [2], [3, 0]],
    has_ended=[False, False, True],
  )
  assert len(answers) == 3
  assert answers.take([2, 0]) == Answers(
    ["c", "a"],
    [3, 1],
    ["q", "p"],
    [{"n": 3}, {"n": 1}],
    [[3, 0], [1]],
    [True, False],
  )
  assert answers.take(range(3)) == answers
  assert answers.take([]) == Answers([], [], [], [], [], [])


def test_what_was_not_given_stays_so():
  answers = Answers(["a", "b"], [1, 2], has_ended=[True, False])
  assert answers.take([1]) == Answers(["b"], [2], has_ended=[False])
  assert answers.take([1]).prompts is None


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"references": []}, "2 texts, 0 references: each response is judged"),
    ({"texts": "ab"}, "Pass lists of equal length"),
    ({"texts": ["a", 3]}, r"texts\[1\] is a int: a verifier reads decoded"),
    ({"prompts": ["p"]}, "2 texts, 1 prompts: each answer has its own"),
    ({"token_ids": [[1]] * 3}, "2 texts, 3 token_ids: each answer has its own"),
    ({"has_ended": []}, "2 texts, 0 has_ended: each answer has its own"),
  ],
)
def test_columns_of_other_lengths_are_refused(columns, message):
  with pytest.raises(ValueError, match=message):
    Answers(**({"texts": ["a", "b"], "references": [1, 2]} | columns))
