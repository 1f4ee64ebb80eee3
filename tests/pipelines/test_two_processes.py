"""Two real processes of four devices each, one global mesh."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.distributed import EXIT_PEER_LOST
from rlhf_jax.output import EXIT_INTERRUPTED
from tests.pipelines import tiny_runs
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
STEPS = 8


class Run:
  """The command of one experiment, on one process or on two."""

  def __init__(self, files, start, scorer, workdir, compile_cache):
    self.workdir = workdir
    self.flags = []
    self._cache = compile_cache
    self._experiment = files.root / f"{workdir.name}.py"
    self._experiment.write_text(
      "import types\n"
      "from tests.pipelines import tiny_runs\n\n"
      "def get_config():\n"
      f"  files = types.SimpleNamespace(model={files.model!r},\n"
      f"    prompts={files.prompts!r}, demonstrations="
      f"{files.demonstrations!r})\n"
      "  config = tiny_runs.full_policy_config(\n"
      f"    files, {str(start)!r}, {str(scorer)!r})\n"
      f"  config.schedule.steps = {STEPS}\n"
      "  return config\n"
    )

  def start(self, processes, **mesh):
    """Returns the processes; the mesh has 4 devices of each, or one alone."""
    devices = 4 if processes > 1 else 1
    mesh = {"devices": 0, **mesh} if processes > 1 else {"devices": 1}
    port = free_port()
    return [
      subprocess.Popen(
        [
          *(sys.executable, "-m", "rlhf_jax.main"),
          f"--config={self._experiment}",
          f"--workdir={self.workdir}",
          *(f"--config.mesh.{name}={size}" for name, size in mesh.items()),
          *self.flags,
          f"--distributed=127.0.0.1:{port},{processes},{index}"
          if processes > 1
          else "--distributed=off",
        ],
        cwd=ROOT,
        env=os.environ
        | {
          "PYTHONPATH": str(ROOT),
          "RLHF_JAX_CACHE": str(self._cache),
          "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(processes)
    ]

  def wait_for_step(self, step, processes):
    """Returns once a checkpoint is complete."""
    path = self.workdir / "checkpoints" / str(step) / "manifest.json"
    end = time.monotonic() + 240.0
    while not path.exists():
      for process in processes:
        if process.poll() is not None:
          pytest.fail(f"{process.returncode}: {process.stderr.read()[-3000:]}")
      assert time.monotonic() < end, "too slow"
      time.sleep(0.01)


def finish(processes):
  """Returns the outputs of processes that must end well."""
  outputs = [process.communicate(timeout=240) for process in processes]
  for process, (_, error) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, error[-3000:]
  return outputs


@pytest.fixture(scope="module")
def straight(files, sft_full, reward_full, run_policy):
  """The undisturbed run on one device of one process."""
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  config.schedule.steps = STEPS
  run_policy(config, files.root / "policy_straight")
  return files.root / "policy_straight"


@pytest.fixture
def run(files, sft_full, reward_full, compile_cache, tmp_path):
  return Run(files, sft_full, reward_full, tmp_path / "run", compile_cache)


@pytest.mark.slow
def test_t20_a_killed_peer_ends_the_other_and_the_restart_goes_on(
  run, straight
):
  mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  first, second = run.start(2, **mesh)
  run.wait_for_step(2, (first, second))
  second.send_signal(signal.SIGKILL)
  killed_at = time.monotonic()
  out, error = first.communicate(timeout=90)
  assert first.returncode == EXIT_PEER_LOST, error[-3000:]
  assert time.monotonic() - killed_at < 45.0
  assert "Start all processes again" in error
  second.communicate()
  (out, _), (silent, _) = finish(run.start(2, **mesh))
  assert "policy: goes on from step" in out
  assert "policy" not in silent  # only the first process talks
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(run.workdir), tiny_runs.rows_of(straight)
  )


@pytest.mark.slow
def test_t20_sigterm_to_one_stops_both_and_one_process_goes_on(run, straight):
  """With trees on the hosts, each beside the devices of its process."""
  trees = "('reference', 'reward', 'optimizer')"
  run.flags = [f"--config.offload.trees={trees}"]
  processes = run.start(2, data=4, fsdp=1, tensor=-1)
  run.wait_for_step(2, processes)
  processes[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=120) for process in processes]
  for process, (_, error) in zip(processes, outputs, strict=True):
    assert process.returncode == EXIT_INTERRUPTED, error[-3000:]
  ((out, _),) = finish(run.start(1))
  assert "policy: goes on from step" in out
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(run.workdir), tiny_runs.rows_of(straight)
  )


@pytest.mark.slow
def test_t20_one_process_stops_and_two_go_on(run, straight):
  (alone,) = run.start(1)
  run.wait_for_step(2, (alone,))
  alone.send_signal(signal.SIGTERM)
  alone.communicate(timeout=120)
  assert alone.returncode == EXIT_INTERRUPTED
  (out, _), _ = finish(run.start(2, data=1, fsdp=1, tensor=-1))
  assert "policy: goes on from step" in out
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(run.workdir), tiny_runs.rows_of(straight)
  )
