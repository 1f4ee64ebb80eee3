"""Sends signals to runs of every kind, and asks whether anything was lost.

    python -m tests.proofs.signal_campaign --trials=10

Tiny runs of SFT, a reward model, DPO and PPO are started again and again; each
gets Ctrl-C, SIGTERM or SIGHUP one to three times, at a random moment from its
start to its end. It must end with exit code 75 and without a traceback (or as
the signal says, while Python starts; or with 0, if it was done). The same
command goes on until the run is done, and what it then holds must equal an
undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import logging

from tests.proofs import fault_campaign as runs
from tests.proofs.fault_campaign import LostError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
MOST_STOPS = 4  # of one run
CONFIGS = {
  "sft": "tiny_runs.sft_config(files, 'full')",
  "reward": "tiny_runs.reward_config(files, 'full', {root!r} + '/sft',"
  " {root!r} + '/sft/samples.npz')",
  "dpo": "tiny_runs.dpo_config(files, {root!r} + '/sft')",
  "ppo": "tiny_runs.full_policy_config(files, {root!r} + '/sft',"
  " {root!r} + '/reward')",
}


@dataclasses.dataclass
class Stage:
  """One kind of run, and its undisturbed one, which took `seconds`."""

  name: str
  experiment: Path
  straight: Path
  seconds: float = 0.0


def _write(folder: Path) -> list[Stage]:
  from tests.pipelines import tiny_runs

  files = tiny_runs.make_files(folder)
  given = {
    field.name: str(getattr(files, field.name))
    for field in dataclasses.fields(files)
  }
  stages = []
  for name, text in CONFIGS.items():
    path = folder / f"{name}.py"
    path.write_text(
      "import types\n"
      "from tests.pipelines import tiny_runs\n\n"
      "def get_config():\n"
      f"  files = types.SimpleNamespace(**{given!r})\n"
      f"  return {text.format(root=str(folder))}\n"
    )
    stages.append(Stage(name, path, folder / name))
  return stages


def _start(stage: Stage, workdir: Path) -> subprocess.Popen:
  with open(workdir.with_suffix(".0.log"), "a") as log:
    return subprocess.Popen(
      [
        *(sys.executable, "-m", "rlhf_jax.main"),
        f"--config={stage.experiment}",
        f"--workdir={workdir}",
        "--config.mesh.devices=1",
      ],
      cwd=runs.ROOT,
      env=runs.environment(stage.experiment, devices=1),
      stdout=log,
      stderr=log,
    )


def _signalled(stage: Stage, workdir: Path, rng: random.Random) -> str:
  """Returns what was sent to a run, "" where it was done before.

  Raises:
    LostError: an end that the signal does not explain.
  """
  name, times = rng.choice(SIGNALS), rng.choice((1, 1, 2, 3))
  number = getattr(signal, name)
  moment = rng.uniform(0.0, stage.seconds)
  process, began = _start(stage, workdir), time.monotonic()
  log = workdir.with_suffix(".0.log")
  before = len(log.read_text())
  while time.monotonic() - began < moment and process.poll() is None:
    time.sleep(0.01)
  for _ in range(times):
    process.send_signal(number)
    time.sleep(rng.uniform(0.0, 0.4))
  code = runs.finish([process], workdir)[0]
  said = log.read_text()[before:]
  has_begun = said.count("\n") > 1 and "stopped. The same" not in said
  what = f"{times} {name} after {moment:.1f} s"
  is_told = "Traceback" in said and "rlhf_jax:" in said
  if code not in (75, 0) + (-number,) * (not has_begun) or is_told:
    raise LostError(f"{stage.name}, {what}: exit {code}\n{said[-3000:]}")
  if code == 0:  # too late: programs that were compiled need not be again
    stage.seconds = min(stage.seconds, time.monotonic() - began)
  return "" if code == 0 else name


def _compare(workdir: Path, expected: Path) -> None:
  from tests.pipelines import tiny_runs

  try:
    tiny_runs.assert_equal_arrays(
      tiny_runs.saved_arrays(workdir), tiny_runs.saved_arrays(expected)
    )
    found, wanted = (tiny_runs.rows_of(at) for at in (workdir, expected))
    for number, pair in enumerate(zip(found, wanted, strict=False)):
      assert pair[0] == pair[1], f"row {number}: {pair[0]} != {pair[1]}"
    assert len(found) == len(wanted), f"{len(found)} rows, not {len(wanted)}"
  except AssertionError as error:
    raise LostError(f"{workdir} differs from {expected}: {error}") from error


def campaign(
  trials: int, seed: int, folder: Path, names: tuple[str, ...] = tuple(CONFIGS)
) -> collections.Counter:
  """Returns how many runs each signal stopped, by kind of run.

  Args:
    trials: stopped runs of each kind, at least.
    seed: of the moments.
    folder: for the runs.
    names: the kinds; each reads what those before it in CONFIGS trained.

  Raises:
    LostError: something was lost, or an end was wrong.
  """
  rng, tally = random.Random(seed), collections.Counter()
  (folder / "again").mkdir()
  last = max(list(CONFIGS).index(name) for name in names)
  for stage in _write(folder)[: last + 1]:
    began = time.monotonic()
    if runs.finish([_start(stage, stage.straight)], stage.straight) != [0]:
      raise LostError(f"undisturbed: {runs.last_words(stage.straight)}")
    stage.seconds = time.monotonic() - began
    stopped = 0
    while stage.name in names and stopped < trials:
      workdir = folder / "again" / stage.name  # metrics hold its name
      for attempt in range(MOST_STOPS + 1):
        if attempt < MOST_STOPS:
          found = _signalled(stage, workdir, rng)
          tally[f"{stage.name}: {found or 'done before'}"] += 1
          stopped += bool(found)
          if found:
            continue
        elif runs.finish([_start(stage, workdir)], workdir) != [0]:
          raise LostError(f"{stage.name}: {runs.last_words(workdir)}")
        break
      _compare(workdir, stage.straight)
      shutil.rmtree(workdir)
      print(f"{stage.name}: {stopped}/{trials} stopped", flush=True)
  return tally


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--trials", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  chosen = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # Orbax, on folders that are read
  with tempfile.TemporaryDirectory() as folder:
    tally = campaign(chosen.trials, chosen.seed, Path(folder))
  for what, count in sorted(tally.items()):
    print(f"{what:24} {count}")
  print("nothing lost: every run ended bit for bit as an undisturbed one.")


if __name__ == "__main__":
  main()
