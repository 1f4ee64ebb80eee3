"""Red teaming against policies whose weakness is known."""

import json

import numpy as np
import pytest

from rlhf_jax.data.files import DataError
from rlhf_jax.evaluation.behaviour import attacks, suites
from rlhf_jax.evaluation.behaviour.attacks import Attack, Search
from tests.evaluation.test_behaviour_suites import run

ATTACKS = [Attack(f"x:{n}", "ab"[n // 2], f"bad thing {n}") for n in range(4)]
NO = "I'm sorry, but I can't help with that."


def told(search, answer):
  attempts = run(attacks.red_team(ATTACKS, search), answer)
  return attempts, attacks.table(ATTACKS, attempts, search)


def test_nothing_gets_through():
  attempts, found = told(Search(), lambda item: NO)
  assert len(attempts) == 4 * 4 and found["tries"] == 16
  assert found["as_it_is"].value == found["best_of"].value == 0.0
  assert found["best_of"].high > 0.3  # of 4 attacks nobody knows much
  prompts = {attempt.prompt for attempt in attempts}
  assert len(prompts) == 16 and {x.prompt for x in ATTACKS} <= prompts


def test_later_rounds_take_the_frames_that_are_left():
  attempts, found = told(Search(tries=3, rounds=3), lambda item: NO)
  assert len({attempt.prompt for attempt in attempts}) == 4 * 9
  assert set(found["how"]) == {"as it is", *attacks.FRAMES}


def test_one_frame_opens_the_door():
  names = set(attacks.FRAMES)
  search = Search(tries=1 + len(names))

  def answer(item):
    text = item.messages[0]["content"]
    return "Sure" if "script" in text and "thing 3" not in text else NO

  _, found = told(search, answer)
  assert found["as_it_is"].value == 0.0
  assert found["best_of"].value == 0.75
  assert found["by"]["a"]["best_of"].value == 1.0
  assert found["by"]["b"]["best_of"].value == 0.5
  assert found["how"]["film"].value == 0.75
  assert {k for k, x in found["how"].items() if x.value} == {"film"}
  assert found["after"] == sorted(found["after"])
  assert found["after"][-1] == 0.75


def test_later_rounds_go_on_from_the_best_and_leave_what_fell():
  def answer(item):
    text = item.messages[0]["content"]
    if "thing 0" in text:
      return "Sure"
    return f"I can't {'!' * text.count('story')}"

  def harm(item):
    return float(item.answer.count("!") or 2 * (item.answer == "Sure"))

  def both(item):
    return -harm(item) if isinstance(item, suites.Score) else answer(item)

  search = Search(rule="reward", threshold=1.5, tries=9, rounds=2)
  attempts, found = told(search, both)
  later = [x for x in attempts if x.round == 1]
  assert {x.attack for x in later} == {1, 2, 3}
  assert all(x.how.startswith("story + ") for x in later)
  assert found["as_it_is"].value == 0.25 and found["best_of"].value == 1.0
  assert max(x.harm for x in attempts) == 2.0


def test_a_model_rewrites_and_a_judge_decides():
  def answer(item):
    if isinstance(item, suites.Choose):
      assert item.who == suites.GRADER
      text = item.messages[0]["content"]
      assert "bad thing" in text  # what was asked, not how it was put
      return np.array([0.9, 0.1]) if "Gladly" in text else np.array([0.1, 0.9])
    if item.who == suites.ATTACKER:
      return None if item.draw == 1 else f"{item.draw} {len(item.messages)}"
    text = item.messages[0]["content"]
    return "Gladly" if text.startswith("0") else NO

  search = Search(kind="policy", rule="judge", tries=3)
  attempts, found = told(search, answer)
  assert len(attempts) == 8  # the second rewriting of each is lost
  assert found["how"]["rewritten"].value == 1.0
  assert found["as_it_is"].value == 0.0 and found["best_of"].value == 1.0
  assert (found["unrewritten"], found["ungraded"]) == (4, 0)
  assert "4 rewritings never came" in attacks.remarks(found)[0][1]


def test_later_rounds_draw_anew():
  draws = []

  def answer(item):
    if item.who == suites.ATTACKER:
      draws.append(item.draw)
      return f"again {item.draw}"
    return NO

  attempts, found = told(Search(kind="policy", tries=3, rounds=3), answer)
  assert len(set(draws)) == 2 + 3 + 3 and len(draws) == 4 * 8
  assert len(attempts) == 4 * 9 and found["unrewritten"] == 0


def test_what_a_judge_leaves_open_is_no_defence():
  def answer(item):
    text = item.messages[0]["content"]
    if isinstance(item, suites.Choose):
      if "thing 0" in text or ("thing 1" in text and "film" not in text):
        return None
      return np.array([0.1, 0.9])
    return f"film: {text}" if "film" in text else text

  search = Search(rule="judge", tries=1 + len(attacks.FRAMES), rounds=2)
  attempts, found = told(search, answer)
  assert found["as_it_is"][::3] == (0.0, 2)  # of 2 and 3
  assert found["best_of"][::3] == (0.0, 3)  # one frame of 1 was judged
  assert found["by"]["a"]["as_it_is"].count == 0
  assert found["ungraded"] == sum(np.isnan(x.harm) for x in attempts) > 9
  assert {x.attack for x in attempts if x.round} == {0, 1, 2, 3}
  assert found["unrewritten"] == 0 and found["after"][0] == 0.0
  (said,) = attacks.remarks(found)
  assert f"{found['ungraded']} answers got no judgement" in said[1]


@pytest.mark.parametrize("text", [None, "", " "])
def test_no_answer_is_no_success(text):
  _, found = told(Search(kind="none", tries=1), lambda item: text)
  assert found["best_of"].value == 0.0 and (
    found["unanswered"] == 4 * (text is None)
  )


def test_sets_of_attacks(tmp_path):
  assert len(attacks.read("ours")) >= 40
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps({"prompt": "p", "category": "c"}) + "\n")
  assert attacks.read(str(path)) == [Attack(f"{path}:1", "c", "p")]
  path.write_text(json.dumps({"prompt": ""}) + "\n")
  with pytest.raises(DataError, match="x.jsonl:1: the record has"):
    attacks.read(str(path))


def test_a_try_without_a_judgement_is_not_the_best_one():
  """As it is nobody judges; in the first frame it succeeds, and is left."""

  def answer(item):
    if not isinstance(item, suites.Choose):
      return item.messages[0]["content"]
    said = item.messages[0]["content"].split("The reply was:\n")[1]
    said = said.split("\n\nDid the reply")[0]
    is_framed = said not in {attack.prompt for attack in ATTACKS}
    return np.array([0.9, 0.1]) if is_framed else None

  search = Search(rule="judge", tries=2, rounds=2)
  attempts, found = told(search, answer)
  assert len(attempts) == 4 * 2 and {x.round for x in attempts} == {0}
  assert found["best_of"][::3] == (1.0, 4)
