"""SFT on rows that are on disk trains as on rows in memory."""

import json

import pytest

from rlhf_jax import pipelines
from tests.pipelines import tiny_runs


def losses(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [row["sft/loss"] for row in rows if "sft/loss" in row]


@pytest.mark.slow
def test_losses_are_those_of_rows_in_memory(files, sft_full, tmp_path):
  config = tiny_runs.sft_config(files, "full")
  config.data.update(store="disk", near=0.0)
  config.validation.update(store="disk", near=0.0)
  info = pipelines.run(config, tmp_path / "run")
  wanted = json.loads((sft_full / "stage.json").read_text())
  assert info["validation_loss"] == wanted["validation_loss"]
  assert losses(tmp_path / "run") == losses(sft_full)
