"""benchmarks/device.sh: every part gives numbers, whatever the others do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device import __main__ as device
from benchmarks.device import parts, steps
from rlhf_jax.models import shapes

ROOT = Path(__file__).parent.parent
HOUR = 3600.0  # the machine of a test may be slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("device")
  command = ["bash", "benchmarks/device.sh", "--tiny", f"--out={folder}"]
  done = subprocess.run(
    [*command, f"--seconds={HOUR}"],
    cwd=ROOT,
    env=os.environ
    | {"PYTHON": sys.executable}
    | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return json.loads((folder / "device.json").read_text())


@pytest.mark.slow
def test_all_parts_of_the_tiny_form_give_numbers(tiny):
  assert tiny["environment"]["platform"] == "cpu"
  assert list(tiny["parts"]) == list(device.PARTS)
  for name, part in tiny["parts"].items():
    assert part["status"] == "done" and part["rows"], name
    for row in part["rows"]:
      assert "failed" not in row and row.get("passed", True), (name, row)
      numbers = [x for x in row.values() if isinstance(x, int | float)]
      assert numbers and all(x >= 0 for x in numbers), (name, row)


@pytest.mark.slow
def test_shares_are_of_the_limits_of_the_same_run(tiny):
  rows = {name: part["rows"] for name, part in tiny["parts"].items()}
  assert all(0 < row["share_of_bandwidth"] < 1 for row in rows["decode"])
  assert all(0 < row["mfu"] < 1 for row in rows["train"] + rows["flags"])


def test_a_part_without_time_does_not_run(tmp_path):
  found = device.run_part("limits", tmp_path, 1.0, True)
  assert found["status"] == "no time left" and not list(tmp_path.iterdir())


def test_a_case_that_raises_is_a_line_and_no_end():
  found = []
  with parts.noted(lambda **row: found.append(row), model="small"):
    raise RuntimeError("no\nmemory")
  assert found == [{"model": "small", "failed": "RuntimeError: no memory"}]


def test_half_a_line_is_left_out(tmp_path):
  path = tmp_path / "part.jsonl"
  assert device.read_lines(path) == []
  path.write_text('{"a": 1}\n{"b')
  assert device.read_lines(path) == [{"a": 1}]


def test_tables_have_a_column_for_every_fact():
  part = {"status": "done", "seconds": 2.0}
  part["rows"] = [{"a": 1234.5}, {"a": 0.5, "b": "x|y"}]
  results = {"environment": {"device": "X"}, "parts": {"train": part}}
  text = device.markdown(results)
  assert text.startswith("# X\n")
  assert "| a | b |" in text and "| 1,234 |  |" in text
  assert "| 0.5 | x/y |" in text


def test_bytes_and_flops_by_hand():
  shape = steps.sizes("gpu", is_tiny=False)
  model = shape.models["1b"]
  assert model.n_layers == shapes.named("llama32_1b").n_layers
  weights = 2 * 1.2358e9
  slots = 8 * 192 * 16 * 2 * 8 * 64 * 2
  assert steps.token_bytes(model, 8, shape) == pytest.approx(
    weights + slots, rel=1e-3
  )
  tokens = 4 * 1024
  needed = 6 * 1.2358e9 * tokens + 3 * 4 * 16 * tokens * 1024 * 2048
  assert steps.step_flops(model, 4, 1024) == pytest.approx(needed, rel=1e-3)
