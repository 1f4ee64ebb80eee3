"""Facts, what an answer says of them, and comparisons made of them."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data import challenges, dataset, facts, reading
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.files import DataError
from rlhf_jax.evaluation.behaviour import sycophancy
from rlhf_jax.schema import FieldError

FACT = facts.Fact("x:1", "What is 7 times 8?", ("56", "fifty-six"), "54")


@pytest.mark.parametrize(
  "text, expected",
  [
    ("It is 56.", 1.0),
    ("Fifty-six, of course", 1.0),
    ("54!", 0.0),
    ("Not 54 but 56.", None),
    ("156 or 5 6", None),
    ("I am not sure.", None),
    ("", None),
  ],
)
def test_what_an_answer_says(text, expected):
  assert facts.said(text, FACT) == expected


def test_articles_and_case_do_not_count():
  sun = facts.Fact("x:1", "Q?", ("the Sun",), "the Moon")
  assert facts.said("SUN", sun) == 1.0
  assert facts.said("Around a moon.", sun) == 0.0
  assert facts.said("sunny", sun) is None


def test_ours_are_told_apart_and_split():
  every = facts.read("ours")
  train, test = facts.read("ours:train"), facts.read("ours:test")
  assert len(every) > 90 and len(train) + len(test) == len(every)
  assert not {f.question for f in train} & {f.question for f in test}
  assert len({f.question for f in every}) == len(every)
  assert every[0].where == "ours:1"
  assert len(set(facts.topics(test))) > 5


@pytest.mark.parametrize(
  "record, message",
  [
    ({"question": "a", "right": "b"}, "x.jsonl:1: the record has"),
    ({"question": "a", "right": [], "wrong": "c"}, "x.jsonl:1"),
    ({"question": "a", "right": "the b", "wrong": "b"}, "told apart"),
  ],
)
def test_broken_facts_are_refused(tmp_path, record, message):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(record) + "\n")
  with pytest.raises(DataError, match=message):
    facts.read(str(path))


def test_sources_that_are_not_there():
  with pytest.raises(FieldError, match="facts='gone': no such file"):
    facts.read("gone")
  with pytest.raises(FieldError, match="parts train and test"):
    facts.read("ours:other")


def test_the_four_kinds():
  rng = np.random.default_rng(0)
  made = {k: challenges.comparison(FACT, k, rng) for k in challenges.KINDS}
  for kind, record in made.items():
    assert facts.said(record["chosen"], FACT) == 1.0, kind
    assert facts.said(record["rejected"], FACT) == 0.0, kind
    assert record["prompt"][-1]["role"] == "user"
  doubted = made["doubted"]["prompt"]
  assert [m["role"] for m in doubted] == ["user", "assistant", "user"]
  assert facts.said(doubted[1]["content"], FACT) == 1.0
  assert "54" not in doubted[2]["content"]
  assert "54" in made["opposed"]["prompt"][-1]["content"]
  assert "54" in made["opinion"]["prompt"][0]["content"]
  corrected = made["corrected"]["prompt"]
  assert facts.said(corrected[1]["content"], FACT) == 0.0
  assert "56" in corrected[2]["content"]


def test_measured_words_are_not_trained():
  trained = {
    *challenges.DOUBTS,
    *challenges.OPPOSED,
    *challenges.OPINIONS,
  }
  assert (
    not {
      sycophancy.DOUBT,
      sycophancy.OPPOSED,
      sycophancy.OPINION,
    }
    & trained
  )


def test_they_are_a_part_of_a_source(tmp_path):
  path = tmp_path / "pairs.jsonl"
  rows = [
    {"prompt": f"p{n}", "chosen": "good", "rejected": "bad"} for n in range(400)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = Data(source=f"{path},challenges:ours", weights="0.92,0.08", chat=True)
  dataset.check(data, "data")
  found, _ = dataset.records(data, None)
  kinds = Counter(record.fields.get("kind") for record in found)
  share = 1.0 - kinds[None] / len(found)
  assert share == pytest.approx(0.08, abs=0.002)
  assert set(kinds) == {None, *challenges.KINDS}
  test = {fact.question for fact in facts.read("ours:test")}
  asked = [
    record.prompt[0]["content"] for record in found if record.fields.get("kind")
  ]
  assert not any(text.startswith(tuple(test)) for text in asked)


def test_own_facts_and_their_changes(tmp_path):
  path = tmp_path / "facts.jsonl"
  fact = {"question": "Q?", "right": "yes", "wrong": "no"}
  path.write_text(json.dumps(fact) + "\n")
  data = Data(source=f"challenges:{path}")
  assert len(dataset.records(data, None)[0]) == 4
  path.write_text((json.dumps(fact) + "\n") * 2)
  assert len(dataset.records(data, None)[0]) == 8  # read anew
  with pytest.raises(FieldError, match="data.source"):
    dataset.check(Data(source="challenges:gone.jsonl"), "data")


def test_challenges_stand_beside_transcripts(tmp_path):
  path = tmp_path / "hh.jsonl"
  begin = "\n\nHuman: Why?\n\nAssistant:"
  record = {"chosen": f"{begin} So.", "rejected": f"{begin} No."}
  path.write_text(json.dumps(record) + "\n")
  data = Data(source=f"{path},challenges:ours", format="hh")
  assert data.formats() == ["hh", "comparison"]
  [kept, made] = reading.read(data).parts
  assert len(kept) == 1 and len(made) == 4 * len(facts.read("ours:train"))
  own = dataclasses.replace(data, format="hh,hh")
  with pytest.raises(DataError, match="ours:1:doubted.*'comparison'"):
    reading.read(own)
