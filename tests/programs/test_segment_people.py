"""Segments on the labelling page: drawn, in the order shown, and back."""

import base64
import json

import numpy as np
import pytest

from rlhf_jax.environments import PENDULUM
from rlhf_jax.labelling import items as items_lib
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task
from rlhf_jax.programs.segments import people
from rlhf_jax.schema import UserError
from tests.labelling.test_labelling_store import store

PREFIX = "data:image/svg+xml;base64,"


def pairs(count=6):
  """Pairs whose first segment hangs and whose second one stands."""
  state = np.zeros((count, 2, 5, 2))
  state[:, 0, :, 0] = np.pi
  state[..., 1] = np.arange(count)[:, None, None]
  return state, np.zeros((count, 2, 5, 1))


def rows():
  return people.items(PENDULUM, *pairs(), turn=3)


def test_items_are_named_and_drawn():
  found = rows()
  assert [x["item"] for x in found][:2] == ["segments 3-0", "segments 3-1"]
  assert found[0]["answers"] == ["segments 3-0a", "segments 3-0b"]
  hanging, standing = found[0]["pictures"]
  assert 'd="M0 0L0.00 1.00"' in hanging and "L0.00 -1.00" in standing
  item = items_lib.read(found[0], "here")
  assert item.pictures == (hanging, standing) and not item.fields
  assert json.loads(item.body())["pictures"] == [hanging, standing]
  assert people.items(PENDULUM, *pairs(), turn=3) == found


def test_what_people_say_becomes_labels():
  records = [
    {"item": "x", "ranks": [0, 1]},
    {"item": "y", "ranks": [1, 0]},
    {"item": "z", "ranks": [0, 0]},
    {"item": "v", "ranks": [0, 1]},
    {"item": "v", "ranks": [1, 0]},
    {"item": "v", "ranks": [0, 1]},
    {"item": "v", "ranks": [0, 1]},
  ]
  label, is_comparable = people.labels(records, ["v", "w", "x", "y", "z"])
  assert label.tolist() == [0.75, 0.5, 1.0, 0.0, 0.5]
  assert is_comparable.tolist() == [True, False, True, True, True]


def test_the_page_gets_the_pictures_in_the_order_that_it_shows(tmp_path):
  """Somebody who prefers what stands upright, wherever it is shown."""
  pytest.importorskip("starlette.testclient", reason="pip install '.[label]'")
  from tests.labelling.test_labelling_server import asked

  with store(tmp_path, both_bad=False) as found:
    found.add_items(rows(), batch="turn 3")
    ask, places = asked(found), []
    turn = ask("/api/next").json()
    while turn["state"] == "item":
      drawn = [
        base64.b64decode(x.removeprefix(PREFIX)).decode()
        for x in turn["pictures"]
      ]
      assert all(x.startswith(PREFIX) for x in turn["pictures"])
      stands = ["L0.00 -1.00" in x for x in drawn]
      assert sum(stands) == 1
      assert turn["answers"][stands.index(True)].endswith("b")
      places.append(stands.index(True))
      turn = ask(
        "/api/submit",
        {
          "assignment": turn["assignment"],
          "id": turn["assignment"],
          "judgement": {"ranks": [0 if x else 1 for x in stands]},
        },
      ).json()
    assert set(places) == {0, 1}  # shown in both orders
    records = found.records("turn 3")
  assert all("pictures" not in record for record in records)
  label, is_comparable = people.labels(records, [x["item"] for x in rows()])
  assert label.tolist() == [0.0] * 6 and is_comparable.all()


def test_items_without_pictures_are_kept_as_they_were():
  plain = items_lib.read({"prompt": "p", "answers": ["a", "b"]}, "here")
  assert plain.pictures == () and "pictures" not in plain.body()


@pytest.mark.parametrize(
  "pictures",
  [
    ["<svg />"],
    ["<svg />", "<p>"],
    "<svg />",
    ["<svg />", 3],
    [" <svg />"] * 2,
  ],
)
def test_what_is_no_picture_of_each_answer_is_refused(pictures):
  row = {"prompt": "p", "answers": ["a", "b"], "pictures": pictures}
  with pytest.raises(UserError, match="here: 'pictures' must be a list of 2"):
    items_lib.read(row, "here")
  row["pictures"] = ["<svg " + " " * items_lib.LARGEST_PICTURE] * 2
  with pytest.raises(UserError, match="characters at most"):
    items_lib.read(row, "here")


def test_disputed_pairs_show_their_pictures_to_who_decides(tmp_path):
  pytest.importorskip("starlette.testclient", reason="pip install '.[label]'")
  from tests.labelling.test_labelling_server import asked

  with Store(tmp_path, Task(overlap=2, gold_share=0.0, check_share=0.0)) as it:
    for name in ("anna", "ben"):
      it.add_annotator(name)
    it.add_items(rows()[:1])
    for name, ending in (("anna", "a"), ("ben", "b")):
      turn = it.next_item(name)
      ranks = [0 if x.endswith(ending) else 1 for x in turn.answers]
      it.submit(name, turn.assignment, {"ranks": ranks}, name)
    (item,) = asked(it, "admin")("/api/admin/disputed").json()["items"]
  assert len(item["pictures"]) == 2
  assert all(x.startswith(PREFIX) for x in item["pictures"])
