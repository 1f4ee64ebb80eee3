"""The numbers and the page of a report card, of scores that are known."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import (
  card_page,
  member_card,
  probes,
  report_card,
  table_page,
)
from rlhf_jax.evaluation.card_items import Item, mistakes, pairs_of
from rlhf_jax.schema import UserError


def planted(count=400, seed=0, slope=1.0):
  """Returns pairs whose labels follow a score difference, and their scores."""
  rng = np.random.default_rng(seed)
  items, scores, lengths = [], [], []
  for n in range(count):
    own = rng.standard_normal(2)
    wins = rng.random() < 1 / (1 + np.exp(-slope * (own[0] - own[1])))
    items.append(
      Item(
        f"f:{n}",
        f"prompt {n}",
        (f"a {n}", f"<b>b {n}</b>"),
        [(0, 1, float(wins))],
        objectives={"kind": [(0, 1, float(wins))]} if n % 2 else {},
        fields={"annotator": "x" if n < 100 else "y", "language": "sw"},
      )
    )
    scores.append(own)
    lengths.append(rng.integers(5, 50, 2).astype(float))
  return items, scores, lengths


def test_the_card_of_a_calibrated_model():
  items, scores, lengths = planted(4000, slope=2.0)
  facts = report_card.measure(items, scores, lengths, nats=2.0, ceiling=0.9)
  assert facts["pairs"] == 4000 and facts["items"] == 4000
  assert facts["calibration"]["ece"] < 0.02
  assert facts["diagnosis"]["reward_model/temperature"] == pytest.approx(
    1.0, abs=0.1
  )
  rate = facts["accuracy"].value
  assert facts["reached"] == pytest.approx((rate - 0.5) / 0.4)
  assert facts["length"]["controlled"].accuracy == pytest.approx(rate, abs=0.01)
  assert facts["scores"]["outside"] == pytest.approx(0.0027, abs=0.003)
  groups = facts["by"]["annotator"]
  assert groups["x"]["accuracy"].count == 100
  assert list(groups) == ["y", "x"]  # the larger one first
  assert facts["by"]["objective"]["kind"]["accuracy"].count == 2000
  assert "language" not in facts["by"]  # all records say the same
  quarters = facts["by"]["length of both answers (tokens)"]
  assert sum(x["accuracy"].count for x in quarters.values()) == 4000
  # In other units it would not be calibrated.
  other = report_card.measure(items, scores, lengths, nats=6.0)
  assert other["calibration"]["ece"] > 0.05
  assert other["accuracy"] == facts["accuracy"]


def test_lists_and_ties():
  rng = np.random.default_rng(0)
  items, scores, lengths = [], [], []
  for n in range(60):
    good = n % 3 > 0
    own = np.array([3.0, 1, 0, 2]) if good else np.array([0.0, 1, 2, 3])
    pairs = [(0, k, 1.0) for k in (1, 2, 3)]
    items.append(
      Item(
        f"f:{n}",
        "p",
        tuple("abcd"),
        pairs,
        ranks=[0, 1, 1, 1],
        right=[True, False, False, False],
        fields={"subset": "Ties", "id": f"ref:{n}"} if n < 2 else {},
      )
    )
    scores.append(own)
    lengths.append(rng.integers(5, 50, 4).astype(float))
  facts = report_card.measure(items, scores, lengths)
  best = facts["listwise"]["best_of"][4]
  assert best["value"] == pytest.approx(2 / 3) and best["count"] == 60
  assert best["low"] < 2 / 3 < best["high"]
  tau = facts["listwise"]["kendall_tau_b"]
  assert tau["value"] == pytest.approx((2 / 3 - 1 / 3) * 3 / math.sqrt(18))
  assert facts["ties"] is None  # no tied prompt
  assert facts["pairs"] == 180


def test_a_model_that_likes_length_is_told():
  items, scores, lengths = planted()
  scores = [x / 50 + 0.1 * np.random.default_rng(1).random(2) for x in lengths]
  facts = report_card.measure(items, scores, lengths)
  said = " ".join(message for _, message in facts["remarks"])
  assert "length bias" in said and "near chance" in said
  assert facts["length"]["pearson"] > 0.9


def test_scores_outside_of_the_support_are_told():
  items, scores, lengths = planted()
  facts = report_card.measure(items, [4 + x for x in scores], lengths)
  assert facts["scores"]["outside"] > 0.7
  assert any("has not seen such answers" in x[1] for x in facts["remarks"])


def test_the_surest_mistakes_come_first():
  items, scores, _ = planted(50)
  found = mistakes(items, scores, 3)
  gaps = [gap for *_, gap in found]
  assert gaps == sorted(gaps, reverse=True) and len(found) == 3
  n, better, worse, gap = found[0]
  assert gap == pytest.approx(scores[n][worse] - scores[n][better])


def test_members_disagree_where_they_err():
  items, scores, lengths = planted(600, slope=5.0)
  rng = np.random.default_rng(0)
  outputs = [
    np.stack([x + 0.5 * rng.standard_normal(2) for _ in range(4)], 1)
    for x in scores
  ]
  mean = [x.mean(axis=1) for x in outputs]
  found = member_card.members(
    items, mean, lengths, outputs, ["m0", "m1", "m2", "kind"], usual=0.2
  )
  here = np.mean([x.std(axis=1).mean() for x in outputs])
  assert found["times_usual"] == pytest.approx(here / 0.2)
  assert found["rows"]["m0"]["accuracy"].count == 600
  assert found["rows"]["m0"]["own_objective"].count == 0
  assert found["rows"]["kind"]["own_objective"].count == 300
  together = report_card.measure(items, mean, lengths)["accuracy"].value
  assert together > found["rows"]["m0"]["accuracy"].value
  # The deviation of differences, not of scores: a shift of all says nothing.
  hit = np.array([True, True, False])
  pairs = pairs_of(
    [Item("", "", ("", ""), [(0, 1, float(x))]) for x in hit],
    [np.array([1.0, 0.0])] * 3,
    [np.ones(2)] * 3,
  )
  apart = member_card.error_by_deviation(pairs, np.array([0.1, 0.2, 0.9]))
  assert apart == {"auc": 1.0, "right": pytest.approx(0.15), "wrong": 0.9}


def test_the_page_shows_all_and_escapes_texts():
  items, scores, lengths = planted()
  facts = report_card.measure(items, scores, lengths, ceiling=0.8)
  changed = np.asarray([x[0] for x in scores])
  facts["probes"] = {
    name: probes.measured(changed, changed, changed - 1)
    for name in ("padding", "nonsense", "opinion")
  }
  facts["members"] = member_card.members(
    items, scores, lengths, [np.stack([x, x], 1) for x in scores], ["a", "b"]
  )
  page = card_page.page(
    facts,
    "Card",
    "of x",
    items=items,
    scores=scores,
    pairs=pairs_of(items, scores, lengths),
    origins=[("reward model", "runs/x")],
  )
  html = table_page.render(page)
  for part in (
    "Length controlled",
    "nonsense",
    "Annotator",
    "Surest mistakes",
    "by its own objective",
    "Of the way to people",
  ):
    assert part in html
  assert "<b>b 1" not in html and "&lt;b&gt;b" in html
  assert html.count("<svg") == 3 and "http" not in html.split("</style>")[1]


def test_a_table_of_sentences_is_marked_and_as_wide_as_the_page():
  rows = [["a claim", "yes", "what was seen"]]
  for is_text in (False, True):
    table = table_page.Table(
      ["claim", "seen", "numbers"], rows, is_text=is_text
    )
    section = table_page.Section("Claims", tables=[table])
    html = table_page.render(table_page.Page("Page", sections=[section]))
    assert ('<table class="words">' in html) == is_text
    assert ('class="scroll few"' in html) == (not is_text)


def test_refusals():
  items, scores, lengths = planted(5)
  with pytest.raises(UserError, match="by='planet'"):
    report_card.measure(items, scores, lengths, by=["planet"])
  tied = [Item("", "", ("a", "b"), [(0, 1, 0.5)])]
  with pytest.raises(UserError, match="none says which"):
    report_card.measure(tied, scores[:1], lengths[:1])
