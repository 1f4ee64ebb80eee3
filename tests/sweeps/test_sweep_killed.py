"""Eight runs of one sweep, which is ended twice and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines import tiny_runs

ROOT = Path(__file__).parent.parent.parent
STEPS = 6
EXPERIMENT = """
from pathlib import Path
from rlhf_jax import sweeps
from tests.pipelines import tiny_runs

def get_config():
  files = tiny_runs.Files(root=Path({root!r}), **{files!r})
  config = tiny_runs.sft_config(files, "full")
  config.validation.source = config.sample_prompts.source = ""
  config.samples = 0
  config.schedule.update(steps={steps}, save_every=1)
  return config

def sweep():
  rates = [1e-3, 1e-2, 1e-1, 1.0]
  return sweeps.grid({{"optimizer.learning_rate": rates}})
"""


@pytest.mark.slow
def test_a_sweep_of_eight_that_is_killed_twice(tmp_path):
  files = vars(tiny_runs.make_files(tmp_path)) | {}
  del files["root"]
  experiment = tmp_path / "mine.py"
  experiment.write_text(
    EXPERIMENT.format(root=str(tmp_path), files=files, steps=STEPS)
  )
  folder = tmp_path / "sweep"
  own = {"PYTHONPATH": str(ROOT), "RLHF_JAX_CACHE": str(tmp_path / "cache")}
  rest = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

  def start():
    return subprocess.Popen(
      [
        *[sys.executable, "-m", "rlhf_jax.sweep", f"--config={experiment}"],
        *[f"--workdir={folder}", "--jobs=2", "--seeds=2"],
      ],
      cwd=ROOT,
      env=rest | own,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def await_rows(process, *names):
    while not any((folder / x / "metrics.jsonl").exists() for x in names):
      assert process.poll() is None, process.communicate()[0]
      time.sleep(0.02)

  def states():
    paths = sorted(folder.glob("0??.json"))
    return {p.stem: json.loads(p.read_text()) for p in paths}

  first = start()
  await_rows(first, "001", "002")
  first.send_signal(signal.SIGTERM)
  printed = first.communicate()[0]
  assert first.returncode == 75, printed
  assert "To go on, run the same command" in printed
  assert "running" not in {x["status"] for x in states().values()}

  second = start()
  await_rows(second, "004", "005")
  second.kill()
  second.communicate()
  left = {k: x for k, x in states().items() if x["status"] == "running"}
  assert left

  third = start()
  printed = third.communicate()[0]
  assert third.returncode == 0, printed
  found = states()
  assert [x["status"] for x in found.values()] == ["done"] * 8
  assert all(found[name]["starts"] == left[name]["starts"] + 1 for name in left)
  for name in found:
    rows = tiny_runs.rows_of(folder / name)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), name
  table = (folder / "results.jsonl").read_text().splitlines()
  settings = [json.loads(line) for line in table]
  assert [x["runs"] for x in settings] == [2] * 4
  assert settings[0]["metric_name"] == "sft/loss"
  means = [x["mean"] for x in settings]
  assert means == sorted(means)
  losses = {
    name: tiny_runs.rows_of(folder / name)[-1]["sft/loss"] for name in found
  }
  for x in settings:
    own = [losses[name] for name in x["trials"].split()]
    assert x["mean"] == pytest.approx(sum(own) / 2)
  assert (folder / "results.png").stat().st_size > 5000
  print(printed)
