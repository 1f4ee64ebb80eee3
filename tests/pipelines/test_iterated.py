"""Who answers, what is compared, and what agreement and accuracy are."""

import numpy as np
import pytest

from rlhf_jax.pipelines import round_labels
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.schema import FieldError


def test_which_policies_answer():
  assert (
    iterated_settings.answering("last", 1)
    == [0]
    == iterated_settings.answering("first", 4)
  )
  assert iterated_settings.answering("last", 4) == [3]
  assert iterated_settings.answering("last:3", 2) == [0, 1]
  assert iterated_settings.answering("last:3", 5) == [2, 3, 4]
  assert iterated_settings.answering("all", 3) == [0, 1, 2]
  for wrong in ("last:0", "last:", "firstly", ""):
    with pytest.raises(FieldError, match="policies="):
      iterated_settings.answering(wrong, 1)


def rows(*texts, prompt="p", **fields):
  return [{"prompt": prompt, "response": text} | fields for text in texts]


def test_answers_by_prompt_of_texts_and_of_dialogues():
  found = iterated.grouped(rows("a", "b", proxy=1.0), "sft", 2)
  assert found == [
    {
      "prompt": "p",
      "answers": ["a", "b"],
      "policies": ["sft", "sft"],
      "scores": [1.0, 1.0],
    }
  ]
  user = {"role": "user", "content": "q"}
  said = [
    {"messages": [user, {"role": "assistant", "content": x}]} for x in "cd"
  ]
  (group,) = iterated.grouped(said, "x", 2)
  assert group["prompt"] == [user] and group["answers"] == ["c", "d"]


def test_policies_take_turns_across_a_comparison():
  groups = [
    iterated.grouped(rows(f"{name}1", f"{name}2") * 2, name, 2) for name in "ab"
  ]
  first, second = iterated.across(groups, 3)
  assert first["answers"] == ["a1", "b1", "a2"]
  assert first["policies"] == ["a", "b", "a"]
  assert second["answers"] == ["b1", "a1", "b2"]


def test_equal_and_empty_answers_teach_nothing():
  groups = [
    {"answers": ["x", "y", "x"], "policies": ["a", "b", "c"]},
    {"answers": ["x", "x"], "policies": ["a", "b"]},
    {"answers": ["x", " "], "policies": ["a", "b"]},
  ]
  found, lost = iterated.distinct(groups)
  assert lost == 2
  assert found == [{"answers": ["x", "y"], "policies": ["a", "b"]}]


def test_the_closest_are_chosen_where_scores_are_known():
  groups = [{"scores": [0.0, gap], "answers": gap} for gap in (3, 1, 4, 1, 5)]
  rng = np.random.default_rng(0)
  found = iterated.chosen(groups, 3, "uncertainty", rng)
  assert [x["answers"] for x in found] == [1, 1, 3]
  unknown = [{"answers": n} for n in range(50)]
  found = [x["answers"] for x in iterated.chosen(unknown, 5, "random", rng)]
  assert len(set(found)) == 5 and found != list(range(5))


def test_items_say_what_the_model_before_thinks():
  group = {"prompt": "p", "answers": ["a", "b"], "policies": ["s", "s"]}
  (item,) = iterated.as_items([group | {"scores": [1.0, 0.0]}], 2)
  assert item["item"] == "round-2-00000" and item["round"] == 2
  np.testing.assert_allclose(item["probability"], 1 / (1 + np.exp(-1)))
  assert "probability" not in iterated.as_items([group], 1)[0]


def record(item, annotator="a", **fields):
  return {"item": item, "annotator": annotator, "answers": "xyz"} | fields


def test_pairs_of_ranks_of_a_choice_and_of_nothing():
  pairs = iterated.ordered_pairs
  assert pairs(record("i", ranks=[1, 0, 1])) == {
    (0, 1): -1,
    (0, 2): 0,
    (1, 2): 1,
  }
  assert pairs(record("i", ranks=[0, None, 1])) == {(0, 2): 1}
  assert pairs(record("i", choice=2)) == {(0, 2): -1, (1, 2): -1}
  assert pairs(record("i", choice=None)) == {} == pairs(record("i"))


def test_agreement_counts_pairs_of_different_annotators():
  told = [
    {"prompt": "p", "answers": list("xyz"), "ranks": ranks, "annotator": name}
    for name, ranks in (("a", [0, 1, 2]), ("b", [0, 2, 1]))
  ]
  share, count = round_labels._agreement(told)
  assert (count, round(share, 6)) == (3, round(2 / 3, 6))
  assert round_labels._agreement(told[:1]) == (None, 0)


def test_accuracy_leaves_ties_out_and_calls_equal_scores_wrong():
  those = [record("i", ranks=[0, 1, 1]), record("j", choice=0)]
  scores = {"i": [2.0, 1.0, 3.0], "j": [1.0, 1.0, 0.0]}
  assert iterated.accuracy(those, scores) == (2, 4)


def test_weights_of_old_records():
  assert iterated.part_weights([100, 300, 50], -1.0) == ""
  assert iterated.part_weights([50], 0.5) == ""
  found = iterated.part_weights([100, 300, 50], 0.4).split(",")
  assert [float(x) for x in found] == [0.1, 0.3, 0.6]


def test_members_choose_what_they_differ_on():
  """Of differences, so what all members add to both answers counts nothing."""
  alike = np.array([[0.0, 5.0], [1.0, 6.0]])  # apart by 1, in both
  differ = np.array([[0.0, 0.0], [1.0, -1.0]])  # by -1 and by 1
  assert iterated.disagreement(alike) == 0.0
  assert iterated.disagreement(differ) == 1.0
  three = np.concatenate([differ, [[0.0, 0.0]]])
  np.testing.assert_allclose(iterated.disagreement(three), (2 / 3) ** 0.5)
  groups = [{"members": x, "answers": n} for n, x in enumerate((alike, differ))]
  (found,) = iterated.chosen(groups, 1, "disagreement", np.random.default_rng())
  assert found["answers"] == 1
  group = {"prompt": "p", "answers": ["a", "b"], "policies": ["s", "s"]}
  (item,) = iterated.as_items([group | {"members": differ}], 2)
  assert item["deviation"] == 1.0 and "members" not in item
