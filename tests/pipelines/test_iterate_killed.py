"""configs/iterate.py from the command line, killed again and again.

The experiment file's own rounds on the tiny model. SIGKILL comes when a file of
the run appears: while answers are written, labels are given, the reward model
or the policy trains. The same command goes on and ends as one that nobody
stopped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines import tiny_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 240.0  # seconds until a process counts as hung
# A kill each, as soon as this file is there.
MOMENTS = (
  "sft/metrics.jsonl",
  "round_1/items.jsonl",
  "round_1/reward/checkpoints",
  "round_1/policy/checkpoints/1",
  "round_2/policy/metrics.jsonl",
)
PREFERENCE = """
def planted(texts):
  return [sum(map(ord, text)) / 100 for text in texts]
"""
EXPERIMENT = """
import runpy

from tests.pipelines import tiny_runs

FILES = tiny_runs.Files(**{files})


def get_config():
  config = runpy.run_path({path!r})["get_config"]()
  config.rounds.count = 2
  config.comparisons.update(count=20, test=4)
  config.labels.preference = {preference!r}
  prompts = {{"source": FILES.prompts, "format": "prompt", "max_length": 24}}
  config.sft = tiny_runs.sft_config(FILES, "lora")
  learner = tiny_runs.policy_config(FILES, "lora", "", "")
  learner.schedule.update(steps=3, save_every=1)
  learner.value.pretrain_steps = 0
  learner.force = True
  config.policy = learner
  config.sft.generate.temperature = learner.generate.temperature
  judge = tiny_runs.reward_config(FILES, "head", "", "")
  judge.data.source = ""
  judge.schedule.update(batch_size=8, steps=20, save_every=5)
  config.reward = judge
  for stage in (config.sampling, config.evaluation):
    stage.mesh.devices = 1
    stage.model.update(source=FILES.model, lora_rank=2)
    stage.prompts = type(stage.prompts)(learner.prompts.to_dict() | prompts)
    stage.generate.update(learner.generate.to_dict())
    stage.generate.num_samples = 1
    stage.batch_size = 8
  config.evaluation.count = 16
  return config
"""


def start(experiment, folder, cache):
  """Starts the command; returns the process."""
  log = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
  command = ["-m", "rlhf_jax.main", f"--config={experiment}"]
  return subprocess.Popen(
    [sys.executable, *command, f"--workdir={folder}"],
    cwd=ROOT,
    stdout=log,
    stderr=log,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "RLHF_JAX_CACHE": str(cache),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
  )


def wait(process, is_time=lambda: False):
  """Waits until the process ends, or it is time; returns its exit code."""
  end = time.monotonic() + PATIENCE
  while process.poll() is None and not is_time():
    assert time.monotonic() < end, "the process hangs"
    time.sleep(0.01)
  return process.poll()


def numbers(folder):
  """Returns what a run found, without seconds."""
  found = json.loads((folder / "summary.json").read_text())
  return {k: x for k, x in found.items() if "seconds" not in k}


def test_it_ends_as_a_run_that_nobody_killed(files, tmp_path):
  code = tmp_path / "preference.py"
  code.write_text(PREFERENCE)
  experiment = tmp_path / "experiment.py"
  fields = {k: str(x) for k, x in vars(files).items()}
  experiment.write_text(
    EXPERIMENT.format(
      files=fields,
      path=str(ROOT / "configs" / "iterate.py"),
      preference=f"{code}:planted",
    )
  )
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert wait(start(experiment, whole, tmp_path / "cache")) == 0
  kills = 0
  for moment in MOMENTS:
    process = start(experiment, killed, tmp_path / "cache")
    code = wait(process, (killed / moment).exists)
    assert code is None, f"it ended ({code}) before {moment} was there"
    process.send_signal(signal.SIGKILL)
    kills += process.wait() == -signal.SIGKILL
  assert wait(start(experiment, killed, tmp_path / "cache")) == 0
  assert kills == len(MOMENTS)
  assert numbers(killed) == numbers(whole)
  for number in (1, 2):
    for stage in ("reward", "policy"):
      one, other = (x / f"round_{number}" / stage for x in (whole, killed))
      rows = tiny_runs.rows_of(one), tiny_runs.rows_of(other)
      assert rows[0] == rows[1]
      arrays = [tiny_runs.saved_arrays(x) for x in (one, other)]
      tiny_runs.assert_equal_arrays(*arrays)
