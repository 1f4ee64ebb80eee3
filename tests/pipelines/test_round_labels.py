"""Labels of a round: what agreement is of, and what is learned."""

import json
import types

import pytest

from rlhf_jax.labelling import loop
from rlhf_jax.pipelines import round_labels
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.schema import FieldError, UserError

ITEMS = [
  {"item": f"round-1-{n:05d}", "prompt": f"p{n}", "answers": ["a", "b"]}
  for n in range(4)
]


def a_round(folder, by="file", action="warn"):
  """A round whose items are there."""
  (folder / "round_1").mkdir()
  iterated.write(folder / "round_1" / iterated.ITEMS, ITEMS)
  people = "anna,ben" if by == "page" else ""
  return types.SimpleNamespace(
    folder=folder / "round_1",
    number=1,
    world=types.SimpleNamespace(workdir=folder),
    settings=types.SimpleNamespace(
      objectives=("",),
      seed=0,
      labels=iterated_settings.Labels(by=by, people=people, port=0),
      agreement=iterated_settings.Agreement(action=action),
      comparisons=iterated_settings.Comparisons(),
    ),
  )


def facts_of(of):
  return json.loads((of.folder / iterated.AGREEMENT).read_text())


def test_a_decision_is_learned_and_hides_no_disagreement(tmp_path, monkeypatch):
  """Anna and ben differ on half of the items; the admin decides these."""
  pytest.importorskip("uvicorn", reason="pip install -e '.[label]'")
  of, wait = a_round(tmp_path, by="page"), loop.wait_for

  def people(store, batch):
    for name in store.annotators():
      while (turn := store.next_item(name)).state == "item":
        number = int(turn.item[-1])
        best = 1 if name == "ben" and number < 2 else 0
        ranks = [int(answer != best) for answer in turn.shown]
        told = {"ranks": ranks}
        store.submit(name, turn.assignment, told, f"{name} {turn.assignment}")
    for item in ITEMS[:2]:
      store.adjudicate(item["item"], {"ranks": [1, 0]})
    return wait(store, batch)

  monkeypatch.setattr(loop, "wait_for", people)
  round_labels.collect(of)
  assert len(iterated.read(of.folder / iterated.LABELS)) == 10
  round_labels.pass_gate(of)
  facts = facts_of(of)
  assert (facts["raw"], facts["pairs"]) == (0.5, 4)
  assert (facts["records"], facts["decided"]) == (8, 2)
  assert facts["annotators"] == 2
  learned = iterated.read(of.folder / iterated.TRAINED)
  assert [x["annotator"] for x in learned if x["item"] < "round-1-00002"] == [
    "adjudicator",
    "adjudicator",
  ]
  assert len(learned) == 6


def test_a_record_that_says_nothing_is_counted(tmp_path):
  of = a_round(tmp_path)
  said = [
    item | {"ranks": ranks, "annotator": name}
    for item, ranks in zip(
      ITEMS, ([0, 1], [0, 1], [1, 0], [None] * 2), strict=True
    )
    for name in ("anna", "ben")
  ]
  iterated.write(of.folder / iterated.LABELS, said)
  round_labels.pass_gate(of)
  facts = facts_of(of)
  assert (facts["raw"], facts["unjudged"], facts["judged_items"]) == (1.0, 2, 3)


def test_labelling_again_on_the_page_needs_another_store(tmp_path):
  of = a_round(tmp_path, by="page", action="stop")
  said = [
    item | {"ranks": ranks, "annotator": name}
    for item in ITEMS
    for name, ranks in (("anna", [0, 1]), ("ben", [1, 0]))
  ]
  iterated.write(of.folder / iterated.LABELS, said)
  with pytest.raises(UserError, match=r"move .*/labelling away and label"):
    round_labels.pass_gate(of)


def test_a_language_model_agrees_with_nobody():
  """Else every round warns, or stops, after all of it was labelled."""
  with pytest.raises(FieldError, match="overlap=2: a language model judges"):
    iterated_settings.Labels(by="judge")
  assert iterated_settings.Labels(by="judge", overlap=1).overlap == 1
