"""Our default settings beside a peer's, on the same weights and records.

    bash benchmarks/peers/make_environment.sh peers_env
    python -m benchmarks.peers sft --peer=peers_env/bin/python

Comparisons: generate, sft, reward, dpo, dpo_epoch, grpo, ppo. Each side runs in
a process of its own, ours and theirs by turns; the first steps, which compile
and load, are left out. Printed are medians over the runs of the mean CPU
seconds of a step (all threads) and of its wall time, their ranges, the time to
the first step, CPU seconds of the whole process, peak memory, and the ratio
peer / ours: above 1 means that we are faster. Both sides compute in float32.
Nothing else should run on the machine.

A step of ours in dpo leaves the reference out, which was computed before, as
that of "precomputed" does; "usual" computes it in every step. dpo_epoch is one
pass over the records: its whole processes are what to compare. ppo needs a TRL
that still has it: make_environment.sh FOLDER 1.12.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import files

ROOT = Path(__file__).resolve().parent.parent.parent
# comparison -> (steps, first steps left out, our variants, theirs)
COMPARISONS = {
  "generate": (6, 2, ("defaults", "plain"), ("float32", "bfloat16")),
  "sft": (24, 8, ("defaults", "plain"), ("padded", "packed")),
  "reward": (18, 6, ("defaults",), ("padded",)),
  "dpo": (16, 4, ("defaults",), ("precomputed", "usual")),
  "dpo_epoch": (60, 4, ("defaults",), ("precomputed", "usual")),
  "grpo": (10, 4, ("defaults", "plain"), ("usual",)),
  "ppo": (8, 3, ("defaults", "plain", "shared_trunk"), ("usual",)),
}


def summary(found: dict, skipped: int) -> dict[str, float]:
  """Returns the mean step after the first ones, of one run.

  Args:
    found: what a Clock wrote.
    skipped: steps that are left out.
  """
  steps, last = found["steps"], len(found["steps"]) - 1
  (wall, cpu), (end_wall, end_cpu) = steps[skipped - 1], steps[-1]
  count = last - (skipped - 1)
  return {
    "cpu": (end_cpu - cpu) / count,
    "wall": (end_wall - wall) / count,
    "first": steps[0][0],
    "whole": end_cpu,
    "peak": found["peak_mib"],
    "loss": found["losses"][0] if found["losses"] else float("nan"),
  }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
  """Returns the median of each number, and the range of cpu as a share."""
  middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
  cpu = [run["cpu"] for run in runs]
  return middle | {"spread": (max(cpu) - min(cpu)) / middle["cpu"]}


def table(sides: dict[str, dict[str, float]], ours: list[str]) -> str:
  """Returns a markdown table; ratios are to our first variant.

  Args:
    sides: name -> medians.
    ours: which of the names are ours, the first one that of the defaults.
  """
  base = sides[ours[0]]
  lines = [
    "| side | CPU s a step | spread | wall s | first step s | whole CPU s | "
    "peak MiB | first loss | CPU / ours | wall / ours | whole / ours |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {name} | {row['cpu']:.3f} | {row['spread']:.0%} | {row['wall']:.3f} | "
    f"{row['first']:.1f} | {row['whole']:.1f} | {row['peak']:,.0f} | "
    f"{row['loss']:.4f} | {row['cpu'] / base['cpu']:.2f} | "
    f"{row['wall'] / base['wall']:.2f} | {row['whole'] / base['whole']:.2f} |"
    for name, row in sides.items()
  ]
  return "\n".join(lines)


def run(python: str, module: str, arguments: list[str]) -> None:
  """Runs one side; its output is shown only where it fails."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
  environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  side = [python, str(ROOT / f"benchmarks/peers/{module}.py"), *arguments]
  done = subprocess.run(
    side, env=environment, cwd=ROOT, capture_output=True, text=True
  )
  if done.returncode:
    sys.exit(f"{' '.join(side)}:\n{done.stderr[-4000:]}")


def compare(name: str, peer: str, repeats: int, steps: int) -> dict:
  """Returns {side: medians} and the versions of a comparison.

  Args:
    name: of COMPARISONS.
    peer: Python of the peer's environment.
    repeats: runs of each side.
    steps: of a run; 0 for the usual number.
  """
  usual, skipped, ours, theirs = COMPARISONS[name]
  steps = steps if steps else usual
  skipped = min(skipped, steps - 1)
  sides = [("ours", variant, sys.executable) for variant in ours]
  sides += [("theirs", variant, peer) for variant in theirs]
  runs: dict[str, list] = {f"{side} {v}": [] for side, v, _ in sides}
  versions: dict[str, str] = {}
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary) / "files"
    files.write(folder)
    if name == "ppo":  # the reward model of our side
      stage, times = str(folder / "reward"), str(Path(temporary) / "none")
      run(
        sys.executable, "ours", ["reward", str(folder), stage, times, "", "1"]
      )
    for number in range(repeats):
      for side, variant, python in sides:
        output = Path(temporary) / "times.json"
        workdir = Path(temporary) / f"{side}_{variant}_{number}"
        arguments = [name, folder, workdir, output, variant, steps]
        run(python, side, [str(argument) for argument in arguments])
        found = json.loads(output.read_text())
        versions |= found["versions"]
        runs[f"{side} {variant}"].append(summary(found, skipped))
        print(f"{side} {variant}: {runs[f'{side} {variant}'][-1]}", flush=True)
  return {
    "comparison": name,
    "sides": {side: medians(rows) for side, rows in runs.items()},
    "versions": versions | {"python": platform.python_version()},
    "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    "repeats": repeats,
  }


def main() -> None:
  """Prints a table and a line of JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("comparison", choices=list(COMPARISONS))
  parser.add_argument("--peer", required=True, help="the peer's Python")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--steps", type=int, default=0)
  asked = parser.parse_args()
  if not Path(asked.peer).is_file():
    parser.error(
      f"--peer={asked.peer}: no such file. Make the environment with "
      "'bash benchmarks/peers/make_environment.sh FOLDER', and name "
      "FOLDER/bin/python."
    )
  found = compare(asked.comparison, asked.peer, asked.repeats, asked.steps)
  ours = [name for name in found["sides"] if name.startswith("ours")]
  print(table(found["sides"], ours))
  print(json.dumps(found))


if __name__ == "__main__":
  main()
