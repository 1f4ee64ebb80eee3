"""Trap 23, T20: a run that was stopped ends as one that was not, in each bit.

Compared: every array of the last checkpoint (weights, moments of Adam, running
moments of the reward, KL coefficient), its data positions and facts, every row
of metrics.jsonl and samples.jsonl, and the sampled tokens.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.interrupt import Stopped
from rlhf_jax.output import EXIT_INTERRUPTED
from rlhf_jax.runs import loop, stages
from tests.pipelines import tiny_runs

ROOT = Path(__file__).parent.parent.parent


class Killed(BaseException):
  """Nothing catches it; no code runs at a real kill either."""


def kill_at(monkeypatch, step):
  """Makes the loop die in a step, before it writes that step's metrics."""
  real, calls = loop.system_metrics, []

  def system_metrics():
    calls.append(step)
    if len(calls) == step:
      raise Killed
    return real()

  monkeypatch.setattr(loop, "system_metrics", system_metrics)


def stage_of(folder):
  """Returns stage.json with whole paths, which are kept relative to it."""
  info = stages.read_stage(folder)
  paths = {name: info[name] for name in stages.PATHS if info.get(name)}
  return info | {k: (folder / path).resolve() for k, path in paths.items()}


def assert_same_run(found, expected, steps):
  for name in ("metrics.jsonl", "samples.jsonl"):
    if (expected / name).exists():
      assert tiny_runs.rows_of(found, name) == tiny_runs.rows_of(expected, name)
  assert [row["step"] for row in tiny_runs.rows_of(found)] == list(
    range(1, steps + 1)
  )
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(found), tiny_runs.saved_arrays(expected)
  )
  meta = tiny_runs.saved_meta(found, steps)
  assert meta == tiny_runs.saved_meta(expected, steps)
  assert stage_of(found) == stage_of(expected)


def test_t20_trap_23_sft(files, sft_full, monkeypatch):
  config = tiny_runs.sft_config(files, "full")
  folder = files.root / "sft_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 7)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  assert len(tiny_runs.rows_of(folder)) == 6  # saved at 4: two are done again
  assert stages.read_stage(folder) is None
  pipelines.run(config, folder)
  assert_same_run(folder, sft_full, 12)
  for name, value in np.load(folder / "samples.npz").items():
    np.testing.assert_array_equal(
      value, np.load(sft_full / "samples.npz")[name]
    )


def test_t20_trap_23_reward(files, sft_lora, reward_lora, monkeypatch):
  config = tiny_runs.reward_config(
    files, "lora", sft_lora, sft_lora / "samples.npz"
  )
  # metrics.jsonl names the phase after the folder.
  folder = files.root / "again" / reward_lora.name
  with monkeypatch.context() as patch:
    kill_at(patch, 25)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  pipelines.run(config, folder)
  assert_same_run(folder, reward_lora, 30)


@pytest.mark.slow
def test_t20_trap_23_policy_of_full_roles(
  files, sft_full, reward_full, policy_full, run_policy, records, monkeypatch
):
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  folder = files.root / "policy_full_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      run_policy(config, folder)
  assert len(records[folder.name].tokens) == 4
  run_policy(config, folder)
  assert_same_run(folder, policy_full, 4)
  again = records[folder.name].tokens
  for found, expected in zip(
    [*again[:2], *again[4:]], records["policy_full"].tokens, strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def test_t20_trap_23_policy_with_lora_stopped_on_request(
  files, sft_lora, reward_head, policy_lora, monkeypatch, capsys
):
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.schedule.steps = 18
  folder = files.root / "policy_lora_resumed"
  for step in (1, 5):  # in the critic's own steps, and off the saving period
    with monkeypatch.context() as patch:
      patch.setattr(
        loop.Interrupt, "should_stop", lambda self, now, at=step: now == at
      )
      with pytest.raises(Stopped, match=f"stopped after step {step}"):
        pipelines.run(config, folder)
  pipelines.run(config, folder)
  assert "goes on from step 5 of 20" in capsys.readouterr().out
  assert_same_run(folder, policy_lora, 20)


def wait_for(path, process):
  """Returns once a file is there; fails when the process ended before."""
  end = time.monotonic() + 120.0
  while not path.exists():
    if process.poll() is not None:
      pytest.fail(f"ended with {process.returncode}: {process.stderr.read()}")
    assert time.monotonic() < end, "too slow"
    time.sleep(0.005)


@pytest.mark.slow
def test_t20_trap_23_the_command_after_kill_9_and_after_sigterm(
  files, sft_lora, reward_head, policy_lora, compile_cache, tmp_path
):
  experiment = tmp_path / "experiment.py"
  experiment.write_text(
    "import types\n"
    "from tests.pipelines import tiny_runs\n\n"
    "def get_config():\n"
    f"  files = types.SimpleNamespace(model={files.model!r},\n"
    f"    prompts={files.prompts!r})\n"
    "  return tiny_runs.policy_config(\n"
    f"    files, 'lora', {str(sft_lora)!r}, {str(reward_head)!r})\n"
  )
  workdir = tmp_path / "run"
  arguments = [
    "-m",
    "rlhf_jax.main",
    f"--config={experiment}",
    f"--workdir={workdir}",
    "--config.schedule.steps=18",
  ]

  def start():
    return subprocess.Popen(
      [sys.executable, *arguments],
      cwd=ROOT,
      env=os.environ
      | {
        "PYTHONPATH": str(ROOT),
        "RLHF_JAX_CACHE": str(compile_cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  saved = workdir / "checkpoints"
  first = start()
  wait_for(saved / "2" / "manifest.json", first)
  first.send_signal(signal.SIGKILL)
  assert first.wait(60) == -signal.SIGKILL
  first.communicate()
  assert not (workdir / stages.STAGE_FILE).exists()

  second = start()
  wait_for(saved / "8" / "manifest.json", second)
  second.send_signal(signal.SIGTERM)
  out, err = second.communicate(timeout=60)
  assert second.returncode == EXIT_INTERRUPTED == 75, err
  assert "policy: goes on from step" in out
  assert "To go on, run the same command:" in out
  assert out.strip().splitlines()[-1].strip() == " ".join(
    ["python", *arguments]
  )

  third = start()
  out, err = third.communicate(timeout=120)
  assert third.returncode == 0, err
  assert_same_run(workdir, policy_lora, 20)
