"""Every policy-gradient method on the quickstart, at one budget of samples.

    python benchmarks/methods_table.py --reuse=runs/quickstart \\
        --methods=ppo,rloo,grpo --seeds=0,1,2 --workdir=runs/methods

Each run is the command of configs/quickstart_method.py in a folder of its own;
finished runs are not repeated, so the same command goes on after a stop. SFT
and reward models are those of `reuse` for all. Prints means over the seeds and
their range; `seconds` is the time of the policy stage.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

COLUMNS = (
  ("gold win rate", "gold_win_rate", 3),
  ("gold", "gold_after", 2),
  ("proxy", "proxy_after", 2),
  ("KL (nats)", "kl_nats", 1),
  ("distinct-2", "distinct_2_after", 2),
  ("length", "length_after", 1),
)


def run(method: str, seed: int, arguments: argparse.Namespace) -> dict:
  """Runs one method with one seed; returns its summary."""
  folder = Path(arguments.workdir) / f"{method}_{seed}"
  command = [
    *(sys.executable, "-m", "rlhf_jax.main"),
    f"--config=configs/quickstart_method.py:{method}",
    f"--config.reuse={arguments.reuse}",
    f"--config.seed={seed}",
    f"--workdir={folder}",
    *arguments.override,
  ]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  return json.loads((folder / "summary.json").read_text())


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
  parser.add_argument(
    "override", nargs="*", help="--config.FIELD=VALUE after --"
  )
  arguments = parser.parse_args()
  heads = [label for label, _, _ in COLUMNS] + ["seconds"]
  print(f"| method | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
  for method in arguments.methods.split(","):
    found = [
      run(method, int(seed), arguments) for seed in arguments.seeds.split(",")
    ]
    cells = [cell([f[name] for f in found], n) for _, name, n in COLUMNS]
    cells.append(cell([f["phase_seconds"]["policy"] for f in found], 0))
    print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  main()
