"""Public layouts of rankings, scores and choices."""

import json

import pytest

from rlhf_jax.data import dataset, formats, rankings
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from tests.letters import Letters

NECTAR = {
  "prompt": "\n\nHuman: hi\n\nAssistant: ",
  "answers": [
    {"answer": "a", "model": "x", "rank": 2.0},
    {"answer": "b", "model": "y", "rank": 1.0},
    {"answer": "c", "model": "z", "rank": 3.0},
  ],
  "turns": 1,
}


def rated(text, overall, fine, help_, truth):
  notes = {
    "helpfulness": {"Rating": help_, "Rationale": "..."},
    "truthfulness": {"Type": ["1"], "Rating": truth},
  }
  return {
    "model": text,
    "response": text,
    "annotations": notes,
    "overall_score": overall,
    "fine-grained_score": fine,
  }


ULTRA = {
  "source": "s",
  "instruction": "i",
  "completions": [
    rated("a", 85.0, 4.5, "5", "4"),
    rated("b", 7.5, 4.75, "5", "N/A"),
  ],
}
STEER = {"prompt": "p", "helpfulness": 3, "correctness": 4, "coherence": 4}
STEER |= {"complexity": 1, "verbosity": 2}
PAIR2 = {
  "prompt": "p",
  "response_1": "a",
  "response_2": "b",
  "preference_strength": 2,
  "preference_statement": "b is",
}
PAIR3 = {
  "domain": "general",
  "language": "english",
  "context": [{"role": "user", "content": "hi"}],
  "response1": "a",
  "response2": "b",
  "overall_preference": -3,
  "individual_preference": [{"score": -3}],
}
BEST = {"query": "q", "best": 2} | {f"sample{n}": f" {n}" for n in range(4)}
SUMMARIES = {
  "info": {"post": "long", "title": "t", "subreddit": "tifu"},
  "summaries": [{"text": "s", "policy": "x"}, {"text": " r", "policy": "y"}],
  "choice": 1,
  "worker": "w",
}


def parse(name, record):
  assert formats.guess(record, "f:1") == name
  return formats.FORMATS[name](record, "f:1")


def test_nectar():
  found = parse("nectar", NECTAR)
  assert found.prompt == [{"role": "user", "content": "hi"}]
  assert (found.answers, found.ranks) == (("a", "b", "c"), (1, 0, 2))
  assert found.fields == NECTAR | {"policies": ["x", "y", "z"]}
  bad = NECTAR | {"answers": [{"answer": "a", "rank": 0}]}
  with pytest.raises(DataError, match="rank is '0'; a rank is 1 for the best"):
    formats.FORMATS["nectar"](bad, "f:1")


def test_ultrafeedback():
  found = parse("ultrafeedback", ULTRA)
  assert (found.prompt, found.answers) == ("i", ("a", "b"))
  assert found.scores == {
    "": (4.5, 4.75),
    "overall": (85.0, 7.5),
    "helpfulness": (5.0, 5.0),
    "truthfulness": (4.0, None),
  }
  assert rankings.order(found) == ("scores", (1, 0))
  assert rankings.order(found, "helpfulness")[1] == (0, 0)
  assert rankings.order(found, "truthfulness")[1] == (0, None)


def test_neighbours_of_helpsteer_are_one_ranking(tmp_path):
  rows = [
    STEER | {"response": "a"},
    STEER | {"response": "b", "helpfulness": 1},
    STEER | {"response": " "},
    STEER | {"response": "c", "prompt": "q"},
  ]
  assert formats.guess(rows[0], "f:1") == "helpsteer"
  path = tmp_path / "h.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (both, one), refused = formats.load_and_refuse(path, "helpsteer")
  assert (both.answers, one.answers) == (("a", "b"), ("c",))
  assert both.scores["helpfulness"] == (3.0, 1.0)
  assert both.scores["verbosity"] == (2.0, 2.0)
  assert both.fields == {"records": rows[:2]}
  assert [error.reason for error in refused] == ["empty response"]
  data = Data(
    source=str(path),
    format="helpsteer",
    objective="helpfulness",
    rankings="whole",
  )
  made = dataset.comparisons(data, Letters(), 0)
  assert made.pairs.tolist() == [[0, 1], [2, -1]]
  assert made.targets[0].tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
  "strength, ranks, word",
  [
    (2, (1, 0), "better"),
    (-3, (0, 1), "significantly"),
    (-1, (0, 1), "slightly"),
    (0, (0, 0), "negligibly"),
  ],
)
def test_helpsteer_preferences(strength, ranks, word):
  found = parse(
    "helpsteer2_preference", PAIR2 | {"preference_strength": strength}
  )
  assert (found.ranks, found.strength) == (ranks, word)
  found = parse("helpsteer3", PAIR3 | {"overall_preference": strength})
  assert (found.ranks, found.strength) == (ranks, word)
  assert found.prompt == PAIR3["context"]
  assert found.fields["individual_preference"] == [{"score": -3}]
  with pytest.raises(DataError, match="it is a whole number from -3"):
    parse("helpsteer3", PAIR3 | {"overall_preference": 4})


def test_best_of_four():
  found = parse("best_of", BEST)
  assert found.answers == (" 0", " 1", " 2", " 3")
  assert found.ranks == (1, 1, 0, 1)
  with pytest.raises(DataError, match="hold numbers of tokens"):
    formats.FORMATS["best_of"](BEST | {"sample0": [1, 2]}, "f:1")
  with pytest.raises(DataError, match="'best' is 4 of 4 samples"):
    formats.FORMATS["best_of"](BEST | {"best": 4}, "f:1")


def test_summaries():
  found = parse("summaries", SUMMARIES)
  assert found.prompt == (
    "SUBREDDIT: r/tifu\n\nTITLE: t\n\nPOST: long\n\nTL;DR:"
  )
  assert (found.answers, found.ranks) == ((" s", " r"), (1, 0))
  assert found.fields["annotator"] == "w"
  assert found.fields["policies"] == ["x", "y"]
