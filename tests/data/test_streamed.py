"""Rows on disk are those in memory, without the records in memory."""

import json
import os
import tracemalloc

import numpy as np
import pytest

from rlhf_jax.data import (
  batches,
  dataset,
  disk_rows,
  files,
  layout,
  look,
  overlap,
  statistics,
  streamed,
)
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import FieldError
from tests.letters import Letters

LETTERS = Letters()
ON_DISK = {"format": "demonstration", "near": 0.0, "store": "disk"}
IN_MEMORY = ON_DISK | {"store": "memory"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def rows(count):
  return [
    {"prompt": f"ask {i % 7}", "response": "r" * (1 + i % 5)}
    for i in range(count)
  ]


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
  "settings", [{}, {"limit": 9}, {"duplicates": "exact"}, {"max_length": 9}]
)
def test_rows_and_counts_are_those_of_memory(tmp_path, kind, settings):
  records = [*rows(40), {"prompt": "p", "response": " "}]
  path = tmp_path / f"d.{kind}"
  if kind == "jsonl":
    write(path, records)
  elif kind == "json":
    path.write_text(json.dumps(records))
  elif kind == "csv":
    lines = [f"{r['prompt']},{r['response']}" for r in records]
    path.write_text("\n".join(["prompt,response", *lines]) + "\n")
  else:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), path)
  own = write(tmp_path / "own.jsonl", [{"prompt": "<e>", "response": "x"}])
  held = write(tmp_path / "held.jsonl", [{"prompt": "ask 3"}])
  common = {"source": f"{path},{own}", "exclude": held} | settings
  stored, dropped = dataset.demonstrations(Data(**ON_DISK | common), LETTERS)
  kept, counted = dataset.demonstrations(Data(**IN_MEMORY | common), LETTERS)
  assert len(stored) == len(kept)
  if "limit" not in settings:  # nothing is read behind it
    assert dropped == counted
  for mine, other in zip(stored, kept, strict=True):
    np.testing.assert_array_equal(mine["tokens"], other["tokens"])
    np.testing.assert_array_equal(mine["loss_mask"], other["loss_mask"])
    assert mine["loss_mask"].dtype == np.float32
  np.testing.assert_array_equal(stored.sizes, statistics.sizes_of(kept))
  assert layout.choose(stored, 4) == layout.choose(kept, 4)
  assert (
    len(stored[1:3]) == 2 and (stored[-1]["tokens"] == kept[-1]["tokens"]).all()
  )


def loader(data):
  found, _ = dataset.demonstrations(data, LETTERS)
  return batches.make_loader(
    found,
    3,
    seed=1,
    collate=lambda rows: [row["tokens"].tolist() for row in rows],
  )


def test_batches_are_the_same_and_a_run_goes_on_where_it_was(tmp_path):
  source = write(tmp_path / "d.jsonl", rows(20))
  data = Data(source=source, **ON_DISK)
  one, other = loader(data), loader(Data(source=source, **IN_MEMORY))
  assert [next(one) for _ in range(12)] == [next(other) for _ in range(12)]
  state = one.get_state()
  later = [next(one) for _ in range(8)]
  streamed._load.cache_clear()  # another process reads the files again
  resumed = loader(data)
  resumed.set_state(state)
  assert [next(resumed) for _ in range(8)] == later
  changed = write(tmp_path / "e.jsonl", [*rows(19), rows(30)[-1]])
  with pytest.raises(ValueError, match="^resume: the saved data position"):
    loader(Data(source=changed, **ON_DISK)).set_state(state)


def test_records_are_not_in_memory_together(tmp_path, cache):
  count, size = 400, 20_000
  path = tmp_path / "d.jsonl"
  with path.open("w") as file:
    for i in range(count):
      text = json.dumps({"prompt": str(i), "response": "x" * size})
      file.write(text + "\n")
  data = Data(source=str(path), max_length=size + 10, **ON_DISK)
  tracemalloc.start()
  found, _ = dataset.demonstrations(data, LETTERS)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(found) == count
  assert peak < path.stat().st_size / 2  # of texts alone; tokens are 4 times it
  assert not list(cache.iterdir())  # the files have no name any more


def test_one_record_at_a_time_is_read_of_files(tmp_path):
  path = write(tmp_path / "d.jsonl", [{"a": 1}])
  with open(path, "a") as file:
    file.write("not json\n")
  found = files.each(tmp_path / "d.jsonl")
  assert next(found) == (f"{path}:1", {"a": 1})
  with pytest.raises(DataError, match="d.jsonl:2: not JSON"):
    next(found)


def test_what_repeats_and_is_shared_is_counted(tmp_path, capsys):
  train = write(
    tmp_path / "t.jsonl",
    [{"prompt": p, "response": "r"} for p in ("a", "b", "a", "c")],
  )
  held = write(
    tmp_path / "h.jsonl",
    [{"prompt": p, "response": "s"} for p in ("b", " a ", "d")],
  )
  data, other = (Data(source=x, **ON_DISK) for x in (train, held))
  for heldout in (other, Data(source=held, **IN_MEMORY)):
    overlap.say("sft", data, heldout, LETTERS)
    assert capsys.readouterr().out.splitlines() == [
      f"sft: WARNING: 1 of 4 records of {train} repeat an earlier one",
      f"sft: WARNING: 2 of 3 held-out records of {held} ask what is trained on "
      f"in {train}, so their numbers are not held out",
    ]
  overlap.say("sft", data, Data(), LETTERS)
  assert len(capsys.readouterr().out.splitlines()) == 1


def test_it_says_how_far_it_is(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(streamed, "EVERY_SECONDS", 0.0)
  source = write(tmp_path / "d.jsonl", rows(3))
  dataset.demonstrations(Data(source=source, **ON_DISK), LETTERS)
  assert f"reading {source}: 3 records" in capsys.readouterr().out


def test_the_command_looks_at_the_first_records(tmp_path, monkeypatch):
  monkeypatch.setattr(look, "MOST", 5)
  source = write(tmp_path / "d.jsonl", rows(9))
  found = look.take(Data(source=source, **ON_DISK), LETTERS)
  assert len(found.items) == 5
  assert any("store='disk'" in line for line in look.counts(found))


def test_a_full_disk_and_odd_masks_are_said(tmp_path, monkeypatch):
  row = {"tokens": np.ones(2, np.int32), "loss_mask": np.full(2, 0.5)}
  with pytest.raises(ValueError, match="Set store='memory'"):
    disk_rows.write([row], tmp_path)
  assert len(disk_rows.write([], tmp_path)) == 0
  with pytest.raises(IndexError):
    disk_rows.write([], tmp_path)[0]
  if os.geteuid():
    with pytest.raises(OSError):
      disk_rows.write([row], tmp_path / "no" / "\0")


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"near": 0.8}, "store='disk' with near=0.8: it would hold all records"),
    ({"source": "a,b", "weights": "1,2"}, "with weights='1,2'"),
    ({"pack": "all"}, "with pack='all': it would hold all rows"),
    ({"store": "tape"}, "store='tape'"),
  ],
)
def test_what_would_hold_all_in_memory_is_refused(settings, words):
  with pytest.raises(FieldError, match=words):
    Data(**ON_DISK | settings)


def test_other_records_than_demonstrations_are_refused(tmp_path):
  source = write(
    tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]
  )
  data = Data(source=source, **ON_DISK | {"format": "comparison"})
  with pytest.raises(DataError, match="p.jsonl:1: .* is for demonstrations"):
    dataset.demonstrations(data, LETTERS)
