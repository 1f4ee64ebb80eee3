"""A run that a CPU may lack the memory for says so before it compiles."""

import math

import pytest

from rlhf_jax import pipelines
from rlhf_jax.programs import room
from tests.pipelines import tiny_runs


@pytest.mark.parametrize("remat", [False, True])
def test_a_run_that_may_be_killed_says_so(
  files, tmp_path, monkeypatch, capsys, remat
):
  config = tiny_runs.sft_config(files, "full")
  config.model.remat = remat
  monkeypatch.setattr(room, "free_bytes", lambda: 1000.0)
  pipelines.run(config, tmp_path / "run")
  [line] = [x for x in capsys.readouterr().out.splitlines() if "may kill" in x]
  assert "warning: at most " in line and "update 0.0 GiB" in line
  assert "raise microbatches (loss." in line and "no two in one" in line
  assert ("model.remat=True" in line) != remat


def test_what_is_free(tmp_path, monkeypatch):
  memory, limit, used = (tmp_path / name for name in ("a", "b", "c"))
  monkeypatch.setattr(room, "_MEMORY", memory)
  monkeypatch.setattr(room, "_LIMIT", limit)
  monkeypatch.setattr(room, "_USED", used)
  assert math.isinf(room.free_bytes())  # a system that does not tell
  memory.write_text("MemTotal: 9000 kB\nMemAvailable:    2048 kB\n")
  assert room.free_bytes() == 2048 * 1024
  limit.write_text("max\n")
  used.write_text("5000\n")
  assert room.free_bytes() == 2048 * 1024
  limit.write_text("6000\n")
  assert room.free_bytes() == 1000
