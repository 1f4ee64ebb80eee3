"""A judge of planted faults: labels, counts, and nothing paid for twice."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.rewards.ai import questions
from rlhf_jax.rewards.ai.judging import FIRST, Judge, Judging, Pair
from rlhf_jax.rewards.ai.reply_cache import Cache
from rlhf_jax.rewards.ai.voices import FAILED, FORM, LONG, Reply, Saying
from rlhf_jax.schema import FieldError, UserError
from tests.fake_judge import Planted

PAIRS = [
  Pair("q", ("3", "1"), ("rule",)),
  Pair("q", ("1", "2"), ("rule",)),
  Pair("q {first}", ("2", "{second}"), ("rule",)),
]


def quality(text):
  return float(text) if text.isdigit() else 0.0


def judge(voice, path=None, **settings):
  return Judge(voice, Judging(**settings), Cache(path))


class Replies:
  """A voice that gives these replies, one after the other."""

  name, identity = "replies", {}

  def __init__(self, *replies):
    self.replies = list(replies)

  def label_logprobs(self, asked):
    for n in range(len(asked)):
      yield n, self.replies.pop(0)

  say = lambda self, asked, how: self.label_logprobs(asked)  # noqa: E731


def test_both_orders_take_the_position_away():
  found = judge(Planted(quality, position=1.5)).pairs(PAIRS)
  s = np.array([2.0, -1.0, 2.0])
  np.testing.assert_allclose([x.first for x in found], s + 1.5, atol=1e-9)
  np.testing.assert_allclose([x.swapped for x in found], 1.5 - s, atol=1e-9)
  wanted = 1.0 / (1.0 + np.exp(-s))
  np.testing.assert_allclose([x.label for x in found], wanted, atol=1e-9)
  assert [x.votes for x in found] == [("A", "B"), ("A", "A"), ("A", "B")]
  assert found[0].mass == pytest.approx(1.0)


def test_one_order_keeps_it():
  voice = Planted(quality, position=1.5)
  found = judge(voice, orders=FIRST).pairs(PAIRS)
  assert voice.count == 3
  assert [x.label > 0.5 for x in found] == [True, True, True]
  assert found[1].swapped is None and found[1].votes == ("A",)


def test_logits_are_averaged_over_principles():
  class ByPrinciple(Planted):
    def logit(self, text):
      return super().logit(text) * (3.0 if text.startswith("much") else 1.0)

  pair = Pair("q", ("2", "1"), ("little", "much"))
  (found,) = judge(ByPrinciple(quality)).pairs([pair])
  assert found.first == pytest.approx(2.0)
  assert found.label == pytest.approx(1.0 / (1.0 + math.exp(-2.0)))


def test_votes_are_averaged_as_votes():
  up, down = (Reply([0.0, -math.inf]), Reply([-math.inf, 0.0]))
  found = judge(Replies(up, down, up, up)).pairs(PAIRS[:2])
  assert [x.label for x in found] == [1.0, 0.5]
  assert found[0].first is None and found[1].votes == ("A", "A")


def test_what_is_out_of_form_is_counted_and_not_guessed():
  rare = Reply([math.log(0.004), math.log(0.003)])
  fine = Reply([math.log(0.6), math.log(0.3)])
  voice = Replies(fine, rare, Reply(None, LONG), fine, fine, fine)
  found = judge(voice).pairs(PAIRS)
  assert [x.failure for x in found] == [FORM, LONG, ""]
  assert [x.label is None for x in found] == [True, True, False]
  (kept,) = judge(Replies(fine, rare), least_mass=0.0).pairs(PAIRS[:1])
  assert kept.failure == ""


def test_reasons_come_first_and_their_labels_are_cut():
  class Reasoning(Planted):
    def label_logprobs(self, asked):
      for n, question in enumerate(asked):
        shown, reasons, which = (m["content"] for m in question.messages)
        assert shown.endswith(questions.WHY) and which == questions.WHICH
        assert reasons.startswith("1 ")
        z = self.logit(shown.replace(questions.WHY, questions.WHICH))
        yield n, Reply([-math.log1p(math.exp(-z)), -math.log1p(math.exp(z))])

  found = judge(Reasoning(quality), reasoning=True).pairs(PAIRS[:2])
  assert [x.label for x in found] == pytest.approx([0.6, 0.4])
  assert len(found[0].reasons) == 2
  empty = Replies(Reply(""), Reply("b"), Reply([-1.0, -1.0]))
  (failed,) = judge(empty, reasoning=True).pairs(PAIRS[:1])
  assert failed.failure == FORM


def test_scores_are_between_minus_one_and_one():
  top = [-math.inf] * 9 + [0.0]
  even = [math.log(0.1)] * 10
  voice = Replies(Reply(top), Reply(even), Reply(None, FORM))
  found = judge(voice).scores(["q"] * 3, ["a", "b", "c"], ["r"] * 3)
  assert [x.score for x in found] == pytest.approx([1.0, 0.0, None])
  assert found[2].failure == FORM


def test_nothing_is_asked_twice(tmp_path):
  path, voice = tmp_path / "deep" / "cache.jsonl", Planted(quality)
  first = judge(voice, path)
  before = first.pairs([*PAIRS, PAIRS[0]])
  assert voice.count == 6 and first.cost["calls"] == 6
  again = judge(Planted(quality), path)
  assert again.pairs([*PAIRS, PAIRS[0]]) == before
  assert again.voice.count == 0
  assert again.cost == first.cost | {"paid_now": 0}
  other = judge(Planted(quality, position=1.0), path)  # who answers counts
  other.pairs(PAIRS)
  assert other.voice.count == 6


def test_a_kill_in_the_middle_costs_what_was_under_way(tmp_path):
  class Killed(Planted):
    def label_logprobs(self, asked):
      for n, reply in super().label_logprobs(asked):
        if self.count == 5:
          raise KeyboardInterrupt
        yield n, reply

  path = tmp_path / "cache.jsonl"
  with pytest.raises(KeyboardInterrupt):
    judge(Killed(quality), path).pairs(PAIRS)
  with open(path, "ab") as file:  # a torn line
    file.write(b'{"key": "abc", "val')
  voice = Planted(quality)
  judge(voice, path).pairs(PAIRS)
  assert voice.count == 2
  lines = path.read_text().splitlines()
  assert len(lines) == 6 and all(json.loads(line) for line in lines)


def test_a_cache_that_is_none_is_named(tmp_path):
  path = tmp_path / "cache.jsonl"
  path.write_text('{"key": "a", "value": "x"}\n')
  with pytest.raises(UserError, match=r"cache\.jsonl:1: no reply"):
    Cache(path)


def test_what_nobody_answered_is_not_kept(tmp_path):
  path = tmp_path / "cache.jsonl"
  fine = Reply([math.log(0.6), math.log(0.3)])
  first = judge(Replies(fine, Reply(None, FAILED)), path)
  (found,) = first.pairs(PAIRS[:1])
  assert found.failure == FAILED
  (found,) = judge(Replies(fine), path).pairs(PAIRS[:1])
  assert found.failure == ""


def test_texts_and_votes_survive_the_disk(tmp_path):
  path = tmp_path / "cache.jsonl"
  cache = Cache(path)
  kept = {
    "a": Reply("téxt\n", "", 3, 4, False),
    "b": Reply([0.0, -math.inf]),
    "c": Reply(None, LONG),
  }
  for key, reply in kept.items():
    cache.add(key, reply)
  cache.close()
  again = Cache(path)
  assert {key: again[key] for key in kept} == kept and len(again) == 3


def test_texts_are_cached_by_how_they_are_drawn(tmp_path):
  voice = Planted(quality)
  asked = judge(voice, tmp_path / "cache.jsonl")
  talk = [[questions.user("hello")]]
  for how in (Saying(8), Saying(8), Saying(8, seed=1), Saying(9)):
    asked.texts(talk, how)
  assert voice.count == 3


def test_templates_and_principles_are_files(tmp_path):
  path = tmp_path / "pair.txt"
  path.write_text("{principle} | {prompt} | {first} | {second} | {x}")
  text = questions.pair(
    questions.template(str(path), "pairs"), "P", "{first}", ("1", "{prompt}")
  )
  assert text == "P | {first} | 1 | {prompt} | {x}"
  with pytest.raises(FieldError, match="has no {answer}"):
    questions.template(str(path), "scores")
  with pytest.raises(FieldError, match="gone.txt.*Name a text file"):
    questions.template("gone.txt", "pairs")
  assert len(set(questions.principles(questions.OURS))) == 16
  path.write_text("# ours\n\n be kind \nbe true\n")
  assert questions.principles(str(path)) == ["be kind", "be true"]
  path.write_text("# nothing\n")
  with pytest.raises(FieldError, match="holds no principle"):
    questions.principles(str(path))


def test_principles_are_drawn_by_seed_and_number():
  found = [questions.drawn(16, 3, 7, n) for n in range(200)]
  assert found == [questions.drawn(16, 3, 7, n) for n in range(200)]
  assert all(len(set(numbers)) == 3 for numbers in found)
  assert {n for numbers in found for n in numbers} == set(range(16))
  assert found != [questions.drawn(16, 3, 8, n) for n in range(200)]


@pytest.mark.parametrize(
  "values, message",
  [
    ({"orders": "none"}, "orders='none'"),
    ({"clamp": 0.6, "reasoning": True}, r"clamp=0\.6"),
    ({"clamp": 0.3}, "reasoning=False"),
    ({"reasoning_tokens": 8}, "reasoning=False"),
    ({"least_mass": 1.0}, r"least_mass=1\.0"),
    ({"batch_size": 0}, "batch_size=0"),
  ],
)
def test_settings_that_cannot_be_are_refused(values, message):
  with pytest.raises(FieldError, match=message):
    Judging(**values)
