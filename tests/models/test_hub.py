"""Models by their name on the hub, against a hub on this machine."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from ml_collections import ConfigDict

from rlhf_jax import config_tree
from rlhf_jax.models import hub, huggingface, model_sources, pretrained
from rlhf_jax.models.pretrained import Model
from rlhf_jax.pipelines import pinned
from rlhf_jax.schema import FieldError, UserError
from tests.fake_hub import FakeHub, commit_of
from tests.tiny import tiny_tokenizer_json

ORACLES = Path(__file__).parents[1] / "oracles"
NAME = "someone/tiny-llama"


def set_hub(monkeypatch, address, cache):
  monkeypatch.setattr(constants, "ENDPOINT", address)
  template = address + "/{repo_id}/resolve/{revision}/{filename}"
  for module in (constants, file_download):
    if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
      monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def go_offline(monkeypatch):
  """As $HF_HUB_OFFLINE does; older versions read it once a session."""
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  getattr(_http, "reset_sessions", lambda: None)()


@pytest.fixture
def served(tmp_path, monkeypatch):
  """A hub with one model in two revisions; the working folder is empty."""
  here = tmp_path / "here"
  here.mkdir()
  monkeypatch.chdir(here)
  new = Path(shutil.copytree(ORACLES / "tiny_llama", tmp_path / "new"))
  (new / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
  tiny_tokenizer_json(new)
  for name in ("pytorch_model.bin", "consolidated.safetensors", "x.gguf"):
    (new / name).write_bytes(b"not to be fetched")
  old = Path(shutil.copytree(ORACLES / "tiny_llama_untied", tmp_path / "old"))
  with FakeHub() as server:
    set_hub(monkeypatch, server.address, tmp_path / "cache")
    server.add(NAME, {"main": new, "v1": old})
    hub.pin.cache_clear()
    yield server
    monkeypatch.undo()
    getattr(_http, "reset_sessions", lambda: None)()
    hub.pin.cache_clear()


def files_of(server):
  return {path.split("/")[-1] for path in server.asked if "/resolve/" in path}


def test_a_name_is_pinned_and_only_what_is_read_is_fetched(served, tmp_path):
  commit = commit_of(tmp_path / "new")
  assert hub.pin(NAME) == f"{NAME}@{commit}"
  folder = model_sources.locate(NAME)
  found = {file.name for file in folder.iterdir()}
  assert found == {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  asked = files_of(served)
  assert not any(x.endswith((".bin", ".gguf")) for x in asked)
  assert "consolidated.safetensors" not in asked
  _, config = huggingface.read_config(ORACLES / "tiny_llama")
  assert model_sources.read_weights(folder)[0] == config
  assert pretrained.read_tokenizer(Model(), folder).named_ends == (1, 2)


def test_revisions_and_shards(served, tmp_path, monkeypatch):
  new = tmp_path / "new"
  index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
  (new / "model.safetensors.index.json").write_text(json.dumps(index))
  (new / "part-1.safetensors").write_bytes(b"1")
  (new / "part-2.safetensors").write_bytes(b"2")
  assert (hub.fetch(NAME) / "part-2.safetensors").read_bytes() == b"2"
  assert "model.safetensors" not in files_of(served)
  old = tmp_path / "old"
  assert hub.pin(f"{NAME}@v1") == f"{NAME}@{commit_of(old)}"
  served.asked.clear()
  architecture = model_sources.read_architecture(f"{NAME}@{commit_of(old)}")
  assert architecture == huggingface.read_config(old)[1]
  assert not files_of(served)  # pinning has brought its config.json


def test_what_is_in_the_cache_needs_no_network(served, tmp_path, monkeypatch):
  commit = hub.pin(NAME).partition("@")[2]
  folder = hub.fetch(NAME)
  (tmp_path / "new" / "README.md").write_text("changed")  # the branch moves
  hub.pin.cache_clear()
  moved = hub.pin(NAME)
  assert moved != f"{NAME}@{commit}"
  go_offline(monkeypatch)
  served.asked.clear()
  assert hub.fetch(f"{NAME}@{commit}") == folder
  assert not served.asked
  with pytest.raises(FieldError, match="cannot be reached .*does not hold all"):
    hub.fetch(moved)  # only its config.json was fetched


def test_a_branch_of_the_cache_is_read_and_said_without_a_network(
  served, tmp_path, monkeypatch, capsys
):
  before = hub.pin(NAME)
  set_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
  hub.pin.cache_clear()
  assert hub.pin(NAME) == before
  assert "cannot be reached" in capsys.readouterr().out
  go_offline(monkeypatch)
  hub.pin.cache_clear()
  assert hub.pin(NAME) == before
  with pytest.raises(
    FieldError, match="cannot be reached .OfflineMode.*HF_HUB"
  ):
    hub.pin("someone/else")


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("someone/nothing", "has no such model, or it is private, and no folder"),
    (NAME + "@v2", "no revision 'v2' of it. Give a branch"),
    (NAME + "@" + 40 * "a", "no revision 'aaaa"),
    (
      "someone/gated",
      "ask for consent .*agree at http.*someone/gated.*HF_TOKEN",
    ),
    ("someone/bin", "no model.safetensors at .*safetensors are read"),
    ("someone/empty", "has no config.json at main"),
  ],
)
def test_what_cannot_be_had_is_said(served, tmp_path, source, words):
  (tmp_path / "empty").mkdir()
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "config.json").write_text("{}")
  for name in ("gated", "bin", "empty"):
    folder = tmp_path / ("bin" if name == "gated" else name)
    served.add(f"someone/{name}", {"main": folder})
  served.gated.add("someone/gated")
  with pytest.raises(FieldError, match=f"^model.source='{source}': .*{words}"):
    hub.fetch(source)


def test_what_is_a_name_and_what_a_path(served, tmp_path, monkeypatch):
  is_name = lambda text: hub.parse(text) is not None  # noqa: E731
  assert hub.parse("a/b") == ("a/b", "main")
  assert hub.parse("a/b-1.5_x@refs/pr/3") == ("a/b-1.5_x", "refs/pr/3")
  assert not any(
    map(is_name, ["a", "a/b/c", "./a", "../a", "~/a", "/a/b", "a/b.gguf", "a/"])
  )
  Path("runs").mkdir()
  assert not is_name("runs/sfft") and is_name("runs/sfft@main")
  with pytest.raises(FieldError, match="no such file or folder.*org/name@rev"):
    model_sources.check_source("runs/sfft")
  Path(NAME).mkdir(parents=True)
  assert not is_name(NAME)  # a folder of that name wins
  assert model_sources.locate(NAME) == Path(NAME)
  assert not served.asked


def test_without_the_library_the_extra_is_named(served, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"model.source='someone.*\[hub\]"):
    hub.pin(NAME)


def test_a_run_goes_on_with_the_commit_that_it_began_with(served, tmp_path):
  def config():
    model = Model(source=NAME)
    sections = {"seed": 1, "sft": {"model": config_tree.tree(model)}}
    return ConfigDict(sections | {"model": config_tree.tree(model)})

  record, first = tmp_path / "config.json", config()
  found = pinned.pin(first, record)
  assert found == {NAME: f"{NAME}@{commit_of(tmp_path / 'new')}"}
  assert first.model.source == first.sft.model.source == found[NAME]
  record.write_text(json.dumps({"pinned": found}))
  (tmp_path / "new" / "README.md").write_text("changed")  # the branch moves
  hub.pin.cache_clear()
  again = config()
  assert pinned.pin(again, record) == found
  assert again.model.source == found[NAME]
  other = config()
  assert pinned.pin(other, tmp_path / "none.json") != found
