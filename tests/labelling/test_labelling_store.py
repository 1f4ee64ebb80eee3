"""The store of a labelling task: who gets what, and what is kept."""

import collections
import contextlib
import json
import sqlite3

import pytest

from rlhf_jax.data import dataset, ranking_parsers
from rlhf_jax.data.dataset import Data
from rlhf_jax.labelling import assignment, items, loop, results, verdicts
from rlhf_jax.labelling.store import Store, TakenError
from rlhf_jax.labelling.task import Task, draw, shuffled
from rlhf_jax.schema import UserError

KIND = {"dimensions": {"kind": [0, 1]}}
PLAIN = dict(gold_share=0.0, check_share=0.0)


def rows(count, k=2, **fields):
  """Items whose best answer is the one with the highest number."""
  return [
    {
      "item": f"i{n}",
      "prompt": f"p{n}",
      "answers": [f"{n}:{a}" for a in range(k)],
    }
    | {name: value(n) for name, value in fields.items()}
    for n in range(count)
  ]


def store(folder, people=("anna",), **task):
  found = Store(folder, Task(**(PLAIN | task)))
  for name in people:
    found.add_annotator(name)
  return found


def best_last(turn):
  """What somebody tells who prefers answers with a higher number."""
  order = sorted(turn.answers, key=lambda x: -int(x.rpartition(":")[2]))
  return {"ranks": [order.index(answer) for answer in turn.answers]}


def label(found, name, tell=best_last, most=10_000):
  """Answers until nothing is left; returns the turns."""
  turns = []
  while len(turns) < most:
    turn = found.next_item(name)
    if turn.state != "item":
      break
    turns.append(turn)
    found.submit(name, turn.assignment, tell(turn), f"{turn.assignment}/1")
  return turns


def test_orders_are_of_person_and_item_and_records_are_by_answer(tmp_path):
  with store(tmp_path, ("anna", "ben"), overlap=2) as found:
    assert found.add_items(rows(60), batch="a") == 60
    first = found.next_item("anna")
    assert first == found.next_item("anna")  # until it is answered
    for name in ("anna", "ben"):
      label(found, name)
    records = found.records()
    assert len(records) == 120
    for record in records:
      assert record["ranks"] == [1, 0]  # whatever the order was
      assert record["answers"] == [
        f"{record['prompt'][1:]}:{a}" for a in (0, 1)
      ]
      assert sorted(record["shown"]) == [0, 1]
    shown = {(x["annotator"], x["item"]): x["shown"] for x in records}
    left = [shown["anna", f"i{n}"][0] for n in range(60)]
    other = [shown["ben", f"i{n}"][0] for n in range(60)]
    assert 18 < sum(left) < 42 and 18 < sum(map(int.__eq__, left, other)) < 42
    assert found.progress("a") == {
      **{"items": 60, "begun": 60, "closed": 60, "judgements": 120},
      **{"skipped": 0, "wanted": 120},
    }
    assert found.progress("b")["items"] == 0 and found.records("b") == []


def test_a_submission_counts_once_and_undo_brings_it_back(tmp_path):
  with store(tmp_path) as found:
    found.add_items(rows(3))
    turn = found.next_item("anna")
    told = best_last(turn)
    assert found.submit("anna", turn.assignment, told, "x")
    assert not found.submit("anna", turn.assignment, told, "x")
    with pytest.raises(TakenError, match="answered this item already"):
      found.submit("anna", turn.assignment, told, "y")
    following = found.next_item("anna")
    assert following.last == "x"
    with pytest.raises(UserError, match="another judgement"):
      found.submit("anna", following.assignment, best_last(following), "x")
    assert found.undo("anna", "x") and not found.undo("anna", "x")
    assert found.records() == []
    again = found.next_item("anna")
    assert again.assignment == turn.assignment
    assert again.previous["ranks"] == told["ranks"]
    # A reply that was lost before the undo, sent again: nothing comes of it.
    assert not found.submit("anna", turn.assignment, told, "x")
    assert found.records() == []
    flipped = {"ranks": told["ranks"][::-1]}
    assert found.submit("anna", turn.assignment, flipped, "z")
    assert found.next_item("anna").assignment == following.assignment
    [record] = found.records()
    assert record["ranks"] == [0, 1] and record["judgement"] == "z"
    with pytest.raises(UserError, match="only the newest"):
      found.undo("anna", "nothing")
    with pytest.raises(UserError, match="not yours"):
      found.submit("anna", "nothing", told, "v")


@pytest.mark.parametrize(
  "told, rule",
  [
    ({"ranks": [0]}, "2 ranks"),
    ({"ranks": [0, 2]}, "0 for the best"),
    ({"ranks": [0, 0]}, "Choose"),
    ({"ranks": [0, None]}, "at least two"),
    ({"ranks": [0, True]}, "whole number"),
    (KIND | {"ranks": [0, 1]}, "strength: must be one of"),
    (KIND | {"ranks": [0, 1], "strength": "much"}, "strength: must be one of"),
    ({"ranks": [0, 1], "strength": "better"}, "dimensions: asked are kind"),
    ({"ranks": [0, 1], "colour": 1}, "colour: not known"),
    ({"ranks": [0, 1], "seconds": "1"}, "seconds"),
    ({"reason": "x" * 5000, "skip": True}, "4000"),
    ([], "must be an object"),
  ],
)
def test_what_was_asked_must_be_told(told, rule):
  task = Task(strengths=True, ties=False, dimensions=("kind",))
  with pytest.raises(UserError, match=rule):
    verdicts.read(told, [1, 0], task)


def test_judgements_go_from_places_to_answers_and_back():
  task = Task(dimensions=("kind", "true"), strengths=True)
  told = {
    "ranks": [0, 1],
    "strength": "slightly",
    "dimensions": {"kind": [1, 0], "true": [0, 0]},
    "reason": "short",
    "all_bad": False,
  }
  found = verdicts.read(told, [1, 0], task)
  assert found["ranks"] == [1, 0] and found["strength"] == "slightly"
  assert found["objectives"] == {"kind": [0, 1], "true": [0, 0]}
  assert verdicts.by_place(found, [1, 0]) == told
  bad = {"ranks": [0, 0], "all_bad": True}
  found = verdicts.read(bad, [0, 1], Task(ties=False))
  assert found["acceptable"] == [False, False]
  partial = verdicts.read({"ranks": [1, None, 0]}, [2, 0, 1], Task())
  assert partial["ranks"] == [None, 0, 1]
  choice = Task(ask="choice")
  found = verdicts.read({"choice": 2}, [2, 0, 1], choice)
  assert found["choice"] == 1 and verdicts.ranks_of(found, 3) == [1, 0, 1]
  found = verdicts.read({"all_bad": True}, [2, 0, 1], choice)
  assert found["choice"] is None and verdicts.is_all_bad(found)


def test_right_and_disputed():
  known = [0, 1, 1]
  assert verdicts.is_right({"ranks": [0, 2, 1]}, known)
  assert not verdicts.is_right({"ranks": [0, 0, 1]}, known)
  assert verdicts.is_right({"choice": 0}, known)
  assert not verdicts.is_right({"choice": 2}, known)
  disputed = verdicts.is_disputed
  assert disputed([{"ranks": [0, 1]}, {"ranks": [0, 0]}], 2)
  assert not disputed([{"ranks": [0, 1]}, {"ranks": [0, 1]}], 2)
  assert not disputed([{"ranks": [0, 1, None]}, {"ranks": [0, 1, 2]}], 3)
  bad = {"ranks": [0, 0], "acceptable": [False, False]}
  assert disputed([bad, {"ranks": [0, 0]}], 2)


def test_items_that_somebody_began_are_finished_first(tmp_path):
  people = ("anna", "ben", "cleo")
  with store(tmp_path, people, overlap=2) as found:
    found.add_items(rows(10))
    one, two = found.next_item("anna"), found.next_item("ben")
    assert one.item == two.item
    assert found.next_item("cleo").item != one.item  # two people have it
    for name in people:
      label(found, name)
    count = collections.Counter(x["item"] for x in found.records())
    assert set(count.values()) == {2} and len(count) == 10
    assert found.next_item("anna").state == "done"


def test_an_item_that_was_left_open_goes_to_others(tmp_path):
  with store(tmp_path, ("anna", "ben"), claim_minutes=0.0) as found:
    found.add_items(rows(1))
    open_item = found.next_item("anna")
    other = found.next_item("ben")
    assert other.item == open_item.item
    found.submit("ben", other.assignment, best_last(other), "b")
    assert found.next_item("anna").state == "done"  # no work for nothing
    # What anna answers late is kept all the same.
    found.submit("anna", open_item.assignment, best_last(open_item), "a")
    assert len(found.records()) == 2


def test_skips_count_and_close(tmp_path):
  with store(tmp_path, ("anna", "ben"), overlap=2) as found:
    found.add_items(rows(1))
    for name in ("anna", "ben"):
      turn = found.next_item(name)
      found.submit(name, turn.assignment, {"skip": True, "reason": "?"}, name)
    assert found.records() == []
    skips = found.records(with_skips=True)
    assert [x["ranks"] for x in skips] == [[None, None]] * 2
    assert skips[0]["skipped"] is True and skips[0]["reason"] == "?"
    progress = found.progress()
    assert progress["closed"] == 1 and progress["judgements"] == 0


def test_an_item_that_nobody_else_can_judge_is_closed(tmp_path):
  """Else a round of two people waits for ever once one of them skips."""
  with store(tmp_path, ("anna", "ben"), overlap=2) as found:
    found.add_items(rows(1))
    label(found, "anna")
    assert found.progress()["closed"] == 0
    turn = found.next_item("ben")
    found.submit("ben", turn.assignment, {"skip": True}, "b")
    assert found.progress()["closed"] == 1
    found.add_annotator("cleo")  # who may judge it
    assert found.progress()["closed"] == 0
    assert found.next_item("cleo").item == "i0"


def test_too_few_people_are_waited_for(tmp_path):
  with store(tmp_path, overlap=2) as found:
    found.add_items(rows(1))
    label(found, "anna")
    assert found.progress()["closed"] == 0


def test_a_record_names_the_guidelines_that_the_page_showed(tmp_path):
  """Those of an item that was opened before they changed, too."""
  with store(tmp_path) as found:
    found.add_items(rows(2))
    found.set_guidelines("one")
    turn = found.next_item("anna")
    second = found.set_guidelines("two")
    assert found.next_item("anna").assignment == turn.assignment
    found.submit("anna", turn.assignment, best_last(turn), "a")
    third = found.set_guidelines("three")
    assert found.records()[0]["guideline"] == second
    found.undo("anna", "a")
    turn = found.next_item("anna")
    found.submit("anna", turn.assignment, best_last(turn), "b")
    assert found.records()[0]["guideline"] == third


def test_models_say_what_is_labelled_next(tmp_path):
  given = rows(20, probability=lambda n: n / 40, deviation=float)
  for order, first in (("uncertainty", "i19"), ("disagreement", "i19")):
    with store(tmp_path / order, order=order) as found:
      found.add_items(given)
      turns = label(found, "anna")
      assert turns[0].item == first
      key = {
        "uncertainty": lambda n: 20 - n,
        "disagreement": lambda n: -n,
      }
      said = [int(turn.item[1:]) for turn in turns]
      assert [key[order](n) for n in said] == sorted(map(key[order], said))
      with pytest.raises(UserError, match=f"order='{order}'.*i99.* has no"):
        found.add_items([{"item": "i99", "prompt": "", "answers": ["a", "b"]}])
  with store(tmp_path / "both", order="uncertainty", random_share=0.5) as found:
    found.add_items(given)
    label(found, "anna")
    rules = collections.Counter(x["chosen_by"] for x in found.records())
    assert rules["random"] >= 4 and rules["uncertainty"] >= 4


def test_gold_checks_and_people(tmp_path):
  known = [
    row | {"gold": True, "item": f"g{n}", "ranks": [1, 0]}
    for n, row in enumerate(rows(5))
  ]
  shares = dict(gold_share=0.2, check_share=0.2)
  with store(tmp_path, ("anna", "left"), overlap=2, **shares) as found:
    found.add_items(known + rows(60))
    turns = label(found, "anna")
    label(found, "left", lambda turn: {"ranks": [0, 1]})
    kinds = collections.Counter(turn.kind for turn in turns)
    assert kinds["item"] == 60 and kinds["gold"] == 5 and kinds["check"] >= 5
    first = {turn.item: turn.shown for turn in turns if turn.kind == "item"}
    for turn in turns:
      if turn.kind == "check":
        assert turn.shown == first[turn.item][::-1]
    anna, left = results.people(found.database)
    assert anna["gold_right"] == anna["gold"] == 5
    assert anna["check_same"] == anna["checks"] == kinds["check"]
    assert left["first_share"] == 1.0 and left["check_same"] == 0
    assert 0.3 < anna["first_share"] < 0.7
    gold = found.records(kinds=("gold",))
    assert gold[0]["gold"] is True and gold[0]["gold_ranks"] == [1, 0]
    assert len(found.records()) == 120
    disputes = results.disputed(found.database)
    expected = [n for n in range(60) if _differ(found, f"i{n}")]
    assert sorted(int(x["item"][1:]) for x in disputes) == expected


def _differ(found, item):
  said = [x["ranks"] for x in found.records() if x["item"] == item]
  return said[0] != said[1]


def test_a_qualification_decides_once(tmp_path):
  test = [
    row | {"qualification": True, "item": f"q{n}", "ranks": [1, 0]}
    for n, row in enumerate(rows(4))
  ]
  with store(tmp_path, ("anna", "left")) as found:
    found.add_items(test + rows(2))
    turn = found.next_item("anna")
    found.submit("anna", turn.assignment, {"ranks": [0, 0]}, "wrong")
    assert found.next_item("anna").kind == "qualification"
    assert found.undo("anna", "wrong")  # with the second one open
    kinds = [turn.kind for turn in label(found, "anna")]
    assert kinds == ["qualification"] * 4 + ["item"] * 2
    label(found, "left", lambda turn: {"ranks": [0, 0]})
    assert found.next_item("left").state == "refused"
    with pytest.raises(UserError, match="qualification is over"):
      [last] = found.database.rows(
        "SELECT judgements.id FROM judgements JOIN assignments ON "
        "assignments.id = assignment WHERE annotator = 'left' ORDER BY "
        "number DESC LIMIT 1"
      )
      found.undo("left", last["id"])
    assert {x["annotator"] for x in found.records()} == {"anna"}


def test_pauses(tmp_path):
  with store(tmp_path, ("anna", "ben")) as found:
    found.add_items(rows(3))
    found.pause(True, "anna")
    assert found.next_item("anna").state == "paused"
    assert found.next_item("ben").state == "item"
    found.pause(True)
    assert found.next_item("ben").state == "paused"
    found.pause(False)
    found.pause(False, "anna")
    assert found.next_item("anna").state == "item"
    with pytest.raises(UserError, match="'nobody': is not known"):
      found.pause(True, "nobody")


def test_a_store_goes_on_where_it_was(tmp_path):
  with store(tmp_path, overlap=1, dimensions=("kind",)) as found:
    found.add_items(rows(4))
    version = found.set_guidelines("Be fair.")
    turn = found.next_item("anna")
  with Store(tmp_path) as again:
    assert again.task == Task(dimensions=("kind",), **PLAIN)
    assert again.next_item("anna") == turn
    assert again.guidelines() == (version, "Be fair.")
    assert again.add_items(rows(4)) == 0
    with pytest.raises(UserError, match="'i0': other texts"):
      again.add_items(rows(1, k=3))
    told = {"ranks": [0, 1], "dimensions": {"kind": [1, 0]}}
    again.submit("anna", turn.assignment, told, "x")
    again.set_guidelines("Be fair and quick.")
    assert again.records()[0]["guideline"] == version


def test_backups_hold_everything(tmp_path):
  with store(tmp_path) as found:
    found.add_items(rows(100))
    label(found, "anna")  # the hundredth makes one
    [copy] = (tmp_path / "backups").iterdir()
    with contextlib.closing(sqlite3.connect(copy)) as db:
      assert db.execute("SELECT COUNT(*) FROM judgements").fetchone() == (100,)
    for _ in range(12):
      found.backup()
    assert len(list((tmp_path / "backups").glob("*.sqlite"))) == 10


def test_waiting(tmp_path):
  said = []
  with store(tmp_path) as found:
    found.add_items(rows(4), batch="r1")
    found.add_items(rows(6), batch="r2")  # of which four are of r1
    waits = dict(poll_seconds=0.0, tell=said.append)
    assert loop.wait_for(found, "r1", should_stop=lambda: True, **waits) is None
    assert said == ["waiting for people: 0 of 4 judgements"]

    def one_more():
      label(found, "anna", most=1)
      return False

    got = loop.wait_for(found, "r1", 2, should_stop=one_more, **waits)
    batches = collections.Counter(x["batch"] for x in found.records())
    assert len(got) == batches["r1"] == 2
    label(found, "anna")  # the rest of r1 is withdrawn
    assert len(found.records("r1")) == 2 and len(found.records("r2")) == 2
    assert len(loop.wait_for(found, "r1", **waits)) == 2


def test_what_somebody_did_is_looked_up_by_item(tmp_path):
  """Else each turn would read all of a person's work for each item."""
  with store(tmp_path) as found:
    values = {"annotator": "anna", "overlap": 1, "stale": 0.0}
    plan = found.database.rows(f"EXPLAIN QUERY PLAN {assignment._FREE}", values)
    told = " ".join(row["detail"] for row in plan)
    assert "by_annotator (annotator=? AND item=?" in told


def test_what_was_exported_is_read_as_rankings(tmp_path):
  task = dict(dimensions=("kind",), strengths=True, overlap=2, check_share=0.2)
  with store(tmp_path / "s", ("anna", "ben"), **task) as found:
    found.add_items(rows(30, k=2) + [x | {"item": "k"} for x in rows(1, k=3)])

    def tell(turn):
      told = best_last(turn)
      told["dimensions"] = {"kind": told["ranks"]}
      return told | ({"strength": "better"} if len(turn.answers) == 2 else {})

    label(found, "anna", tell)
    bad = {"all_bad": True, "ranks": [0, 0], "dimensions": {"kind": [0, 1]}}
    turn = found.next_item("ben")
    if len(turn.answers) == 2:
      found.submit("ben", turn.assignment, bad, "x")
    for record in found.records(kinds=("item", "check")):
      ranking = ranking_parsers.parse_ranking(record, "x:1")
      assert ranking.ranks == tuple(record["ranks"])
      assert ranking.fields["annotator"] in ("anna", "ben")


def test_of_an_export_is_learned_what_records_has(tmp_path):
  """No answers that check people, and a decision without what it overrules."""
  task = dict(overlap=2, gold_share=0.2, check_share=0.2)
  task["qualification_pass"] = 0.0
  with store(tmp_path / "s", ("anna", "ben"), **task) as found:
    known = rows(5, ranks=lambda n: [1, 0])
    for n, row in enumerate(known):
      kind = "gold" if n else "qualification"
      row |= {"item": f"g{n}", "prompt": f"g{n}", kind: True}
    found.add_items(known + rows(30))
    label(found, "anna")
    label(found, "ben", lambda turn: {"ranks": [0, 1]})
    disputed = results.disputed(found.database)[0]
    found.adjudicate(disputed["item"], {"ranks": [1, 0]})
    found.export(tmp_path / "x.jsonl")
    data = Data(source=str(tmp_path / "x.jsonl"), format="ranking")
    read, dropped = dataset.records(data, None)
    told = [x.fields for x in read if x.fields.get("annotator")]
    assert told == found.records()
    assert sum(x.get("adjudicated", False) for x in told) == 1
    # What is right of gold items is learned.
    assert {x.fields["item"] for x in read} - {x["item"] for x in told} <= {
      f"g{n}" for n in range(1, 5)
    }
    assert dropped[ranking_parsers.DECIDED] == 2
    assert dropped["of the qualification of annotators"] == 3
    assert dropped["asked again, as a check of annotators"] > 0
    assert dropped["of gold items, which check annotators"] > 0


def test_asking_people_is_one_call(tmp_path):
  pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
  said = []

  def tell(text):
    said.append(text)
    if text.startswith("waiting"):  # the page is there; somebody labels
      with Store(tmp_path) as other:
        label(other, "anna")

  records = loop.ask(
    rows(3), tmp_path, 7, annotators=("anna",), port=0, tell=tell
  )
  assert [x["ranks"] for x in records] == [[1, 0]] * 3
  assert "http://127.0.0.1:" in said[0]


@pytest.mark.parametrize(
  "row, rule",
  [
    ({"answers": ["a", "b"]}, "'prompt'"),
    ({"prompt": "p"}, "'answers' must be a list"),
    ({"prompt": "p", "answers": ["a"]}, "1 answers; must be 2 to 9"),
    ({"prompt": "p", "answers": ["a", 2]}, "each of 'answers'"),
    ({"prompt": "p", "answers": ["a", "b"], "gold": True}, "needs 'ranks'"),
    ({"prompt": "p", "answers": ["a", "b"], "probability": 2}, "<= 1"),
    ({"prompt": "p", "answers": ["a", "b"], "item": 3}, "'item'"),
  ],
)
def test_what_is_no_item(row, rule):
  with pytest.raises(UserError, match=f"x:1: .*{rule}"):
    items.read(row, "x:1")


def test_an_export_is_json_and_has_all(tmp_path):
  with store(tmp_path / "s") as found:
    found.add_items(rows(3, language=lambda n: "ar", policies=lambda n: [1, 2]))
    label(found, "anna")
    assert found.export(tmp_path / "x.jsonl") == 3
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["language"] == "ar" and first["policies"] == [1, 2]
    assert first["chosen_by"] == "random" and first["time"].endswith("+00:00")


def test_draws_are_even_and_repeat():
  values = [draw(3, "a", n) for n in range(2000)]
  assert values == [draw(3, "a", n) for n in range(2000)]
  assert abs(sum(values) / 2000 - 0.5) < 0.03
  orders = collections.Counter(tuple(shuffled(3, 0, n)) for n in range(6000))
  assert len(orders) == 6 and all(850 < x < 1150 for x in orders.values())
