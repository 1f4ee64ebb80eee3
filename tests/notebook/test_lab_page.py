"""docs/lab.md runs as it is written, with a tiny model for the asset."""

import functools
import json
import re
from pathlib import Path

import jax
import pytest

from rlhf_jax.data import assets
from rlhf_jax.parallel import mesh as mesh_lib
from tests.pipelines import tiny_runs

PAGE = Path(__file__).parents[2] / "docs" / "lab.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def tiny_asset(compile_cache, tmp_path, monkeypatch):
  """Puts a tiny model where assets are fetched from; works in a new folder."""
  del compile_cache
  folder = Path(tiny_runs.make_model(tmp_path / "model"))
  config = json.loads((folder / "config.json").read_text())
  config["max_position_embeddings"] = 256  # no weight depends on it
  (folder / "config.json").write_text(json.dumps(config))
  monkeypatch.setattr(assets, "fetch", lambda name: folder)
  one = functools.partial(mesh_lib.make_mesh, devices=jax.devices()[:1])
  monkeypatch.setattr(mesh_lib, "make_mesh", one)  # as a notebook has it
  monkeypatch.chdir(tmp_path)
  return tmp_path


def run_cells(blocks):
  """Runs cells; the matrices of the tiny model have a rank of 8 at most."""
  names = {"__name__": "page"}
  for block in blocks:
    block = block.replace("lora_rank=16", "lora_rank=4")
    exec(compile(block, str(PAGE), "exec"), names)


def test_the_first_cell_runs(tiny_asset, capsys):
  [first, *_] = BLOCK.findall(PAGE.read_text())
  assert first.count("\n") < 25
  run_cells([first])
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[-3:]] == ["0", "1", "2"]


@pytest.mark.slow
def test_every_cell_of_the_page_runs(tiny_asset, capsys):
  blocks = BLOCK.findall(PAGE.read_text())
  assert len(blocks) == 8
  run_cells(blocks)
  assert len(capsys.readouterr().out.splitlines()) >= 8
  exported = {path.name for path in (tiny_asset / "exported").iterdir()}
  assert {"config.json", "model.safetensors", "README.md"} <= exported
