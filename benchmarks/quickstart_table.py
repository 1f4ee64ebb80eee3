"""Prints the README's table from the summary.json of several quickstart runs.

  for seed in 0 1 2; do
    python -m rlhf_jax.main --config=configs/quickstart.py \\
        --config.seed=$seed --workdir=runs/seed$seed
  done
  python benchmarks/quickstart_table.py runs/seed0 runs/seed1 runs/seed2
"""

import json
import statistics
import sys
from pathlib import Path

ROWS = (
  ("reward model accuracy, held out", "reward_model_accuracy", 3),
  ("... ceiling set by the raters", "reward_model_accuracy_ceiling", 3),
  ("proxy score, SFT", "proxy_before", 2),
  ("proxy score, PPO", "proxy_after", 2),
  ("gold score, SFT", "gold_before", 2),
  ("gold score, PPO", "gold_after", 2),
  ("gold win rate, PPO against SFT", "gold_win_rate", 3),
  ("... standard error", "gold_win_rate_standard_error", 3),
  ("VADER, SFT", "vader_before", 2),
  ("VADER, PPO", "vader_after", 2),
  ("KL to SFT (nats)", "kl_nats", 2),
  ("distinct-2, SFT", "distinct_2_before", 3),
  ("distinct-2, PPO", "distinct_2_after", 3),
  ("length, SFT (tokens)", "length_before", 1),
  ("length, PPO (tokens)", "length_after", 1),
  ("seconds in all", "seconds_total", 0),
)


def main(folders: list[str]) -> None:
  """Prints a markdown table: one column a run, mean and range at the end."""
  runs = [
    json.loads((Path(folder) / "summary.json").read_text())
    for folder in folders
  ]
  heads = [f"seed {run['seed']}" for run in runs]
  print("| | " + " | ".join(heads) + " | mean | spread (max - min) |")
  print("|---" * (len(runs) + 3) + "|")
  for label, name, decimals in ROWS:
    if any(run[name] is None for run in runs):
      continue  # data without several raters have no ceiling
    values = [run[name] + 0.0 for run in runs]
    cells = [*values, statistics.fmean(values), max(values) - min(values)]
    text = " | ".join(
      f"{abs(x) if abs(x) < 5e-4 else x:.{decimals}f}" for x in cells
    )
    print(f"| {label} | {text} |")


if __name__ == "__main__":
  if len(sys.argv) < 2:
    sys.exit("usage: quickstart_table.py RUN [RUN ...]")
  main(sys.argv[1:])
