"""Data sets by their name on the hub, against a hub on this machine."""

import json

import pytest
from huggingface_hub.utils import _http
from ml_collections import ConfigDict

from rlhf_jax import config_tree
from rlhf_jax.data import dataset, formats, hub_sources, sources
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.pipelines import pinned
from rlhf_jax.schema import FieldError
from tests.fake_hub import FakeHub, commit_of
from tests.letters import Letters
from tests.models.test_hub import go_offline, set_hub

NAME = "someone/pairs"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/a-*.jsonl
  - split: test
    path: [data/b.jsonl]
- config_name: small
  data_files: small.jsonl
---
# Pairs
"""


def rows(*prompts):
  records = ({"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts)
  return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def served(tmp_path, monkeypatch):
  """A hub with one data set in two revisions."""
  new, old = tmp_path / "new", tmp_path / "old"
  for folder in (new / "data", old / "en"):
    folder.mkdir(parents=True)
  (new / "README.md").write_text(CARD)
  (new / "data" / "a-1.jsonl").write_text(rows("one", "two"))
  (new / "data" / "a-2.jsonl").write_text(rows("three"))
  (new / "data" / "b.jsonl").write_text(rows("held"))
  (new / "small.jsonl").write_text(rows("small"))
  (new / "pairs.py").write_text("raise AssertionError")
  (old / "en" / "train-00000-of-00001.jsonl").write_text(rows("en"))
  (old / "en" / "valid.jsonl").write_text(rows("val"))
  (old / "constrained.jsonl").write_text(rows("no"))
  monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "kept"))
  with FakeHub() as server:
    set_hub(monkeypatch, server.address, tmp_path / "cache")
    server.add(f"datasets/{NAME}", {"main": new, "v1": old})
    hub_sources.pin.cache_clear()
    yield server
    monkeypatch.undo()
    getattr(_http, "reset_sessions", lambda: None)()
    hub_sources.pin.cache_clear()


def prompts(source):
  return [record.prompt for record in formats.load(source, "comparison")]


@pytest.mark.parametrize(
  ("which", "wanted"),
  [
    (":train", ["one", "two", "three"]),
    (":default/train", ["one", "two", "three"]),
    (":test", ["held"]),
    (":small/train", ["small"]),
    (":data/a-2.jsonl", ["three"]),
    (":data/*.jsonl", ["one", "two", "three", "held"]),
    ("@v1:train", ["en"]),  # by the names of files: no card
    ("@v1:en/train", ["en"]),
    ("@v1:validation", ["val"]),
  ],
)
def test_a_split_or_a_pattern_names_files(served, which, wanted):
  assert prompts(f"hub:{NAME}{which}") == wanted


def test_only_what_is_read_is_fetched(served):
  prompts(f"hub:{NAME}:test")
  fetched = [path for path in served.asked if "/resolve/" in path]
  names = {path.rpartition("/")[2] for path in fetched}
  assert names == {"README.md", "b.jsonl"}


def test_parts_of_the_hub_mix_with_files(served, tmp_path):
  (tmp_path / "own.jsonl").write_text(rows("own"))
  source = f"hub:{NAME}:train,{tmp_path / 'own.jsonl'}"
  data = Data(source=source, weights="1,1")
  found, _ = dataset.records(data, Letters())
  assert sorted(r.prompt for r in found) == ["one", "own", "own", "two"] or (
    [r.prompt for r in found].count("own") == 2 and len(found) == 4
  )
  dataset.check_source(source, "data")
  with pytest.raises(DataError, match="is named twice"):
    sources.read_located(f"hub:{NAME}:train,hub:{NAME}:train")


def test_names_are_pinned_and_a_run_goes_on_with_its_commit(served, tmp_path):
  commit = commit_of(tmp_path / "new")
  own = str(tmp_path / "own.jsonl")
  (tmp_path / "own.jsonl").write_text(rows("own"))

  def config(source):
    tree = config_tree.tree(Data(source=source, exclude=f"hub:{NAME}:test"))
    return ConfigDict({"data": tree, "seed": 0})

  record = tmp_path / "config.json"
  given = config(f"hub:{NAME}:train,{own}")
  found = pinned.pin(given, record)
  source = f"hub:{NAME}@{commit}:train"
  assert given.data.source == f"{source},{own}"
  assert given.data.exclude == f"hub:{NAME}@{commit}:test"
  assert found[f"hub:{NAME}:train"] == source
  record.write_text(json.dumps({"pinned": found}))
  (tmp_path / "new" / "data" / "a-2.jsonl").write_text(rows("moved"))
  hub_sources.pin.cache_clear()
  later = config(f"hub:{NAME}:train,{own}")
  assert pinned.pin(later, record) == found
  assert later.data.source == f"{source},{own}"
  assert pinned.pin(later, record) == {}  # it is pinned
  assert hub_sources.pin(f"hub:{NAME}:train") != source


def test_what_is_in_the_cache_needs_no_network(
  served, tmp_path, monkeypatch, capsys
):
  assert prompts(f"hub:{NAME}:train") == ["one", "two", "three"]
  source = hub_sources.pin(f"hub:{NAME}:train")
  served.asked.clear()
  go_offline(monkeypatch)
  hub_sources.pin.cache_clear()
  assert prompts(source) == ["one", "two", "three"]
  assert not served.asked
  capsys.readouterr()
  assert prompts(f"hub:{NAME}:train") == ["one", "two", "three"]
  assert "cannot be reached" in capsys.readouterr().out
  with pytest.raises(DataError, match="cannot be reached.*--repo-type dataset"):
    prompts(f"hub:{NAME}:test")  # its file was never fetched
  with pytest.raises(FieldError, match="^data.source='hub:a/b:t': .*reached"):
    dataset.check_source("hub:a/b:t", "data")


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("hub:pairs:train", "is not written hub:ORG/NAME"),
    ("hub:someone/pairs", "is not written hub:ORG/NAME"),
    ("hub:someone/none:train", "has no such data set, or it is private. Corr"),
    (f"hub:{NAME}@v9:train", "no revision 'v9' of it.*datasets/someone/pairs"),
    (f"hub:{NAME}:dev", "is of 'dev'. There are default/test, default/train, "),
    (f"hub:{NAME}@v1:strain", "There are constrained.jsonl, en/train-00000"),
    (f"hub:{NAME}:pairs.py", "no file that is read here is of 'pairs.py'"),
  ],
)
def test_mistakes_are_named(served, source, words):
  with pytest.raises(ValueError, match=words):
    sources.read_located(source)


def test_a_gated_data_set_says_where_to_agree(served):
  served.gated.add(f"datasets/{NAME}")
  with pytest.raises(DataError, match=f"agree at .*/datasets/{NAME}"):
    prompts(f"hub:{NAME}:train")


def test_several_configurations_are_not_guessed_between(served, tmp_path):
  card = CARD.replace("default", "large")
  (tmp_path / "new" / "README.md").write_text(card)
  with pytest.raises(DataError, match="Write one of large/train, small/train"):
    prompts(f"hub:{NAME}:train")
