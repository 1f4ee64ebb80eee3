"""Kills PPO runs at random moments and asks whether anything was lost.

    python -m tests.proofs.fault_campaign --kills=100 --hosts=12

Each run is killed and started again by the same command until it is done; then
every array of its last checkpoint, its metrics and its samples must equal
those of a run that nobody disturbed, bit for bit. Kills are SIGKILL or SIGTERM
during start, rollout, scoring, update or save, and on one of two processes of
four devices each; `hosts` is how many of the kills are of that kind.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.ports import free_port

STEPS, SAVE_EVERY = 10, 3  # rollouts of a run; a checkpoint after each third
LONGEST_DELAY = {"start": 6.0, "save": 0.4}  # seconds after a phase begins
OTHER_DELAY = 0.15
MOST_KILLS = {1: 12, 2: 4}  # of one run, by its processes
PATIENCE = 240.0  # seconds until a process counts as hung
ROOT = Path(__file__).parent.parent.parent
EXITS = {  # what a killed process, or the peer of one, may end with
  "SIGKILL": (-9,),
  "SIGTERM": (75, -15, 130, 143),
}


class LostError(AssertionError):
  """A killed run did not end as an undisturbed one."""


@dataclasses.dataclass
class Tally:
  """What happened."""

  kills: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  runs: int = 0
  steps: int = 0  # of all runs
  redone: int = 0  # steps that a kill cost

  def table(self) -> str:
    """Returns the result as text."""
    lines = [f"{'kill':32s} times"]
    lines += [f"{name:32s} {n:5d}" for name, n in sorted(self.kills.items())]
    lines.append(
      f"{sum(self.kills.values())} kills in {self.runs} runs of {STEPS} "
      f"rollouts ({self.steps} in all), {self.redone} rollouts done again, "
      "nothing lost: every run ended bit for bit as an undisturbed one."
    )
    return "\n".join(lines)


def write_experiment(folder: Path) -> Path:
  """Trains the tiny stages that PPO starts from; returns its config file."""
  from rlhf_jax import pipelines
  from tests.pipelines import tiny_runs

  files = tiny_runs.make_files(folder)
  pipelines.run(tiny_runs.sft_config(files, "full"), folder / "sft")
  samples = folder / "sft" / "samples.npz"
  config = tiny_runs.reward_config(files, "full", folder / "sft", samples)
  pipelines.run(config, folder / "reward")
  path = folder / "experiment.py"
  path.write_text(
    "import types\n"
    "from tests.pipelines import tiny_runs\n\n"
    "def get_config():\n"
    f"  files = types.SimpleNamespace(model={files.model!r},\n"
    f"    prompts={files.prompts!r},\n"
    f"    demonstrations={files.demonstrations!r})\n"
    "  config = tiny_runs.full_policy_config(\n"
    f"    files, {str(folder / 'sft')!r}, {str(folder / 'reward')!r})\n"
    f"  config.schedule.update(steps={STEPS}, save_every={SAVE_EVERY})\n"
    "  return config\n"
  )
  return path


def environment(
  experiment: Path, devices: int, fault: str = ""
) -> dict[str, str]:
  """Returns the environment of a process of a run."""
  return os.environ | {
    "FAULT": fault,
    "RLHF_JAX_JOIN_SECONDS": "60",
    "RLHF_JAX_CACHE": str(experiment.parent / "cache"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }


def start(
  experiment: Path, workdir: Path, hosts: int, faults: dict[int, str]
) -> list[subprocess.Popen]:
  """Starts the processes of a run; `faults` by process index."""
  port = free_port()
  devices = 4 if hosts > 1 else 1
  mesh = ["devices=0", "data=2", "fsdp=2", "tensor=2"]
  mesh = mesh if hosts > 1 else ["devices=1"]
  processes = []
  for index in range(hosts):
    where = f"127.0.0.1:{port},{hosts},{index}" if hosts > 1 else "off"
    log = open(workdir.with_suffix(f".{index}.log"), "a")  # noqa: SIM115
    processes.append(
      subprocess.Popen(
        [
          *(sys.executable, "-m", "tests.proofs.fault_child"),
          f"--config={experiment}",
          f"--workdir={workdir}",
          f"--distributed={where}",
          *(f"--config.mesh.{setting}" for setting in mesh),
        ],
        cwd=ROOT,
        env=environment(experiment, devices, faults.get(index, "")),
        stdout=log,
        stderr=log,
      )
    )
    log.close()
  return processes


def finish(processes: list[subprocess.Popen], workdir: Path) -> list[int]:
  """Returns the exit codes; raises LostError when they say nothing more."""
  before, since = -1, time.monotonic()
  while any(process.poll() is None for process in processes):
    said = sum(log.stat().st_size for log in logs_of(workdir))
    if said != before:
      before, since = said, time.monotonic()
    if time.monotonic() - since > PATIENCE:
      for process in processes:
        process.kill()
      raise LostError(f"hung for {PATIENCE:.0f} s\n{last_words(workdir)}")
    time.sleep(0.1)
  return [process.returncode for process in processes]


def logs_of(workdir: Path) -> list[Path]:
  """Returns the files of what the processes of a run print."""
  return sorted(workdir.parent.glob(f"{workdir.name}.*.log"))


def last_words(workdir: Path) -> str:
  """Returns the end of what the processes of a run printed."""
  return "\n".join(log.read_text()[-2000:] for log in logs_of(workdir))


def progress(workdir: Path) -> tuple[int, int]:
  """Returns (rollouts done, rollouts that the newest checkpoint holds)."""
  metrics = workdir / "metrics.jsonl"
  done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
  saved = [
    int(path.parent.name)
    for path in workdir.glob("checkpoints/*/manifest.json")
  ]
  return done, max(saved, default=0)


def random_fault(rng: random.Random) -> str:
  """Returns PHASE,COUNT,DELAY,SIGNAL."""
  phase = rng.choice(("start", "rollout", "score", "update", "save", "save"))
  count = 1 if phase in ("start", "save") else rng.randint(1, SAVE_EVERY + 1)
  delay = rng.uniform(0.0, LONGEST_DELAY.get(phase, OTHER_DELAY))
  name = rng.choice(("SIGKILL", "SIGTERM"))
  return f"{phase},{count},{delay:.3f},{name}"


def disturbed(
  experiment: Path, workdir: Path, hosts: int, rng: random.Random, tally: Tally
) -> None:
  """Runs until done, killing up to MOST_KILLS times; counts into the tally.

  Raises:
    LostError: an end that a kill does not explain.
  """
  for attempt in range(40):
    victim = rng.randrange(hosts)
    fault = random_fault(rng) if attempt < MOST_KILLS[hosts] else ""
    codes = finish(start(experiment, workdir, hosts, {victim: fault}), workdir)
    if codes == [0] * hosts:
      tally.runs += 1
      tally.steps += STEPS
      return
    name = fault.rpartition(",")[2]
    allowed = EXITS.get(name, ()) + (() if hosts == 1 else (42, 75))
    if not fault or not all(code in allowed for code in codes):
      raise LostError(f"{fault}: exits {codes}\n{last_words(workdir)}")
    done, saved = progress(workdir)
    tally.redone += max(done - saved, 0)
    which = "one of two, " if hosts > 1 else ""
    tally.kills[f"{which}{name} in {fault.split(',')[0]}"] += 1
  raise LostError(f"{workdir}: not done after 40 starts")


def compare(workdir: Path, expected: Path) -> None:
  """Raises LostError unless two finished runs are the same bit for bit."""
  from tests.pipelines import tiny_runs

  try:
    tiny_runs.assert_equal_arrays(
      tiny_runs.saved_arrays(workdir), tiny_runs.saved_arrays(expected)
    )
    for name in ("metrics.jsonl", "samples.jsonl"):
      assert tiny_runs.rows_of(workdir, name) == tiny_runs.rows_of(
        expected, name
      ), name
    assert tiny_runs.saved_meta(workdir, STEPS) == tiny_runs.saved_meta(
      expected, STEPS
    )
  except AssertionError as error:
    raise LostError(f"{workdir} differs from {expected}: {error}") from error


def campaign(kills: int, hosts_kills: int, seed: int, folder: Path) -> Tally:
  """Returns the tally of a campaign; raises LostError at the first loss.

  Args:
    kills: in all, at least.
    hosts_kills: of these on one of two processes.
    seed: of the moments.
    folder: for the runs; a finished run's folder is deleted.
  """
  rng, tally = random.Random(seed), Tally()
  experiment = write_experiment(folder)
  for hosts, goal in ((1, kills - hosts_kills), (2, kills)):
    straight = folder / f"straight{hosts}"
    codes = []
    if sum(tally.kills.values()) < goal:
      codes = finish(start(experiment, straight, hosts, {}), straight)
    if any(codes):
      raise LostError(f"undisturbed: exits {codes}\n{last_words(straight)}")
    while sum(tally.kills.values()) < goal:
      workdir = folder / f"run{tally.runs}"
      disturbed(experiment, workdir, hosts, rng, tally)
      compare(workdir, straight)
      shutil.rmtree(workdir)
      done = sum(tally.kills.values())
      print(f"{done}/{kills} kills, {tally.redone} rollouts redone", flush=True)
  return tally


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--hosts", type=int, default=12)
  parser.add_argument("--seed", type=int, default=0)
  chosen = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    tally = campaign(chosen.kills, chosen.hosts, chosen.seed, Path(folder))
  print(tally.table())


if __name__ == "__main__":
  main()
