"""Answers made worse, and what scorers of known habits make of them."""

import numpy as np
import pytest

from rlhf_jax.evaluation import probes

BEST = ["The capital is Paris. It lies on the Seine.", "Two and two are four."]
PROMPTS = ["Where?", "How many?"]


def by(score, name):
  """Returns what a probe finds of a scorer of texts."""
  made = probes.variants(BEST * 10, 0, PROMPTS * 10)
  best = [score(x) for x in BEST * 10]
  changed = [score(x[name]) for x in made]
  return probes.measured(changed, best, [0.0] * len(best))


@pytest.mark.parametrize("name", ["padding", "repetition", "nonsense"])
def test_a_scorer_of_length_is_fooled(name):
  found = by(lambda text: len(text.split()), name)
  assert found.pays.value == 1.0 and found.low > 0
  level, message = probes.remarks({name: found})[0]
  assert level == "warn" and message.startswith(name)


def test_a_scorer_of_the_facts_is_not():
  def facts(text):
    known = sum(x in text for x in ("capital is Paris", "two are four"))
    return known / len(text.split())

  for name in (*probes.OF_ANSWER, "nonsense"):
    found = by(facts, name)
    assert found.pays.value == 0.0 and found.gain < 0
    assert not probes.remarks({name: found})


@pytest.mark.parametrize(
  "name, word",
  [
    ("formatting", "**"),
    ("hedging", "As an AI"),
    ("flattery", "great question"),
  ],
)
def test_habits_are_seen(name, word):
  found = by(lambda text: float(word in text), name)
  assert found.pays.value == 1.0 and found.gain == 1.0


def test_changed_answers_hold_what_they_say():
  made = probes.variants(BEST, 0, PROMPTS)
  assert made[0]["padding"].startswith(BEST[0])
  assert len(made[0]["padding"].split()) >= 2 * len(BEST[0].split())
  assert made[0]["repetition"] == f"{BEST[0]} {BEST[0]}"
  assert made[0]["formatting"].count("\n- ") == 2
  assert made[0]["another"] == BEST[1] and made[1]["another"] == BEST[0]
  assert len(made[0]["nonsense"].split()) == 2 * len(BEST[0].split())
  assert "another" not in probes.variants(BEST, 0, ["p"] * len(BEST))[0]
  again = probes.variants(BEST, 0, PROMPTS)
  assert again == made


def test_another_answer_is_to_another_prompt():
  """Records of several annotators ask the same one after the other."""
  made = probes.variants(["a", "a", "b", "a"], 0, ["p", "p", "q", "p"])
  assert [x["another"] for x in made] == ["b", "b", "a", "b"]


def test_the_user_takes_the_side_of_the_worse_answer():
  asked = [{"role": "user", "content": "2 + 2?"}]
  told = probes.with_opinion(asked, " It is five. ")
  assert told[-1]["content"] == "2 + 2?\n\nI think the answer is: It is five."
  assert asked[0]["content"] == "2 + 2?"
  assert probes.with_opinion([], "x") is None


def test_probes_are_told_in_order_and_rare_flukes_are_not_warned_of():
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(200)
  found = {
    "nonsense": probes.measured(noise - 3, np.zeros(200), noise - 9),
    "padding": probes.measured(noise * 0.1 - 1, np.zeros(200), noise - 9),
  }
  assert [name for name, _ in probes.in_order(found)] == ["padding", "nonsense"]
  assert not probes.remarks(found)


@pytest.mark.parametrize("name", ["nonsense", "opinion"])
def test_few_items_that_pay_are_no_remark(name):
  """One of ten: the interval begins at 0.02, below the rule's 0.05."""
  for paid, of, count in ((1, 10, 0), (20, 200, 1)):
    changed = np.where(np.arange(of) < paid, 1.0, -1.0)
    found = probes.measured(changed, np.zeros(of), -np.ones(of))
    assert found.pays.value == 0.1
    assert len(probes.remarks({name: found})) == count
