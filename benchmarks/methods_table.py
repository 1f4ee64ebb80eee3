"""Every method on the quickstart, at one budget of answers.

    python benchmarks/methods_table.py --reuse=runs/quickstart \\
        --methods=ppo,rloo,grpo --seeds=0,1,2 --workdir=runs/methods

Each run is the command of configs/quickstart_method.py in a folder of its own;
finished runs are not repeated, so the same command goes on after a stop. SFT
and reward models are those of `reuse` for all. What offline methods read is
drawn once a seed by benchmarks/judged_answers.py. Prints means over the seeds
and their range, and which runs a KL limit stopped; `CPU s` is the processor
time of the whole run (of the start that finished it), evaluation included,
which depends little on what else the machine does. With --jobs=N as many runs
go side by side, each on cores of its own.
"""

import argparse
import functools
import itertools
import json
import os
import queue
import runpy
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COLUMNS = (
  ("gold win rate", "gold_win_rate", 3),
  ("gold", "gold_after", 2),
  ("proxy", "proxy_after", 2),
  ("KL (nats)", "kl_nats", 1),
  ("distinct-2", "distinct_2_after", 2),
  ("length", "length_after", 1),
  ("CPU s", "cpu_seconds", 0),
)
SECONDS_FILE = "cpu_seconds.txt"
HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "quickstart_method.py"
OFFLINE = runpy.run_path(str(CONFIG))["OFFLINE"]


def run(
  method: str, seed: int, arguments: argparse.Namespace, cores: queue.Queue
) -> dict:
  """Runs one method with one seed; returns its summary and seconds."""
  folder = Path(arguments.workdir) / f"{method}_{arguments.rollouts}_{seed}"
  if (folder / SECONDS_FILE).exists():
    return read(folder)
  command = [
    *(sys.executable, "-m", "rlhf_jax.main"),
    f"--config={CONFIG}:{method},rollouts={arguments.rollouts}",
    f"--config.reuse={arguments.reuse}",
    f"--config.seed={seed}",
    f"--workdir={folder}",
    *arguments.override,
  ]
  if method in OFFLINE:
    layout = "labelled" if method == "kto" else "comparisons"
    source = judged_folder(arguments, seed) / f"{layout}.jsonl"
    command.append(f"--config.policy.data.source={source}")
  mine = cores.get()
  try:
    process = subprocess.Popen(
      command,
      stdout=subprocess.DEVNULL,
      preexec_fn=functools.partial(os.sched_setaffinity, 0, mine),
    )
    _, status, usage = os.wait4(process.pid, 0)
  finally:
    cores.put(mine)
  if status != 0:
    raise RuntimeError(f"{' '.join(command)}: status {status}")
  spent = usage.ru_utime + usage.ru_stime
  (folder / SECONDS_FILE).write_text(f"{spent:.1f}\n")
  print(f"{method} {seed}: done", file=sys.stderr, flush=True)
  return read(folder)


def judged_folder(arguments: argparse.Namespace, seed: int) -> Path:
  """Returns where the data of offline methods lie."""
  return Path(arguments.workdir) / f"judged_{arguments.rollouts}_{seed}"


def draw(seed: int, arguments: argparse.Namespace) -> None:
  """Draws and judges the answers that offline methods read, once."""
  folder = judged_folder(arguments, seed)
  if (folder / "labelled.jsonl").exists():
    return
  command = [
    *(sys.executable, str(HERE / "judged_answers.py")),
    f"--reuse={arguments.reuse}",
    f"--seed={seed}",
    f"--rollouts={arguments.rollouts}",
    f"--output={folder}",
  ]
  subprocess.run(command, check=True, stdout=sys.stderr)


def read(folder: Path) -> dict:
  """Returns summary.json of a finished run, and "cpu_seconds"."""
  summary = json.loads((folder / "summary.json").read_text())
  return summary | {"cpu_seconds": float((folder / SECONDS_FILE).read_text())}


def split(cores: list[int], jobs: int) -> list[list[int]]:
  """Returns the cores of each job; raises ValueError for too many jobs."""
  if not 1 <= jobs <= len(cores):
    raise ValueError(
      f"--jobs={jobs}: each run needs a core, and there are {len(cores)}."
    )
  return [cores[i::jobs] for i in range(jobs)]


def cell(values: list[float], decimals: int) -> str:
  """Returns the mean, and the range where there are several."""
  mean = f"{statistics.fmean(values):.{decimals}f}"
  if len(values) == 1:
    return mean
  return f"{mean} ({min(values):.{decimals}f} .. {max(values):.{decimals}f})"


def main() -> None:
  """Runs what is missing and prints a markdown table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--reuse", required=True)
  parser.add_argument("--methods", required=True)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--workdir", default="runs/methods")
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument("--rollouts", type=int, default=21)
  parser.add_argument(
    "override", nargs="*", help="--config.FIELD=VALUE after --"
  )
  arguments = parser.parse_args()
  methods = arguments.methods.split(",")
  seeds = [int(seed) for seed in arguments.seeds.split(",")]
  cores: queue.Queue = queue.Queue()
  for part in split(sorted(os.sched_getaffinity(0)), arguments.jobs):
    cores.put(part)
  if set(methods) & set(OFFLINE):
    for seed in seeds:
      draw(seed, arguments)
  with ThreadPoolExecutor(arguments.jobs) as pool:
    found = {
      (method, seed): pool.submit(run, method, seed, arguments, cores)
      for seed, method in itertools.product(seeds, methods)
    }
  heads = [label for label, _, _ in COLUMNS]
  print(f"| method | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
  for method in methods:
    rows = [found[method, seed].result() for seed in seeds]
    cells = [cell([row[name] for row in rows], n) for _, name, n in COLUMNS]
    print(f"| {method} | {' | '.join(cells)} |", flush=True)
  for (method, seed), future in found.items():
    if future.result()["halted"]:
      print(f"{method}, seed {seed}: {future.result()['halted']}")


if __name__ == "__main__":
  main()
