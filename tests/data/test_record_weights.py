"""A record's field "weight": what it counts in the loss of a reward model."""

import json

import numpy as np
import pytest

from rlhf_jax.data import dataset, judged, rankings
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.programs import features, reward_data
from tests.letters import Letters

LETTERS = Letters()
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
THREE = {"prompt": "p", "answers": ["a", "bb", "c"], "ranks": [0, 1, 2]}


def read(path, rows, **settings):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = Data(source=str(path), max_length=16, **settings)
  return dataset.comparisons(data, LETTERS, 0)


def batch(data, numbers):
  return features.collate(
    numbers, data=data, features=None, width=16, pad_id=LETTERS.pad_id
  )


def test_pairs_carry_the_weights_of_their_records(tmp_path):
  rows = [PAIR | {"weight": 0.25}, PAIR, PAIR | {"weight": 0}]
  found = read(tmp_path / "a.jsonl", rows)
  np.testing.assert_array_equal(found.weights, [0.25, 1.0, 0.0])
  np.testing.assert_array_equal(batch(found, [2, 0]).weight, [0.0, 0.25])
  np.testing.assert_array_equal(found.take(np.array([1])).weights, [1.0])


@pytest.mark.parametrize(
  "how, expected",
  [("pairs", [2.0] * 3 + [0.5] * 3), ("whole", [2, 0.5]), ("ends", [2, 0.5])],
)
def test_rankings_carry_them_too(tmp_path, how, expected):
  rows = [THREE | {"weight": 2.0}, THREE | {"weight": 0.5}]
  found = read(tmp_path / "a.jsonl", rows, format="ranking", rankings=how)
  np.testing.assert_array_equal(found.weights, expected)


def test_without_weights_nothing_changes(tmp_path):
  found = read(tmp_path / "a.jsonl", [PAIR, PAIR | {"weight": 1}])
  assert found.weights is None
  np.testing.assert_array_equal(batch(found, [0, 1]).weight, [1.0, 1.0])


def test_a_weight_is_a_judgement_that_reward_models_read(tmp_path):
  found = read(tmp_path / "a.jsonl", [PAIR | {"weight": 0.5}])
  assert rankings.WEIGHT in found.judgements[0].carried
  config = reward_data.reward.Config()
  read_fields = reward_data.reads(config)
  assert not rankings.unread(found.judgements, read_fields)
  assert rankings.unread(found.judgements, {rankings.ORDER}) == {"weight": 1}


@pytest.mark.parametrize("weight", [-1, "much", True, float("nan")])
def test_what_is_no_weight_is_refused(tmp_path, weight):
  with pytest.raises(DataError, match="a.jsonl:1"):
    read(tmp_path / "a.jsonl", [PAIR | {"weight": weight}])


def test_single_answers_have_the_weight_of_their_comparison(tmp_path):
  rows = [PAIR | {"weight": 0.25}, PAIR]
  found = judged.from_comparisons(read(tmp_path / "a.jsonl", rows))
  np.testing.assert_array_equal(found.weights, [0.25, 0.25, 1.0, 1.0])
