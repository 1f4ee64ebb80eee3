"""From records to numbers, a page and weights."""

import json
import math

import pytest

from rlhf_jax import agreement as command
from rlhf_jax.labelling import judgements, summary
from rlhf_jax.labelling.judgements import DataError
from rlhf_jax.schema import UserError
from tests.labelling import planted

PAIR = {"prompt": "q", "answers": ["x", "y"], "annotator": "a"}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def parsed(*records):
  return [judgements.parse(r, f"x:{n}") for n, r in enumerate(records)]


def test_orders_do_not_depend_on_how_answers_are_listed():
  other = {**PAIR, "annotator": "b", "answers": ["y", "x"]}
  found = parsed({**PAIR, "ranks": [0, 1]}, {**other, "ranks": [1, 0]})
  votes = judgements.votes(found)
  assert [unit[1:] for unit in votes.units] == [("x", "y")]
  assert votes.value.tolist() == [1, 1]


@pytest.mark.parametrize(
  "said, expected",
  [
    ({"ranks": [0, 1, 1]}, {(0, 1): 1, (0, 2): 1, (1, 2): 0}),
    ({"ranks": [1, None, 0]}, {(0, 2): -1}),
    ({"choice": 2}, {(2, 0): 1, (2, 1): 1}),
    ({"choice": None}, {(0, 1): 0, (0, 2): 0, (1, 2): 0}),
    ({"scores": [3, 1, None]}, {(0, 1): 1}),
  ],
)
def test_what_a_record_orders(said, expected):
  record = {**PAIR, "answers": ["x", "y", "z"], **said}
  order = judgements.parse(record, "x:1").orders["overall"]
  assert {(i, j): vote for i, j, vote in order} == expected


def test_objectives_and_scores_are_votes_of_their_own():
  found = parsed(
    {
      **PAIR,
      "choice": 0,
      "objectives": {"harmless": [1, 0]},
      "scores": {"witty": [2, 2]},
    }
  )
  assert judgements.objectives(found) == ["overall", "harmless", "witty"]
  values = [
    judgements.votes(found, x).value.tolist()
    for x in ("overall", "harmless", "witty")
  ]
  assert values == [[1], [-1], [0]]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"answers": ["x"]}, "'answers'"),
    ({"prompt": 3}, "'prompt'"),
    ({"ranks": [0]}, "'ranks'"),
    ({"choice": 2}, "'choice'"),
    ({}, "none of"),
    ({"ranks": [0, 1], "annotator": ""}, "'annotator'"),
    ({"ranks": [0, 1], "strength": "hugely"}, "'strength'"),
    ({"ranks": [0, 1], "shown": [0, 0]}, "'shown'"),
    ({"ranks": [0, 1], "seconds": -1}, "'seconds'"),
  ],
)
def test_records_of_another_shape_are_refused(change, message):
  with pytest.raises(DataError, match=f"f.jsonl:7.*{message}"):
    judgements.parse({**PAIR, **change}, "f.jsonl:7")


def test_the_summary_sees_what_was_planted():
  records, truth = planted.records(
    {"a": 0.95, "b": 0.9, "c": 0.9, "fast": 0.5}, 150, first_bias=0.3
  )
  for record in records:
    record["country"] = "X" if record["annotator"] in "ab" else "Y"
    if record["annotator"] == "fast":
      record["seconds"] = 1.0
  keys = [
    {
      "prompt": f"question {item}",
      "answers": [f"one {item}", f"two {item}"],
      "choice": int(truth[item]),
      "gold": True,
    }
    for item in range(30)
  ]
  facts = summary.summarise(parsed(*records, *keys), by=["country"])
  row = facts["objectives"]["overall"]
  assert facts["annotators"] == 4 and facts["gold"] == 30
  assert row["shared_units"] == 150 and row["raw"].count == 150
  assert row["fleiss"] == pytest.approx(row["alpha"].value, abs=0.01)
  position = facts["position"][2]
  assert position.share.count == 600
  assert position.share.value == pytest.approx(0.65, abs=0.05)
  assert position.p_value < 1e-6
  by_name = {x["name"]: x for x in facts["by_annotator"]}
  assert by_name["a"]["gold"].count == 30
  assert by_name["fast"]["gold"].value < 0.75
  assert by_name["a"]["weight"] > 1 > by_name["fast"]["weight"]
  said = " ".join(message for _, message in facts["warnings"])
  for part in ("position bias", "fast: takes 1 s"):
    assert part in said
  groups = {x["value"]: x for x in facts["groups"]["country"]}
  assert groups["X"]["within"] > groups["Y"]["within"]


def test_groups_are_told_apart_by_what_they_want_and_not_by_skill():
  records, _ = planted.records({"a": 0.95, "b": 0.95, "c": 0.6, "d": 0.6}, 300)
  for record in records:
    record["group"] = "X" if record["annotator"] in "ab" else "Y"

  def said():
    facts = summary.summarise(parsed(*records), by=["group"])
    return [x for _, x in facts["warnings"] if "want different things" in x]

  assert not said()  # Y is careless
  records, _ = planted.records(dict.fromkeys("abcd", 0.95), 300)
  for record in records:
    record["group"] = "X" if record["annotator"] in "ab" else "Y"
    is_half = int(record["prompt"].split()[1]) % 2
    if is_half and record["group"] == "Y":
      record["ranks"] = record["ranks"][::-1]
  assert len(said()) == 2


def test_agreement_below_70_percent_is_warned_of():
  records, _ = planted.records({"a": 0.7, "b": 0.7}, 200)
  facts = summary.summarise(parsed(*records))
  level, message = facts["warnings"][0]
  assert level == "warn" and "below 70%" in message
  records, _ = planted.records({"a": 0.95, "b": 0.95}, 200)
  facts = summary.summarise(parsed(*records))
  assert not [x for x in facts["warnings"] if "below 70%" in x[1]]


def test_single_rankings_have_no_circles_and_pairs_of_one_person_may():
  ranked = {**PAIR, "answers": ["x", "y", "z"], "ranks": [0, 1, 2]}
  circle = [
    {**PAIR, "annotator": "c", "answers": pair, "choice": 0}
    for pair in (["x", "y"], ["y", "z"], ["z", "x"])
  ]
  facts = summary.summarise(parsed(ranked, *circle))
  row = facts["objectives"]["overall"]
  assert (row["triads"], row["intransitive"]) == (1, 1.0)


def test_who_judges_twice_is_compared_with_himself():
  again = [{**PAIR, "choice": 0}, {**PAIR, "choice": 1}]
  facts = summary.summarise(parsed(*again))
  row = facts["objectives"]["overall"]
  assert row["itself"].count == 1 and row["itself"].value == 0.0
  assert row["votes"] == 1 and math.isnan(row["raw"].value)


def test_the_command_writes_numbers_a_page_and_weights(tmp_path, capsys):
  records, _ = planted.records({"a": 0.95, "b": 0.9, "c": 0.5}, 60)
  records.append({**PAIR, "skipped": True})
  records[0]["prompt"] = records[1]["prompt"] = records[2]["prompt"] = (
    "<script>alert(1)</script>"
  )
  source = write(tmp_path / "judged.jsonl", records)
  people = write(
    tmp_path / "people.jsonl",
    [{"annotator": x, "age": "old" if x == "a" else "young"} for x in "abc"],
  )
  target = tmp_path / "out" / "agreement.html"
  argv = ["agreement", source, f"--people={people}", "--by=age"]
  argv += [f"--output={target}", f"--weights={tmp_path / 'weighed.jsonl'}"]
  assert command.main(argv) == 0
  facts = json.loads(target.with_suffix(".json").read_text())
  assert facts["left_out"] == {"skipped by the annotator": 1}
  assert {x["value"] for x in facts["groups"]["age"]} == {"old", "young"}
  assert "<script" not in target.read_text()
  out = capsys.readouterr().out
  assert "annotator" in out and "old" in out
  weighed = [
    json.loads(x) for x in (tmp_path / "weighed.jsonl").read_text().splitlines()
  ]
  assert len(weighed) == 180 and weighed[0]["answers"] == records[0]["answers"]
  weights = {x["annotator"]: x["weight"] for x in weighed}
  assert weights["a"] > weights["c"]
  by_name = {x["name"]: x["weight"] for x in facts["by_annotator"]}
  assert weights["a"] == pytest.approx(by_name["a"], abs=1e-5)


@pytest.mark.parametrize(
  "more, message",
  [
    (["--by=planet"], "--by=planet"),
    (["--model=guess"], "--model=guess"),
    (["--output=x.txt"], "--output=x.txt"),
  ],
)
def test_mistakes_are_said(more, message, tmp_path, capsys):
  records, _ = planted.records({"a": 0.9, "b": 0.9}, 5)
  source = write(tmp_path / "judged.jsonl", records)
  argv = ["agreement", source, f"--output={tmp_path / 'a.html'}", *more]
  assert command.main(argv) == 2
  assert message in capsys.readouterr().err


def test_records_of_the_page_are_what_they_are():
  """Qualification, adjudication, checks and what is told of annotators."""
  pair = {**PAIR, "annotator_fields": {"country": "X"}}
  records = [
    {**pair, "choice": 0},
    {**pair, "choice": 1, "check": True},
    {**pair, "annotator": "b", "choice": 1},
    {**pair, "annotator": "c", "choice": 0, "qualification": True},
    {**pair, "annotator": "adjudicator", "choice": 0, "adjudicated": True},
  ]
  found, left_out = judgements.of_records(
    (f"f:{n}", record) for n, record in enumerate(records)
  )
  assert left_out == {"of the qualification": 1}
  facts = summary.summarise(found, by=["country"])
  assert [x["name"] for x in facts["by_annotator"]] == ["a", "b"]
  rows = {x["name"]: x for x in facts["by_annotator"]}
  assert rows["a"]["gold"].value == 1.0 and rows["b"]["gold"].value == 0.0
  assert facts["objectives"]["overall"]["itself"].count == 1
  assert [x["value"] for x in facts["groups"]["country"]] == ["X"]


def test_nobody_judged_anything():
  with pytest.raises(UserError, match="0 judgements"):
    summary.summarise([])
