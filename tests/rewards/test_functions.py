"""Reward functions: what they are given, and what they must give back."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.rewards import functions
from rlhf_jax.rewards.rows import Answers

ANSWERS = Answers(
  texts=["a", "bb", "ccc"],
  references=[1, None, "x"],
  prompts=["p", "p", "q"],
  records=[{"n": 1}, {"n": 1}, {"n": 2}],
  token_ids=[[5, 0], [6, 7, 0], [8, 9]],
  has_ended=[True, True, False],
)


def everything(
  texts, references, prompts, records, token_ids, has_ended, answers
):
  scores = []
  for row in zip(
    texts, references, prompts, records, token_ids, has_ended, strict=True
  ):
    text, reference, prompt, record, ids, ended = row
    score = 100 * len(text) + 10 * record["n"] + (prompt == "q")
    scores.append(
      score + 1000 * sum(ids) + 0.5 * ended + 0.25 * (reference == 1)
    )
  assert answers is ANSWERS
  return scores


def test_each_parameter_receives_its_field():
  bound = functions.bind(everything, {}, "f")
  scores, logged = bound(ANSWERS)
  assert scores.tolist() == [5110.75, 13210.5, 17321.0]
  assert scores.dtype == np.float32 and logged == {}
  assert bound.needs == bound.takes == frozenset(functions.FILLED)


def test_settings_set_the_other_parameters():
  def score(texts, *, power=1.0, records=None, scale):
    assert records is not None
    return [scale * len(text) ** power for text in texts]

  bound = functions.bind(score, {"scale": 2.0, "power": 2.0}, "f")
  assert bound(ANSWERS)[0].tolist() == [2.0, 8.0, 18.0]
  assert functions.bind(score, {"scale": 2.0}, "f")(ANSWERS)[0].tolist() == [
    2.0,
    4.0,
    6.0,
  ]
  assert bound.takes == {"texts", "records"} and bound.needs == {"texts"}


def test_the_whole_brings_everything():
  bound = functions.bind(lambda answers: [1] * len(answers), {}, "f")
  assert bound.needs == {"answers"}
  assert bound.takes == frozenset(functions.FILLED)
  assert bound(ANSWERS)[0].tolist() == [1.0, 1.0, 1.0]


def test_what_was_not_given_is_asked_for_or_stays_the_default():
  bare = Answers(["a"], [None])
  bound = functions.bind(lambda texts, records=None: [records is None], {}, "f")
  assert bound(bare)[0].tolist() == [1.0]
  assert bound(ANSWERS.take([1]))[0].tolist() == [0.0]
  bound = functions.bind(lambda records: [0.0], {}, "f", "my.py:score")
  with pytest.raises(ValueError) as caught:
    bound(bare)
  assert str(caught.value) == (
    "f='my.py:score': reads records, and these answers came without. Give "
    "records to rows.Answers."
  )


def test_what_a_function_changes_stays_its_own():
  def score(texts, records):
    texts.sort(reverse=True)
    records.clear()
    return [float(len(text)) for text in texts]

  bound = functions.bind(score, {}, "f")
  assert bound(ANSWERS)[0].tolist() == [3.0, 2.0, 1.0]
  assert bound(ANSWERS)[0].tolist() == [3.0, 2.0, 1.0]
  assert ANSWERS.texts == ["a", "bb", "ccc"] and len(ANSWERS.records) == 3


@pytest.mark.parametrize(
  "values",
  [
    [1, 0.5, True],
    (1.0, 0.5, np.True_),
    np.array([1.0, 0.5, 1.0]),
    jnp.array([1.0, 0.5, 1.0], jnp.bfloat16),
    [jnp.float32(1.0), np.float16(0.5), np.array(1)],
  ],
)
def test_numbers_of_every_kind(values):
  scores, _ = functions.bind(lambda texts: values, {}, "f")(ANSWERS)
  assert scores.tolist() == [1.0, 0.5, 1.0] and scores.dtype == np.float32


def test_truth_values_and_pairs():
  is_short = np.array([True, False, False])
  found = functions.bind(
    lambda texts: (is_short, {"length": [len(t) for t in texts]}), {}, "f"
  )(ANSWERS)
  assert found[0].tolist() == [1.0, 0.0, 0.0]
  assert found[1]["length"].tolist() == [1.0, 2.0, 3.0]
  assert found[1]["length"].dtype == np.float32
  two = ANSWERS.take([0, 2])
  assert functions.bind(lambda texts: (1.0, 2.0), {}, "f")(two)[0].tolist() == [
    1.0,
    2.0,
  ]


REMEDY = "Return a list or array of 3 numbers, one for each answer."


@pytest.mark.parametrize(
  "found, message",
  [
    (None, f"its scores are a NoneType. {REMEDY}"),
    (1.0, f"its scores are a float. {REMEDY}"),
    ("123", f"its scores are a str. {REMEDY}"),
    ({1: 1, 2: 2, 3: 3}, f"its scores are a dict. {REMEDY}"),
    (np.float32(1.0), f"its scores have the shape (). {REMEDY}"),
    (np.zeros((3, 1)), f"its scores have the shape (3, 1). {REMEDY}"),
    ([1.0, 2.0], f"its scores: 2 for 3 answers. {REMEDY}"),
    (
      [1.0, None, 2.0],
      "its scores: row 1 is None for the answer 'bb', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      [0, 1, "3"],
      "its scores: row 2 is '3' for the answer 'ccc', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      [0, [1], 2],
      "its scores: row 1 is [1] for the answer 'bb', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      [0.0, 1.0, float("nan")],
      "its scores: row 2 is nan for the answer 'ccc', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      [1e39, 0, 0],
      "its scores: row 0 is 1e+39 for the answer 'a', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      [1j, 0, 0],
      "its scores: row 0 is 1j for the answer 'a', not a finite number "
      f"(float32). {REMEDY}",
    ),
    (
      ([0, 0, 0], {"part": [0, 0]}),
      f"its 'part' to log: 2 for 3 answers. {REMEDY}",
    ),
    (
      ([0, 0, 0], {"part": [0, None, 0]}),
      "its 'part' to log: row 1 is None for the answer 'bb', not a finite "
      f"number (float32). {REMEDY}",
    ),
    (
      ([0, 0, 0], {3: [0, 0, 0]}),
      "logs values under 3, a int. Name them by a text.",
    ),
  ],
)
def test_a_wrong_result_is_refused_with_its_row(found, message):
  bound = functions.bind(lambda texts: found, {}, "verifier", "my.py:score")
  with pytest.raises(ValueError) as caught:
    bound(ANSWERS)
  assert str(caught.value) == f"verifier='my.py:score': {message}"


def never(texts, length=3):
  raise AssertionError("called")


def full(marks):
  def score(texts):
    raise AssertionError("called")

  score.full_marks = marks
  return score


@pytest.mark.parametrize(
  "function, settings, message",
  [
    (3, {}, "is a int, not a function. Name a function whose parameters"),
    (
      lambda text: 0,
      {},
      "nothing fills its parameter 'text'. Did you mean 'texts'? Name it one "
      "of texts, references, prompts, records, token_ids, has_ended, answers, "
      "or give it a default.",
    ),
    (lambda texts, **more: 0, {}, "takes **more, and arguments are filled"),
    (
      lambda weight=1.0: 0,
      {},
      "reads nothing of an answer. Give it parameters among texts, ",
    ),
    (
      never,
      {"lenght": 3},
      "'lenght' is no setting. Did you mean 'length'? It has length.",
    ),
    (lambda texts: 0, {"a": 1}, "'a' is no setting. It has none."),
    (
      never,
      {"texts": []},
      "settings has 'texts', which the answers fill. Rename the parameter, or "
      "remove the setting.",
    ),
    (
      full(float("inf")),
      {},
      "full_marks=inf is no finite number. Set it to the score",
    ),
    (full("1"), {}, "full_marks='1' is no finite number."),
  ],
)
def test_a_wrong_function_is_refused_before_it_is_called(
  function, settings, message
):
  with pytest.raises(ValueError) as caught:
    functions.bind(function, settings, "verifier", "my.py:score")
  assert str(caught.value).startswith(f"verifier='my.py:score': {message}")


def test_full_marks_are_an_attribute():
  assert functions.bind(full(2), {}, "f").full_marks == 2.0
  assert functions.bind(full(0.0), {}, "f").full_marks == 0.0
  assert functions.bind(never, {}, "f").full_marks is None


def broken(texts):
  return [1 / (len(text) - 2) for text in texts]


def test_what_a_function_raises_names_it_and_its_line():
  bound = functions.bind(broken, {}, "verifier", "my.py:score")
  line = broken.__code__.co_firstlineno + 1
  with pytest.raises(ValueError) as caught:
    bound(ANSWERS)
  assert str(caught.value) == (
    "verifier='my.py:score': raised ZeroDivisionError: division by zero "
    f"({__file__}:{line}) on a batch of 3. Correct it: every answer gets a "
    "number, an empty one too."
  )
  assert isinstance(caught.value.__cause__, ZeroDivisionError)
  bare = functions.bind(broken, {}, "f", wraps_errors=False)
  with pytest.raises(ZeroDivisionError):
    bare(ANSWERS)


def test_a_function_is_named_by_itself_where_no_path_named_it():
  with pytest.raises(ValueError, match="f='broken': raised"):
    functions.bind(broken, {}, "f")(ANSWERS)
  with pytest.raises(ValueError, match="f='partial': 'x' is no setting"):
    functions.bind(functools.partial(broken), {"x": 1}, "f")


def test_no_answers_give_no_scores():
  scores, _ = functions.bind(broken, {}, "f")(ANSWERS.take([]))
  assert scores.shape == (0,) and scores.dtype == np.float32
