"""Labels that are wrong on purpose: how many, which, and where they are not."""

import json
import types

import numpy as np
import pytest

from rlhf_jax.data import comparison_rows, dataset, judged, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.programs import features
from rlhf_jax.schema import FieldError
from tests.letters import Letters

LETTERS = Letters()


def source(folder, count=20):
  """Returns a file of comparisons; every better answer is a or an a before."""
  rows = [
    {"prompt": f"{'bcdefg'[n % 6]}{n}", "chosen": "aa", "rejected": "b"}
    for n in range(count)
  ]
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def load(folder, load=dataset.comparisons, **data):
  settings = types.SimpleNamespace(
    data=Data(source=source(folder), max_length=16, **data),
    heldout=Data(),
    heldout_fraction=0.25,
    seed=3,
  )
  return features.load_comparisons(settings, LETTERS, "run", load)


def longer_first(found):
  lengths = np.array([len(row["tokens"]) for row in found.rows])
  return lengths[found.pairs[:, 0]] > lengths[found.pairs[:, 1]]


def test_the_share_that_trains_is_wrong_and_what_is_held_out_is_right(
  tmp_path, capsys
):
  train, held = load(tmp_path, flips=0.4)
  assert longer_first(held).all() and len(held.pairs) == 5
  assert (~longer_first(train)).sum() == 6 and len(train.pairs) == 15
  assert "data.flips=0.4: 6 of 15 comparisons" in capsys.readouterr().out
  again, _ = load(tmp_path, flips=0.4)
  np.testing.assert_array_equal(again.pairs, train.pairs)
  usual, _ = load(tmp_path)
  assert longer_first(usual).all()
  np.testing.assert_array_equal(np.sort(usual.pairs), np.sort(train.pairs))


def test_judged_answers_change_their_labels(tmp_path):
  train, held = load(tmp_path, judged.load, flips=1.0)
  usual, same = load(tmp_path, judged.load)
  np.testing.assert_array_equal(train.labels, 1.0 - usual.labels)
  np.testing.assert_array_equal(held.labels, same.labels)


def test_sentences_of_rated_pairs_go_with_them():
  found = comparison_rows.Comparisons(
    rows=[{}] * 4,
    pairs=np.array([[0, 1], [2, 3]]),
    labels=np.array([1.0, 0.5], np.float32),
    groups=np.array([[5, 6], [7, 8]]),
    dropped=None,
    ceiling=None,
  )
  turned, count = comparison_rows.flipped(found, 1.0, 0)
  assert count == 1  # a tie has no wrong side
  np.testing.assert_array_equal(turned.pairs, [[1, 0], [2, 3]])
  np.testing.assert_array_equal(turned.groups, [[6, 5], [7, 8]])
  np.testing.assert_array_equal(turned.labels, found.labels)
  np.testing.assert_array_equal(found.pairs, [[0, 1], [2, 3]])  # a copy


def test_scores_go_to_the_wrong_answers():
  """So losses that read scores, and margins of them, learn from the mistake."""
  found = comparison_rows.Comparisons(
    rows=[{}] * 4,
    pairs=np.array([[0, 1], [2, 3]]),
    labels=np.array([1.0, 0.0], np.float32),
    groups=np.array([[5], [6]]),
    dropped=None,
    ceiling=None,
    targets=np.array([[9.0, 1.0], [3.0, 7.0]], np.float32),
  )
  turned, count = comparison_rows.flipped(found, 1.0, 0)
  score = dict(zip(turned.pairs.ravel(), turned.targets.ravel(), strict=True))
  assert count == 2 and score == {0: 1.0, 1: 9.0, 2: 7.0, 3: 3.0}
  towards = np.sign(turned.labels - 0.5)  # the margin is still for who won
  assert ((turned.targets[:, 0] - turned.targets[:, 1]) * towards > 0).all()


def test_what_cannot_be_wrong_is_refused(tmp_path):
  whole = comparison_rows.Comparisons(
    rows=[{}] * 3,
    pairs=np.array([[0, 1, 2]]),
    labels=np.ones(1, np.float32),
    groups=np.zeros((1, 1), np.int32),
    dropped=None,
    ceiling=None,
    ranks=np.array([[0.0, 1.0, 2.0]]),
  )
  with pytest.raises(FieldError, match="^flips=0.5 with rankings='whole'"):
    comparison_rows.flipped(whole, 0.5, 0)
  with pytest.raises(FieldError, match="flips=1.5: must be in"):
    Data(flips=1.5)
  heldout = Data(source="x.jsonl", flips=0.1)
  with pytest.raises(FieldError, match="heldout.flips=0.1: nothing reads it"):
    unread.check(heldout, "heldout", unread.COMPARISONS)
  parser = tmp_path / "mine.py"
  parser.write_text("def parse(record, where): ...\n")
  own = Data(source="x.jsonl", format=f"{parser}:parse", flips=0.1)
  with pytest.raises(FieldError, match="ptx.flips=0.1: nothing reads it"):
    unread.check(own, "ptx", unread.DEMONSTRATIONS)
  unread.check(heldout, "data", unread.COMPARISONS, trains=True)
