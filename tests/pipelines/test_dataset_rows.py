"""Records to rows by hand: rated texts, comparisons, prompts, filters."""

import json

import numpy as np
import pytest

from rlhf_jax.data import dataset, judged
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.programs import features
from tests.letters import Letters

LETTERS = Letters()
RATED = [
  {"text": "ab c", "ratings": [3, 2]},
  {"text": "dd", "ratings": [-1]},
  {"text": "ef gh ij", "ratings": [0, 1]},
  {"text": "kl m", "ratings": [2]},
]


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def rated(tmp_path):
  """Returns a function that makes the Data of the rated texts."""
  source = write(tmp_path / "rated.jsonl", RATED)
  return lambda **changes: Data(source=source, format="ratings", **changes)


def spell(row):
  """Writes a row with a star behind each target."""
  pairs = zip(row["tokens"], row["loss_mask"], strict=True)
  return "".join(LETTERS.decode([i], False) + "*" * int(m) for i, m in pairs)


def test_rated_texts_become_prompt_and_answer(rated):
  rows, dropped = dataset.demonstrations(rated(prompt="P:"), LETTERS)
  assert not dropped
  assert [spell(row) for row in rows[:2]] == [
    "P: *a*b* *c*<e>*",
    "P: *d*d*<e>*",
  ]
  rows, _ = dataset.demonstrations(
    rated(prompt="P:", train_on_prompt=True, end_token=False), LETTERS
  )
  assert spell(rows[1]) == "P:* *d*d*"
  rows, _ = dataset.demonstrations(rated(), LETTERS)  # nothing stands before
  assert spell(rows[1]) == " d*d*<e>*"
  with pytest.raises(DataError, match=r"jsonl:3: 2 \+ 10 tokens do not fit"):
    dataset.demonstrations(rated(prompt="P:", max_length=11), LETTERS)


def test_prompts_of_rated_texts_are_their_first_tokens(rated):
  ids, _ = dataset.prompts(rated(prompt="P:", prefix_tokens=3), LETTERS, 5)
  texts = [LETTERS.decode(row) for row in ids]
  assert texts == ["P: ab", "P: dd", "P: ef", "P: kl"]
  with pytest.raises(DataError, match="jsonl:1: a prompt of 5 tokens"):
    dataset.prompts(rated(prompt="P:", prefix_tokens=3), LETTERS, 4)


def test_records_are_filtered_split_and_cut_in_this_order(rated):
  found, dropped = dataset.records(
    rated(min_words=2, max_text_tokens=6, limit=1), LETTERS
  )
  assert [record.text for record in found] == ["ab c"]
  assert dropped == {
    "fewer than min_words": 1,
    "more than max_text_tokens": 1,
  }
  found, _ = dataset.records(rated(limit=3), LETTERS)
  assert [record.text for record in found] == ["ab c", "dd", "ef gh ij"]
  parts = [
    {
      record.text
      for record in dataset.records(
        rated(splits="a:2,b:1", split=name, split_seed=seed), LETTERS
      )[0]
    }
    for seed in (0, 1)
    for name in "ab"
  ]
  assert [len(part) for part in parts] == [2, 1, 2, 1]
  assert not parts[0] & parts[1] and not parts[2] & parts[3]
  with pytest.raises(DataError, match="no records are left"):
    dataset.records(rated(min_words=9), LETTERS)


def test_comparisons_of_one_prompt_are_one_group(tmp_path):
  """What a held-out set must not share with the training set."""
  source = write(
    tmp_path / "pairs.jsonl",
    [
      {"prompt": "p", "chosen": "a", "rejected": "b"},
      {"prompt": "q", "chosen": "c", "rejected": "dd", "label": 0.25},
      {"prompt": "p", "chosen": "e", "rejected": "e"},  # equal: left out
      {"prompt": "p", "chosen": "f", "rejected": "g"},
    ],
  )
  found = dataset.comparisons(Data(source=source, max_length=9), LETTERS, 0)
  assert dict(found.dropped) == {"candidates are equal": 1}
  np.testing.assert_array_equal(found.groups, [[0], [1], [0]])
  np.testing.assert_array_equal(found.pairs, [[0, 1], [2, 3], [4, 5]])
  np.testing.assert_allclose(found.labels, [1.0, 0.25, 1.0])
  rows = [spell(row) for row in found.rows]
  assert rows[:4] == ["pa*<e>*", "pb*<e>*", "qc*<e>*", "qd*d*<e>*"]


def test_trap_35_groups_are_of_prompts_before_they_are_cut(tmp_path):
  """One question behind two answers of other lengths is one question."""
  source = write(
    tmp_path / "pairs.jsonl",
    [
      {"prompt": "abcdef", "chosen": "a", "rejected": "b"},
      {"prompt": "abcdef", "chosen": "aaa", "rejected": "b"},
      {"prompt": "abcdef ", "chosen": "a", "rejected": "c"},
      {"prompt": "xyzdef", "chosen": "a", "rejected": "b"},
    ],
  )
  found = dataset.comparisons(Data(source=source, max_length=5), LETTERS, 0)
  assert spell(found.rows[0]) == "defa*<e>*" == spell(found.rows[6])
  np.testing.assert_array_equal(found.groups, [[0], [0], [0], [1]])
  assert found.dropped == {"prompts cut to fit max_length": 4}


def test_mismatched_answers_are_to_other_whole_prompts():
  """Rows 0 to 2 are linked by what is shown or by what was asked."""
  shown = ["ab", "b", "b", "cd", "d"]
  rows = [
    {
      "tokens": np.array([*map(ord, text), 2], np.int32),
      "loss_mask": np.array([0.0] * len(text) + [1.0], np.float32),
    }
    for text in shown
  ]
  numbers = judged.prompt_numbers(rows, np.array([7, 7, 3, 1, 4]))
  assert numbers[0] == numbers[1] == numbers[2]
  assert len({numbers[0], numbers[3], numbers[4]}) == 3


def test_comparisons_of_rated_texts(rated):
  """The better rated wins; a text is in the groups of all its pairs."""
  found = dataset.comparisons(rated(pairs=60, ties="drop"), LETTERS, 0)
  assert len(found.pairs) == 60 and len(found.rows) == 4
  np.testing.assert_array_equal(found.groups, found.pairs)
  assert np.all(found.pairs[:, 0] != found.pairs[:, 1])
  means = np.array([2.5, -1.0, 0.5, 2.0])
  for (first, second), label in zip(found.pairs, found.labels, strict=True):
    if 1 in (first, second):  # rated worst by all
      assert label == float(second == 1)
  predicted = means[found.pairs[:, 0]] > means[found.pairs[:, 1]]
  assert found.ceiling == np.mean(predicted == (found.labels > 0.5))


def numbered(count):
  """Returns comparisons of rows whose tokens and labels say which they are."""
  rows = [
    {
      "tokens": np.array([n, 50 + n], np.int32),
      "loss_mask": np.array([0.0, 1.0], np.float32),
    }
    for n in range(2 * count)
  ]
  return dataset.Comparisons(
    rows=rows,
    pairs=np.arange(2 * count, dtype=np.int32).reshape(count, 2),
    labels=np.arange(count, dtype=np.float32) / 100,
    groups=np.arange(count, dtype=np.int32)[:, None],
    dropped=None,
    ceiling=None,
  )


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_batch_holds_the_rows_and_labels_of_its_comparisons(is_cached):
  data = numbered(9)
  cached = np.arange(18.0)[:, None] if is_cached else None
  batch = features.collate(
    [7, 0, 3], data=data, features=cached, width=4, pad_id=2
  )
  np.testing.assert_allclose(batch.label, [0.07, 0.0, 0.03], rtol=1e-6)
  np.testing.assert_array_equal(batch.weight, [1.0, 1.0, 1.0])
  wanted = [[14, 15], [0, 1], [6, 7]]
  if is_cached:
    np.testing.assert_array_equal(batch.features[..., 0], wanted)
    return
  np.testing.assert_array_equal(batch.tokens[..., 0], wanted)
  np.testing.assert_array_equal(batch.tokens[1], [[0, 50, 2, 2], [1, 51, 2, 2]])
  np.testing.assert_array_equal(batch.loss_mask[1, 0], [0, 1, 0, 0])
  np.testing.assert_array_equal(batch.valid_mask[1, 0], [1, 1, 0, 0])


def test_what_is_held_out_depends_on_the_seed_alone():
  data = numbered(20)
  held = {}
  for seed in (0, 1, 2):
    train, out = features.split_heldout(data, 0.25, seed)
    assert len(out.pairs) == 5 and len(train.pairs) == 15
    together = np.concatenate([train.labels, out.labels])
    np.testing.assert_array_equal(np.sort(together), data.labels)
    for part in (train, out):
      np.testing.assert_allclose(part.pairs[:, 0] / 200, part.labels, rtol=1e-6)
    held[seed] = tuple(out.labels)
  assert len(set(held.values())) == 3
  again = features.split_heldout(data, 0.25, 1)[1]
  assert tuple(again.labels) == held[1]
