"""A run of a model of the hub goes on with the commit that it began with."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from rlhf_jax import main
from rlhf_jax.models import hub
from tests.fake_hub import FakeHub, commit_of
from tests.pipelines import tiny_runs

NAME = "someone/tiny"


@pytest.mark.slow
def test_a_branch_that_moves_moves_no_run(files, tmp_path, monkeypatch, capsys):
  served = Path(shutil.copytree(files.model, tmp_path / "model"))
  with FakeHub() as server:
    server.add(NAME, {"main": served})
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
      if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.pin.cache_clear()
    pinned = f"{NAME}@{commit_of(served)}"
    workdir = tmp_path / "run"

    def run(steps):
      config = tiny_runs.sft_config(files, "lora")
      config.model.source = NAME
      config.samples = 0
      config.sample_prompts.source = ""
      config.schedule.steps = steps
      hub.pin.cache_clear()
      return main.run(config, workdir)

    assert run(2) == 0
    record = json.loads((workdir / "config.json").read_text())
    assert record["pinned"] == {NAME: pinned}
    assert record["config"]["model"]["source"] == pinned
    stage = json.loads((workdir / "stage.json").read_text())
    assert stage["model_source"] == pinned
    (served / "README.md").write_text("The branch moves.")
    assert run(4) == 0, capsys.readouterr().err
    again = json.loads((workdir / "stage.json").read_text())
    assert (again["model_source"], again["steps"]) == (pinned, 4)
  hub.pin.cache_clear()
