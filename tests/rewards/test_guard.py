"""rewards/guard.py: what a judge raises on an answer is a 0, counted."""

import numpy as np
import pytest

from rlhf_jax.rewards import functions, guard, rows, texts
from rlhf_jax.schema import UserError
from tests.rewards.test_texts import FOUND, SAMPLES, Letters

TEXTS = ["a", "bb", "ccc", "bb", "dddd"]


def guarded(function, logged=()):
  return guard.Guard(functions.bind(function, {}, "f"), logged)


def judge(function, count=5):
  answers = rows.Answers(TEXTS[:count], [None] * count)
  return guarded(function)(answers)


def test_the_answers_that_raise_score_zero_and_are_shown_once(capsys):
  def score(texts):
    return [6.0 / (len(text) - 2) for text in texts]

  scores, logged = judge(score)
  assert scores.tolist() == [-6.0, 0.0, 6.0, 0.0, 3.0]
  assert scores.dtype == np.float32
  assert logged["raised"].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
  shown = capsys.readouterr().out
  assert shown.count("ZeroDivisionError: float division by zero") == 1
  assert "an answer, which scores 0: 'bb'" in shown
  assert "return [6.0 / (len(text) - 2) for text in texts]" in shown


@pytest.mark.parametrize(
  "wrong", [None, float("nan"), "1", [1.0], 1e39, SystemExit, RecursionError]
)
def test_no_result_and_no_error_stops(wrong):
  def score(texts):
    if "bb" in texts and isinstance(wrong, type):
      raise wrong
    return [wrong if text == "bb" else 1.0 for text in texts]

  scores, logged = judge(score)
  assert scores.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
  assert logged["raised"].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


class Odd(Exception):
  def __str__(self):
    raise SystemExit


@pytest.mark.parametrize("error", [Odd(), ValueError("\ud800"), SystemExit(0)])
def test_an_error_that_cannot_be_shown_does_not_stop(error):
  def score(texts, **_):
    raise error

  judge = functions.Bound(score, frozenset(), frozenset())
  answers = rows.Answers(["\ud801", "b"], [None] * 2)
  scores, logged = guard.Guard(judge, ())(answers)
  assert scores.tolist() == [0.0, 0.0] and logged["raised"].all()


def test_what_raises_on_a_batch_only_is_shown_and_scores(capsys):
  def score(texts):
    if len(texts) > 2:
      raise MemoryError("too many")
    return [float(len(text)) for text in texts]

  scores, logged = judge(score)
  assert scores.tolist() == [1.0, 2.0, 3.0, 2.0, 4.0]
  assert not logged["raised"].any()
  assert "a batch of 3, not on its halves" in capsys.readouterr().out


def test_the_keyboard_still_interrupts():
  def score(texts):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    judge(score)


def test_what_is_logged_goes_with_its_answers():
  def score(texts):
    lengths = [1 // (len(text) != 2) * len(text) for text in texts]
    return lengths, {"length": lengths}

  answers = rows.Answers(TEXTS, [None] * 5)
  _, logged = guarded(score, ("length",))(answers)
  assert logged["length"].tolist() == [1.0, 0.0, 3.0, 0.0, 4.0]


def run(function):
  """Returns a Judge of a function that is right about empty answers."""
  bound = functions.bind(function, {}, "verifier", "my.py:score")
  return texts.judge_of(bound, FOUND, Letters())


def test_a_judge_that_raises_on_every_first_answer_is_refused():
  def score(texts):
    return [0.0 if text == "" else text.score for text in texts]

  samples = SAMPLES.replace(
    response_mask=SAMPLES.valid_mask - SAMPLES.valid_mask * 0
  )
  assert "" not in [text for _, text in texts.sample_texts(Letters(), samples)]
  with pytest.raises(UserError) as caught:
    run(score)(samples, np.array([1, 0]))
  assert str(caught.value).startswith(
    "the verifier raises on each of the first 4 answers: verifier="
    "'my.py:score': raised AttributeError: 'str' object has no attribute "
  )


def test_later_batches_may_raise_on_every_answer():
  calls = []

  def score(texts):
    calls.append(1)
    if len(calls) > 2:
      raise OSError("the network is gone")
    return [1.0] * len(texts)

  verifier = run(score)
  assert verifier(SAMPLES, np.array([1, 0]))[0].tolist() == [1.0] * 4
  scores, logged = verifier(SAMPLES, np.array([1, 0]))
  assert scores.tolist() == [0.0] * 4
  assert logged["component/raised"].tolist() == [1.0] * 4


def test_its_name_is_taken():
  def score(texts):
    return [0.0] * len(texts), {"raised": [0.0] * len(texts)}

  with pytest.raises(UserError, match="logs 'raised', which counts"):
    run(score)
