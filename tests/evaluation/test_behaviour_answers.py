"""Truthfulness, toxicity and persistence against answers that are known."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.data import attributes
from rlhf_jax.data.files import DataError
from rlhf_jax.evaluation.behaviour import (
  persistence,
  suites,
  toxicity,
  truthfulness,
)
from rlhf_jax.schema import FieldError
from tests.evaluation.test_behaviour_suites import rate, run, values


@pytest.mark.parametrize(
  "kind, value, good, bad",
  [
    ("starts", "Ahoy", "Ahoy, there", "there, Ahoy"),
    ("ends", "over", "And out, over.", "over and out"),
    ("mentions", "tennis", "I play Tennis!", "I play tenniss"),
    ("short", "3", "one two three", "one two three four"),
    ("short", "3", "one", ""),
    ("capitals", "", "YES, 3 TIMES", "Yes"),
    ("capitals", "", "ÄH", "123"),
    ("starts", "The Sun", "Sun, it is", ""),
    ("mentions", "Bras\u00edlia", "In brasilia.", "Brazil"),
    ("language", "French", "Je suis la et vous", "the cat is on it"),
    ("language", "German", "Das ist nicht der Hund", "el perro y los"),
    ("language", "Spanish", "el perro y los", "Das ist nicht der Hund"),
  ],
)
def test_attributes_are_checked_by_words(kind, value, good, bad):
  attribute = attributes.Attribute("x", kind, value)
  assert attribute.holds(good) and not attribute.holds(bad)


SENTENCES = {
  "English": (
    "Water boils at a hundred degrees on a stove.",
    "You can go for a walk in the park.",
  ),
  "French": (
    "La mer est belle en automne.",
    "On peut faire du pain avec de la farine.",
  ),
  "German": (
    "In der Stadt gibt es einen Park.",
    "Man kann auch mit dem Zug fahren.",
  ),
  "Spanish": (
    "La casa de la abuela tiene jard\u00edn.",
    "En la playa se puede tomar el sol.",
  ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_of_one_language(name):
  for text in SENTENCES[name]:
    held = [
      other
      for other in SENTENCES
      if attributes.Attribute("x", "language", other).holds(text)
    ]
    assert held == [name], text


def test_ours_are_of_all_kinds_and_have_short_forms():
  found = attributes.ours()
  assert {x.kind for x in found} == set(attributes.CHECKS)
  assert all(x.short for x in found)


def test_instructions_are_combined_and_half_of_them_short():
  ours = attributes.ours()
  found = attributes.drawn(ours, 400, 3, 0)
  sizes = [len(x.attributes) for x in found]
  assert set(sizes) == {1, 2, 3}
  for item in found:
    kinds = [x.kind for x in item.attributes]
    assert len(set(kinds)) == len(kinds)
  kinds = [x.attributes[0].kind for x in attributes.drawn(ours, 2000, 3, 0)]
  for kind in attributes.CHECKS:  # the first is any of the attributes
    share = np.mean([x.kind == kind for x in ours])
    assert abs(np.mean([k == kind for k in kinds]) - share) < 0.04
  short = [x.text == " ".join(a.short for a in x.attributes) for x in found]
  assert 0.42 < np.mean(short) < 0.58
  assert found == attributes.drawn(attributes.ours(), 400, 3, 0)
  assert found != attributes.drawn(attributes.ours(), 400, 3, 1)
  both = attributes.Instruction(
    (
      attributes.Attribute("", "starts", "a1"),
      attributes.Attribute("", "ends", "b1"),
    ),
    "",
  )
  assert [both.holds(x) for x in ("a1 b1", "a1 c", "c")] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
  "record, message",
  [
    ({"instruction": "a", "kind": "starts"}, "x.jsonl:1: the record has"),
    ({"instruction": "a", "kind": "is", "value": "b"}, "must be one of"),
    ({"instruction": "a", "kind": "short", "value": "few"}, "short has"),
    ({"instruction": "a", "kind": "short", "value": "\u00b2"}, "short has"),
    ({"instruction": "a", "kind": "starts", "value": "The"}, "no word is left"),
    ({"instruction": "a", "kind": "mentions", "value": "?"}, "no word is left"),
    ({"instruction": "a", "kind": "language", "value": "Thai"}, "language one"),
  ],
)
def test_broken_attributes_are_refused(tmp_path, record, message):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(record) + "\n")
  with pytest.raises(DataError, match=message):
    attributes.read(str(path))


def test_a_policy_that_forgets():
  found = attributes.each(attributes.ours()[:4])
  assert [x.attributes[0].value for x in found] == [
    *("Ahoy", "Well", "Listen", "Indeed")
  ]

  def answer(item):
    first, turn = item.messages[0]["content"], len(item.messages) // 2
    word = first.split("the word ")[1].split(".")[0]
    is_told = word in item.messages[-1]["content"]
    if word == "Well":
      return None if turn == 2 else "no"
    return f"{word}, yes" if is_told or word == "Ahoy" else "yes"

  told = run(persistence.persistence(found, 3), answer)
  assert rate(told, "turn_1")[::3] == (0.75, 4)
  assert rate(told, "turn_2")[::3] == (0.25, 4)
  assert rate(told, "turn_3")[::3] == (pytest.approx(1 / 3), 3)
  assert rate(told, "kept")[::3] == (pytest.approx(1 / 3), 3)
  asked = told.rows[0]["messages"]
  assert [m["role"] for m in asked] == ["user", "assistant"] * 3
  assert "Ahoy" not in asked[2]["content"] + asked[4]["content"]
  assert told.rows[1]["holds"] == [0.0, 0.0, None]


def test_only_what_began_well_is_kept():
  (ahoy,) = attributes.each(attributes.ours()[:1])
  texts = iter(["yes", "Ahoy, yes"])
  told = run(persistence.persistence([ahoy], 2), lambda item: next(texts))
  assert rate(told, "turn_2").value == 1.0
  assert rate(told, "kept").count == 0


QUESTIONS = [
  truthfulness.Question("x:1", "Q1?", ("true", "false"), 0, "a"),
  truthfulness.Question("x:2", "Q2?", ("no", "maybe", "yes"), 2, "b"),
]


def chooser(likes):
  """Returns a policy that gives each choice a weight by its text."""

  def answer(item):
    lines = item.messages[0]["content"].splitlines()
    texts = [line[4:] for line in lines if line.startswith("(")]
    assert len(texts) == len(item.labels)
    weights = np.array([likes(n, text) for n, text in enumerate(texts)])
    return weights / weights.sum()

  return answer


def test_truth_is_found_whatever_the_order():
  def knows(n, text):
    return 8.0 if text in ("true", "yes") else 1.0

  found = run(truthfulness.truthfulness(QUESTIONS), chooser(knows))
  assert rate(found, "truthful").value == 1.0
  assert values(found)["probability"].values == pytest.approx([8 / 9, 0.8])


def test_a_liking_for_the_first_letter_is_no_truth():
  def first(n, text):
    return 9.0 if n == 0 else 1.0

  found = run(truthfulness.truthfulness(QUESTIONS[:1]), chooser(first))
  assert values(found)["probability"].values == pytest.approx([0.5])
  assert rate(found, "truthful").value == 0.0  # a tie knows nothing


def test_sources_of_questions(tmp_path):
  ours = truthfulness.read("misconceptions")
  assert len(ours) >= 30 and len({x.topic for x in ours}) >= 4
  path = tmp_path / "x.jsonl"
  targets = {"choices": ["a", "b", "c"], "labels": [0, 1, 0]}
  rows = [
    {"question": "Q?", "mc1_targets": targets, "category": "Law"},
    {"question": "Q?", "right": "yes", "wrong": "no"},
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  first, second = truthfulness.read(str(path))
  assert first.choices == ("a", "b", "c") and first.right == 1
  assert first.topic == "Law" and second.choices == ("yes", "no")
  targets["labels"] = [0, 1, 1]
  path.write_text(json.dumps(rows[0] | {"mc1_targets": targets}) + "\n")
  with pytest.raises(DataError, match="x.jsonl:1: mc1_targets"):
    truthfulness.read(str(path))
  with pytest.raises(FieldError, match="truth='gone.jsonl'"):
    truthfulness.read("gone.jsonl")


def test_rude_answers_are_counted():
  found = toxicity.read("ours")[:4]
  said = ["You idiot!", "What a lovely day, I love it.", None, "A Tuesday."]

  def answer(item):
    if isinstance(item, suites.Choose):
      return np.array([0.8, 0.2])
    return said[[x.prompt for x in found].index(item.messages[0]["content"])]

  told = run(toxicity.toxicity(found, has_judge=True), answer)
  assert rate(told, "insults")[::3] == (pytest.approx(1 / 3), 3)
  assert rate(told, "negative")[::3] == (pytest.approx(1 / 3), 3)
  assert rate(told, "rude")[::3] == (1.0, 3)
  assert math.isnan(values(told)["insults"].array[2])
  assert not toxicity.has_insult("a foolish hatred of trashy films")
