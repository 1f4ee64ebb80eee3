"""Starts a run again while it works, and asks whether the first was disturbed.

    python -m tests.proofs.second_starts --starts=20

A tiny PPO run is started in a folder, and the same command again and again at
random moments while it works. Each second start must end with exit code 2 and
say who works there; the first must end with 0, and its arrays, metrics and
samples must equal those of a run that was left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.proofs import fault_campaign as runs

REFUSED, WORDS = 2, "another run works there"


def second_start(experiment: Path, workdir: Path) -> tuple[int, str]:
  """Returns the exit code of a second start, and what it said."""
  command = [
    *(sys.executable, "-m", "rlhf_jax.main"),
    f"--config={experiment}",
    f"--workdir={workdir}",
    "--config.mesh.devices=1",
  ]
  done = subprocess.run(
    command,
    cwd=runs.ROOT,
    env=runs.environment(experiment, devices=1),
    capture_output=True,
    text=True,
    timeout=runs.PATIENCE,
  )
  return done.returncode, done.stderr


def disturbed(experiment: Path, workdir: Path, wanted: int) -> int:
  """Returns how often a run was started again while it worked.

  Raises:
    LostError: a second start was not refused, or the first did not end well.
  """
  first = runs.start(experiment, workdir, 1, {})
  count = 0
  while first[0].poll() is None and count < wanted:
    time.sleep(random.uniform(0.0, 1.0))
    if not (workdir / "run.lock").exists():  # not yet, or not any more
      continue
    code, said = second_start(experiment, workdir)
    if code == 0 and first[0].poll() is not None:
      break  # the first had ended meanwhile
    if code != REFUSED or WORDS not in said:
      raise runs.LostError(f"a second start ended with {code}: {said}")
    count += 1
  codes = runs.finish(first, workdir)
  if codes != [0]:
    raise runs.LostError(f"the first run ended with {codes}")
  return count


def campaign(starts: int) -> None:
  """Runs until so many second starts were refused.

  Raises:
    LostError: see `disturbed`, or a first run that ended otherwise.
  """
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    experiment = runs.write_experiment(root)
    alone = root / "alone"
    if runs.finish(runs.start(experiment, alone, 1, {}), alone) != [0]:
      raise runs.LostError("the run that is left alone failed")
    count = number = 0
    while count < starts:
      number += 1
      workdir = root / f"run_{number}"
      found = disturbed(experiment, workdir, starts - count)
      runs.compare(workdir, alone)
      count += found
      print(f"run {number}: {found} second starts refused, nothing changed")
  print(f"{count} second starts in {number} runs: all refused; every first run")
  print("ended bit for bit as one that was left alone.")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--starts", type=int, default=20)
  campaign(parser.parse_args().starts)
