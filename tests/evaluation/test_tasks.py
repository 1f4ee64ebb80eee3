"""Items, layouts and outcomes of tasks, by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation.tasks import layouts, loading, made, outcomes
from rlhf_jax.evaluation.tasks.items import Item, Outcome, Task
from rlhf_jax.schema import FieldError, UserError

QUESTION = {
  "question": "What barks?",
  "choices": ["a cat", "a dog"],
  "answer": "B",
  "subject": "animals",
}


def written(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_mmlu_asks_for_letters_and_cloze_for_texts():
  item = layouts.mmlu(QUESTION, "x:1")
  assert item.prompt == "What barks?\nA. a cat\nB. a dog\nAnswer:"
  assert (item.choices, item.answer, item.group) == ((" A", " B"), 1, "animals")
  item = layouts.cloze(QUESTION | {"answer": 0}, "x:1")
  assert item.prompt == "Question: What barks?\nAnswer:"
  assert (item.choices, item.answer) == ((" a cat", " a dog"), 0)


def test_gsm8k_and_humaneval_say_what_answers_are_judged_by():
  item = layouts.gsm8k(
    {"question": "1+1?", "answer": "So <<1+1=2>>#### 2"}, "x"
  )
  assert (item.kind, item.answer) == ("generate", "So <<1+1=2>>#### 2")
  assert layouts.LAYOUTS["gsm8k"].said(item) == " So #### 2"
  record = {
    "prompt": "def f(x):\n",
    "test": "def check(f): ...",
    "entry_point": "f",
  }
  item = layouts.humaneval(record, "x")
  assert item.answer["tests"] == ["check(f)"]
  assert item.answer["preamble"] == record["prompt"]


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"answer": "C"}, "its letter, A to B"),
    ({"answer": 2}, "0 to 1"),
    ({"choices": ["one"], "answer": 0}, "two or more"),
    ({"question": ""}, "field 'question'"),
  ],
)
def test_a_record_that_is_none_of_a_layout_is_refused(change, says):
  with pytest.raises(UserError, match=says) as caught:
    layouts.mmlu(QUESTION | change, "file.jsonl:3")
  assert "file.jsonl:3" in str(caught.value)


def test_a_list_of_tasks_is_read_by_layout_and_name(tmp_path):
  path = written(tmp_path / "animals.jsonl", QUESTION, QUESTION | {"answer": 0})
  found = loading.named(f"mmlu:{path}, easy=cloze:{path}, made:sums")
  assert [(x.name, x.kind) for x in found] == [
    ("animals", "mmlu"),
    ("easy", "cloze"),
    ("sums", "made"),
  ]
  loading.check(found)
  assert len(loading.load(found[0]).items) == 2
  assert len(loading.load(found[2], limit=5).items) == 5
  own = loading.named(f"my_layout.py:WORDS:{path}")
  assert (own[0].kind, own[0].source) == ("my_layout.py:WORDS", path)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("mmul:x.jsonl", "write LAYOUT:PATH.* Did you mean 'mmlu'"),
    ("x.jsonl", "write LAYOUT:PATH"),
    ("text:a.jsonl,cloze:b/a.jsonl", "two tasks are called 'a'"),
  ],
)
def test_a_task_that_nobody_knows_is_refused(text, says):
  with pytest.raises(FieldError, match=says):
    loading.named(text)
  with pytest.raises(FieldError, match="made:sum"):
    loading.check(loading.named("made:sum"))


def test_worked_examples_are_taken_off_the_end(tmp_path):
  rows = [QUESTION | {"question": f"q{i}"} for i in range(3)]
  named = loading.named(f"cloze:{written(tmp_path / 'x.jsonl', *rows)}")
  task = loading.load(named[0], shots=1)
  assert [item.prompt for item in task.items] == [
    f"Question: q2\nAnswer: a dog\n\nQuestion: q{i}\nAnswer:" for i in (0, 1)
  ]
  with pytest.raises(FieldError, match="^tax.shots=3"):
    loading.load(named[0], shots=3, section="tax")


def test_made_tasks_are_the_same_each_time_and_have_one_right_choice():
  for name in made.MADE:
    items = made.items(name)
    assert items == made.items(name)
    assert 40 <= len(items) <= 160
    if name == "prose":
      assert len({x.answer for x in items}) == len(items)
      continue
    assert all(len(set(x.choices)) == len(x.choices) for x in items), name
    places = np.bincount([x.answer for x in items])
    assert places.max() < 0.65 * len(items)  # no place is right too often
  assert all(
    eval(x.prompt.removesuffix(" =")) == int(x.choices[x.answer])
    for x in made.items("sums")
  )
  capital = next(x for x in made.items("capitals") if "France" in x.prompt)
  assert capital.choices[capital.answer] == " Paris"
  names = [x.choices[x.answer].strip() for x in made.items("copying")]
  assert all(
    x.prompt.startswith(name)
    for x, name in zip(made.items("copying"), names, strict=True)
  )


def chosen(*logprobs, answer=0, number=0):
  choices = ("a", "bbbb")
  item = Item(f"x:{number}", "choice", "p", choices, answer)
  return Outcome(item, logprobs, (1, 1), outcomes.sizes(choices))


def test_accuracy_is_by_the_sum_and_by_the_sum_a_byte():
  one = chosen(-1.0, -2.0)  # "bbbb" has -0.5 a byte
  assert (one.chosen, one.chosen_by_byte) == (0, 1)
  found = outcomes.numbers([one, chosen(-3.0, -1.0, number=1)])
  assert found["accuracy"] == 0.5
  assert found["accuracy_per_byte"] == 0.0
  assert found["items"] == 2


def test_perplexity_is_over_all_tokens_and_bits_over_all_bytes():
  def text(nats, tokens, size):
    item = Item("x", "perplexity", "", answer="t" * size)
    return Outcome(item, (-nats,), (tokens,), (size,))

  found = outcomes.numbers([text(2.0, 1, 4), text(4.0, 3, 8)])
  assert found["nats_per_token"] == 1.5  # not the mean of 2 and 4/3
  assert found["perplexity"] == pytest.approx(math.exp(1.5))
  assert found["bits_per_byte"] == pytest.approx(6.0 / math.log(2.0) / 12.0)


def test_a_change_is_paired_by_item():
  """Four items of ten are lost, none is won: 40 points, clearly."""
  before = [chosen(-1.0, -2.0, number=i) for i in range(10)]
  after = [chosen(-1.0, -2.0 + 2 * (i < 4), number=i) for i in range(10)]
  change = outcomes.changes(before, after)[0]
  assert change.name == "accuracy"
  assert (change.before, change.after) == (1.0, 0.6)
  assert change.change == pytest.approx(-40.0)
  assert change.fall == pytest.approx(40.0)
  assert -75.0 < change.low < -40.0 < change.high < 0.0
  assert change.is_clear
  same = outcomes.changes(before, before)[0]
  assert (same.change, same.low, same.high, same.is_clear) == (0, 0, 0, False)
  with pytest.raises(UserError, match="not of the same items"):
    outcomes.changes(before, after[1:])


def test_how_often_coins_part_items_so():
  before = [chosen(-1.0, -2.0, number=i) for i in range(20)]
  for lost, expected in ((0, 1.0), (1, 1.0), (4, 0.125), (6, 1 / 32)):
    after = [chosen(-1.0, -2.0 + 2 * (i < lost), number=i) for i in range(20)]
    change = outcomes.changes(before, after)[0]
    assert (change.lost, change.gained) == (lost, 0)
    assert change.chance == expected
    back = outcomes.changes(after, before)[0]
    assert (back.gained, back.chance) == (lost, expected)
  # 7 of 8: 2 (8 + 1) / 256, and thousands of items do not overflow
  change = dataclasses.replace(change, lost=7, gained=1)
  assert change.chance == pytest.approx(18 / 256)
  many = dataclasses.replace(change, lost=2600, gained=2400)
  assert many.chance == pytest.approx(0.0049, abs=2e-4)
  graded = [
    dataclasses.replace(x, item=Item("y", "generate", "p"), score=0.5)
    for x in before
  ]
  assert math.isnan(outcomes.changes(graded, graded)[0].chance)


def test_the_interval_of_a_paired_change_covers_what_it_should():
  """Each item is lost with 0.2 and won with 0.1: a fall of 10 points."""
  hits, rng = 0, np.random.default_rng(0)
  for _ in range(100):
    moves = rng.choice([0, 1, 2], 200, p=[0.2, 0.1, 0.7])
    old = np.where(moves == 0, 1.0, np.where(moves == 1, 0.0, 1.0))
    new = np.where(moves == 1, 1.0, np.where(moves == 0, 0.0, 1.0))
    pair = [np.stack([x, np.ones(200)], axis=1) for x in (old, new)]
    found = outcomes._change("accuracy", *pair, seed=0)
    hits += found.low <= -10.0 <= found.high
  assert 88 <= hits <= 100


def lost(count, of=100):
  """Returns outcomes before and after, so many of them lost."""
  before = [chosen(-1.0, -2.0, number=i) for i in range(of)]
  moved = [chosen(-1.0, -2.0 + 2 * (i < count), number=i) for i in range(of)]
  return before, moved


def test_the_overall_change_weighs_tasks_alike_and_draws_each_by_itself():
  """Two tasks of one spread: the mean's interval is narrower by sqrt(2)."""
  pair = lost(30)
  one = outcomes.changes(*pair)[0]
  both = outcomes.overall(*({"a": x, "b": x} for x in pair))
  assert both.change == pytest.approx(-30.0) and both.items == 200
  narrower = (one.high - one.low) / (both.high - both.low)
  assert narrower == pytest.approx(math.sqrt(2.0), rel=0.1)
  other, single = lost(0, of=10), lost(1, of=1)
  sides = [
    {"a": x, "b": y, "c": z}
    for x, y, z in zip(pair, other, single, strict=True)
  ]
  mixed = outcomes.overall(*sides)
  assert mixed.change == pytest.approx(-15.0)  # b weighs as a; c is no task
  assert (mixed.before, mixed.after) == pytest.approx((1.0, 0.85))
  assert mixed.items == 110
  assert mixed.low < -15.0 < mixed.high < -10.0
  assert outcomes.overall(*({"c": x} for x in single)) is None


def test_groups_are_told_apart_where_there_are_several():
  of = [
    dataclasses.replace(x, item=dataclasses.replace(x.item, group=group))
    for x, group in zip(lost(1, of=3)[1], "aab", strict=True)
  ]
  found = outcomes.by_group(of)
  assert {k: x["accuracy"] for k, x in found.items()} == {"a": 0.5, "b": 1.0}
  assert outcomes.by_group(of[:2]) == {}


def test_outcomes_are_written_and_read_again():
  kinds = [
    chosen(-1.0, -2.0),
    Outcome(Item("y", "generate", "p", answer="4"), text="4", score=1.0),
    Outcome(Item("z", "perplexity", "", answer="abc"), (-2.0,), (2,), (3,)),
  ]
  rows = json.loads(json.dumps([outcomes.row(x) for x in kinds]))
  items = [x.item for x in kinds]
  again = [outcomes.outcome_of(*pair) for pair in zip(items, rows, strict=True)]
  assert again == kinds
  with pytest.raises(UserError, match="have changed"):
    outcomes.outcome_of(items[0], rows[1])


def test_a_task_whose_answers_nobody_scores_is_refused():
  item = Item("x:1", "generate", "p", answer="4")
  with pytest.raises(UserError, match="nobody scores"):
    Task("t", [item])
