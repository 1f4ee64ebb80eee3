"""What was read: recorded for the stage that runs, and for no other."""

import json

import numpy as np
import pytest

from rlhf_jax.data import statistics
from rlhf_jax.schema import UserError


def test_a_summary_by_hand():
  assert statistics.summary([3, 5, 4, 4]) == {
    "mean": 4.0,
    "median": 4.0,
    "p95": pytest.approx(4.85),
    "max": 5,
    "edges": [3, 4, 5, 6],
    "counts": [1, 2, 1],
  }
  wide = statistics.summary(range(100))
  assert wide["edges"] == list(range(0, 101, 5)) and wide["counts"] == [5] * 20
  ragged = statistics.summary([0, 40])  # 41 values in bins of 3
  assert ragged["edges"][-1] == 42 and sum(ragged["counts"]) == 2
  assert statistics.summary([7])["edges"] == [7, 8]


def test_lengths_of_rows_and_pairs():
  rows = [
    {"tokens": np.arange(n), "loss_mask": np.arange(n) >= n - m}
    for n, m in ((5, 2), (4, 3))
  ]
  found = statistics.of_rows(rows)
  assert found == {"all": [5, 4], "trained on": [2, 3]}
  pairs = np.array([[0, 1], [1, 0], [0, 0]])
  assert statistics.of_pairs(rows, pairs) == {
    "preferred": [2, 3, 2],
    "other": [3, 2, 2],
  }
  assert statistics.of_pairs(rows, pairs[:, :1]) == {"answer": [2, 3, 2]}


def test_each_stage_records_its_own(tmp_path):
  inner = tmp_path / "inner"
  inner.mkdir()
  statistics.add("nobody", "x", 1, {}, {})  # no one records
  with statistics.recording(tmp_path):
    statistics.add("a", "a.jsonl", 2, {"cut": 1}, {"prompt": [1, 2]})
    with statistics.recording(inner):
      statistics.add("b", "b.jsonl", 1, {}, {"prompt": [], "all": [3]})
    statistics.add("a", "a.jsonl", 3, {}, {})  # read again: replaced
  with statistics.recording(None):
    statistics.add("c", "x", 1, {}, {})
  assert statistics.read(tmp_path) == {
    "a": {"source": "a.jsonl", "kept": 3, "dropped": {}, "lengths": {}}
  }
  found = statistics.read(inner)
  assert set(found) == {"b"} and set(found["b"]["lengths"]) == {"all"}


def test_no_folder_is_made_and_what_ends_badly_stays_written(tmp_path):
  with statistics.recording(tmp_path / "no"):
    statistics.add("a", "x", 1, {}, {})
  assert not (tmp_path / "no").exists()
  with pytest.raises(RuntimeError), statistics.recording(tmp_path):
    statistics.add("a", "x", 1, {}, {})
    raise RuntimeError
  assert set(statistics.read(tmp_path)) == {"a"}
  assert [path.name for path in tmp_path.iterdir()] == [statistics.FILE]


@pytest.mark.parametrize(
  "value", [{"a": 1}, {"a": {"source": "x"}}, {"a": dict.fromkeys("xyzw", 1)}]
)
def test_a_damaged_file_is_refused(tmp_path, value):
  (tmp_path / statistics.FILE).write_text(json.dumps(value))
  with pytest.raises(UserError, match="data.json: 'a' is .* Delete it"):
    statistics.read(tmp_path)


def test_an_older_stage_says_nothing(tmp_path):
  assert statistics.read(tmp_path) == {}
