"""Simulated annotators prefer as often as their formula says."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.labelling import simulated
from rlhf_jax.schema import FieldError

COUNT = 4000


def items(count=COUNT, answers=2):
  return [
    {"item": f"i{n}", "prompt": "p", "answers": list("abcd")[:answers], "k": n}
    for n in range(count)
  ]


def wins(config, gap, **options):
  """Returns the share in which the first answer wins, and the records."""
  records = simulated.label(
    items(), [[gap, 0.0]] * COUNT, config, seed=1, **options
  )
  return np.mean([r["ranks"] == [0, 1] for r in records]), records


def near(share, expected, count=COUNT):
  error = np.sqrt(expected * (1 - expected) / count)
  assert abs(share - expected) < 3.5 * error, (share, expected)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_two_answers_are_bradley_terry():
  share, _ = wins(simulated.Config(temperature=0.5), 0.4)
  near(share, sigmoid(0.8))


def test_without_noise_the_better_one_wins_and_equal_ones_by_chance():
  config = simulated.Config(temperature=0.0)
  assert wins(config, 1e-6)[0] == 1.0
  near(wins(config, 0.0)[0], 0.5)


def test_flips_and_reliability_mix_in_what_they_say():
  near(wins(simulated.Config(flips=0.2), 2.0)[0], 0.8 - 0.6 * sigmoid(-2.0))
  config = simulated.Config(count=2, reliability="1,0.5")
  _, records = wins(config, 2.0)
  for name, reliability in (("simulated-1", 1.0), ("simulated-2", 0.5)):
    own = [r["ranks"] == [0, 1] for r in records if r["annotator"] == name]
    assert len(own) == COUNT // 2
    expected = reliability * sigmoid(2.0) + (1 - reliability) / 2
    near(np.mean(own), expected, len(own))


def test_position_bias_goes_with_what_stands_first():
  _, records = wins(simulated.Config(position_bias=1.0), 0.0)
  first = [r["ranks"][r["shown"][0]] == 0 for r in records]
  near(np.mean(first), sigmoid(1.0))
  near(np.mean([r["shown"][0] == 0 for r in records]), 0.5)


def test_close_answers_are_ties():
  config = simulated.Config(temperature=0.0, ties=0.5)
  records = simulated.label(items(1, 4), [[1.0, 3.0, 0.7, 1.2]], config, seed=0)
  assert records[0]["ranks"] == [1, 0, 1, 1]
  assert wins(config, 0.6)[0] == 1.0 and wins(config, 0.4)[0] == 0.0


def test_the_best_of_four_is_plackett_and_luce():
  scores = np.array([0.0, 0.5, 1.0, 1.5])
  records = simulated.label(
    items(answers=4), [scores] * COUNT, simulated.Config(), seed=2
  )
  best = np.array([r["ranks"].index(0) for r in records])
  chance = np.exp(scores) / np.exp(scores).sum()
  for i in range(4):
    near(np.mean(best == i), chance[i])
  assert all(sorted(r["ranks"]) == [0, 1, 2, 3] for r in records)


def test_what_is_said_depends_on_seed_item_and_annotator_alone():
  config = simulated.Config(count=2)
  those, gaps = items(40), [[0.1 * n, 1.0] for n in range(40)]
  label = lambda seed, places: {  # noqa: E731
    (r["item"], r["annotator"]): (r["ranks"], r["shown"], r["seconds"])
    for r in simulated.label(
      [those[i] for i in places],
      [gaps[i] for i in places],
      config,
      seed=seed,
      overlap=2,
    )
  }
  assert label(1, range(40)) == label(1, range(39, -1, -1))
  assert label(1, range(40)) != label(2, range(40))


def test_records_keep_the_fields_of_items_and_who_judged():
  _, records = wins(simulated.Config(count=3), 1.0, overlap=2, time="today")
  assert len(records) == 2 * COUNT
  assert [r["annotator"] for r in records[:4]] == [
    f"simulated-{n}" for n in (1, 2, 3, 1)
  ]
  assert records[3]["k"] == 1 and records[3]["time"] == "today"
  assert abs(np.mean([r["seconds"] for r in records]) - 30) < 2


def test_strengths_are_words_of_the_difference_of_two():
  config = simulated.Config(strengths="2,1,0.5")
  gaps = {
    2.0: "significantly",
    -1.5: "better",
    0.6: "slightly",
    0.1: "negligibly",
  }
  for gap, word in gaps.items():
    (record,) = simulated.label(items(1), [[gap, 0.0]], config, seed=0)
    assert record["strength"] == word
  (record,) = simulated.label(items(1, 3), [[9, 5, 1]], config, seed=0)
  assert "strength" not in record


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"count": 2, "reliability": "1,x"}, "^reliability='1,x': must be 2 num"),
    ({"count": 2, "reliability": "1"}, "^reliability='1': must be 2 numbers"),
    ({"flips": 0.6}, r"^flips=0.6: must be in \[0, 0.5\]"),
    ({"temperature": 0.0, "position_bias": 1.0}, "^position_bias=1.0 with"),
    ({"strengths": "1,2,3"}, "^strengths='1,2,3': must be three falling"),
    ({"count": 0}, "^count=0: must be >= 1"),
  ],
)
def test_wrong_annotators_are_refused(changes, message):
  with pytest.raises(FieldError, match=message):
    dataclasses.replace(simulated.Config(), **changes)
  with pytest.raises(FieldError, match="^overlap=4: must be 1 to 3"):
    simulated.label(items(1), [[0, 1]], simulated.Config(), seed=0, overlap=4)


def test_objectives_are_judged_apart():
  """Each has its preference, its words and its noise; places are shared."""
  scores = {"good": [[0.0, 2.0]] * 200, "short": [[1.0, 0.0]] * 200}
  config = simulated.Config(temperature=0.0, strengths="2,1,0.5")
  found = simulated.label(items(200), scores, config, seed=0)
  for record in found:
    assert "ranks" not in record
    assert record["objectives"] == {"good": [1, 0], "short": [0, 1]}
    assert record["strength"] == {"good": "significantly", "short": "better"}
  config = simulated.Config(temperature=1.0)
  found = simulated.label(items(200), scores, config, seed=0)
  right = np.array(
    [
      (x["objectives"]["good"] == [1, 0], x["objectives"]["short"] == [0, 1])
      for x in found
    ]
  )
  for share, gap in zip(right.mean(0), (2.0, 1.0), strict=True):
    expected = 1 / (1 + np.exp(-gap))
    assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / 200)
  assert abs(np.corrcoef(right.T)[0, 1]) < 0.25  # the noise is not one
