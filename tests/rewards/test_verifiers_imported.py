"""Verifiers of a user's own, reached by their import path."""

import numpy as np
import pytest

from rlhf_jax.rewards import rows, verifiers

MINE = """
def echo(texts, prompts, records, token_ids, has_ended, bonus=0.5):
  scores = [
    (record["word"] in text) + bonus * (len(ids) - prompt.count("a")) * ended
    for text, prompt, record, ids, ended
    in zip(texts, prompts, records, token_ids, has_ended)
  ]
  return scores, {"tokens": [len(ids) for ids in token_ids]}

def exact(texts, references):
  return [float(text == want) for text, want in zip(texts, references)]
exact.full_marks = 2.0

def typo(text):
  raise AssertionError("called")

def short(texts):
  return [1.0]

"""
ANSWERS = rows.Answers(
  texts=["cat", "dog", "a cat"],
  references=["cat", "cat", {"t": "a cat"}],
  prompts=["a", "", "aa"],
  records=[{"word": "cat"}, {"word": "cat"}, {"word": "cat"}],
  token_ids=[[4, 9], [5], [4, 4, 4, 9]],
  has_ended=[True, False, True],
)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "folder" / "mine.py"
  path.parent.mkdir()
  path.write_text(MINE)
  return path


def test_it_sees_prompts_records_and_tokens():
  judge = verifiers.bind_parts("folder/mine.py:echo")
  scores, logged = judge(ANSWERS)
  assert scores.tolist() == [1.5, 0.0, 2.0]
  assert {name: list(v) for name, v in logged.items()} == {"tokens": [2, 1, 4]}
  assert judge.needs == {
    "texts",
    "prompts",
    "records",
    "token_ids",
    "has_ended",
  }
  assert judge.full_marks is None
  judge = verifiers.bind_parts("folder/mine.py:echo", bonus=0.0)
  assert judge(ANSWERS)[0].tolist() == [1.0, 0.0, 1.0]


def test_texts_and_references_are_enough_for_some():
  score = verifiers.bind("folder/mine.py:exact")
  assert score(["a", "b"], ["a", "a"]).tolist() == [1.0, 0.0]
  with pytest.raises(ValueError, match="mine.py:echo': reads prompts, and"):
    verifiers.bind("folder/mine.py:echo")(["a"], ["a"])


def test_a_part_of_a_sum():
  parts = (
    {"verifier": "exact", "weight": 1.0},
    {
      "verifier": "folder/mine.py:echo",
      "weight": 2.0,
      "settings": {"bonus": 1},
    },
    {"verifier": "folder/mine.py:exact", "weight": 0.5},
  )
  judge = verifiers.bind_parts("sum", parts=parts)
  answers = ANSWERS.take([0, 1])
  scores, logged = judge(answers)
  assert scores.tolist() == [1.0 + 2.0 * 2.0 + 0.5, 0.0]
  assert {name: values.tolist() for name, values in logged.items()} == {
    "exact": [1.0, 0.0],
    "echo": [2.0, 0.0],
    "echo_tokens": [2.0, 1.0],
    "exact_2": [1.0, 0.0],
  }
  assert judge.needs >= {"references", "records", "prompts"}
  assert judge.full_marks is None
  known = verifiers.bind_parts("sum", parts=(parts[0], parts[2]))
  assert known.full_marks == 1.0 + 0.5 * 2.0
  assert known.needs == {"texts", "references"}
  only_reported = parts[0], {**parts[1], "weight": 0.0}
  assert verifiers.bind_parts("sum", parts=only_reported).full_marks == 1.0


def test_a_sum_without_references_needs_none():
  part = {"verifier": "folder/mine.py:echo", "weight": 1.0}
  assert "references" not in verifiers.bind_parts("sum", parts=(part,)).needs
  routed = verifiers.bind_parts("sum", parts=({**part, "reference": "t"},))
  assert "references" in routed.needs
  with pytest.raises(ValueError, match=r"references\[0\].*no field 't'"):
    routed(ANSWERS)


def test_two_values_of_one_name_are_refused(mine):
  mine.write_text(
    MINE + "\ndef echo_tokens(texts):\n  return [0.0 for _ in texts]\n"
  )
  parts = (
    {"verifier": "folder/mine.py:echo_tokens", "weight": 1.0},
    {"verifier": "folder/mine.py:echo", "weight": 1.0},
  )
  with pytest.raises(ValueError, match="named 'echo_tokens'. Rename the func"):
    verifiers.bind_parts("sum", parts=parts)(ANSWERS)


def test_a_file_that_changes_during_a_run_changes_nothing(mine):
  parts = ({"verifier": "folder/mine.py:exact", "weight": 1.0},)
  judge = verifiers.bind_parts("sum", parts=parts)
  mine.write_text("1 / 0")
  assert judge(ANSWERS)[0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
  "name, settings, message",
  [
    ("folder/mine.py:ech", {}, "has no 'ech'. Did you mean 'echo'?"),
    ("folder/mien.py:echo", {}, "no such file. Did you mean 'mine.py'?"),
    ("no_such_module_of_mine:f", {}, "no module 'no_such_module_of_mine'"),
    ("folder/mine.py:typo", {}, "nothing fills its parameter 'text'. Did you"),
    ("folder/mine.py:echo", {"bonnus": 1}, "'bonnus' is no setting. Did you"),
    ("folder/mine.py", {}, "is a module, not a function."),
  ],
)
def test_mistakes_are_refused_before_anything_is_judged(
  name, settings, message
):
  with pytest.raises(ValueError) as caught:
    verifiers.bind_parts(name, **settings)
  assert str(caught.value).startswith(f"verifier={name!r}: ")
  assert message in str(caught.value)
  part = {"verifier": name, "weight": 1.0, "settings": settings}
  with pytest.raises(ValueError) as again:
    verifiers.bind_parts("sum", parts=(part,))
  assert str(again.value) == str(caught.value)


def test_a_wrong_result_is_refused():
  with pytest.raises(ValueError, match="mine.py:short': its scores: 1 for 3"):
    verifiers.bind_parts("folder/mine.py:short")(ANSWERS)


def test_a_setting_may_be_called_name(mine):
  mine.write_text("def f(texts, name=1):\n  return [name for _ in texts]")
  judge = verifiers.bind_parts("folder/mine.py:f", name=3)
  np.testing.assert_array_equal(judge(ANSWERS)[0], [3.0, 3.0, 3.0])


def test_scores_are_called_by_the_functions_own_name():
  names = ["number", "a/b.py:f", "a.b:g"]
  assert [verifiers.label(name) for name in names] == ["number", "f", "g"]
