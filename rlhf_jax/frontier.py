"""Draw methods below the exact frontier of reward and KL.

    python -m rlhf_jax.frontier --workdir=runs/frontier

Trains PPO, GRPO, DPO, rejection sampling and BOND from samples, on 64 answers
whose rewards are known, beside best of n itself, and writes frontier.html,
points.csv and points.jsonl (docs/frontier.md). It ends with code 1 where a
policy is above the frontier, or PPO on the true reward is below 90 % of it.

Exit codes: 0 written, 1 something is not as it must be, 2 a mistake.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax import output, terminal
from rlhf_jax.schema import UserError

PAGE = "frontier.html"


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.frontier",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("--workdir", required=True, help="where everything is written")
  add("--seeds", type=int, default=3, help="problems; 3")
  add("--smoke", action="store_true", help="a very short form")
  return found


def run(options: argparse.Namespace) -> int:
  """Runs the study; returns the exit code.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.evaluation import table_page
  from rlhf_jax.experiments import claims, frontier, study
  from rlhf_jax.pipelines import workdir as workdir_lib

  if options.seeds < 1:
    raise UserError(f"--seeds={options.seeds}: must be >= 1.")
  workdir = Path(options.workdir).expanduser()
  workdir_lib.make_folder_of_many(workdir, "a study")
  begun = time.perf_counter()
  size = frontier.SMOKE if options.smoke else frontier.Size()
  points = frontier.run(options.seeds, size)
  found = frontier.claims(points)
  rows = [dataclasses.asdict(x) | {"share": x.share} for x in points]
  with (workdir / "points.jsonl").open("w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  with (workdir / "points.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  facts = [
    ("command", f"python -m rlhf_jax.frontier {shlex.join(sys.argv[1:])}"),
    ("seeds", str(options.seeds)),
    ("time", terminal.format_seconds(time.perf_counter() - begun)),
  ]
  notes = [study.SHORT] if options.smoke else []
  page = frontier.page(points, found, facts, notes)
  table_page.write(workdir / PAGE, page)
  cells = [
    [method, setting, *(terminal.decimal(x, 3) for x in frontier.means(those))]
    for (method, setting), those in frontier.by_setting(points).items()
  ]
  heads = ["method", "setting", "KL", "reward", "of the frontier"]
  print("\n" + terminal.format_table(heads, cells))
  claims.show(found)
  print(f"\n{workdir / PAGE}")
  return 0 if all(x.holds for x in found) else 1


@output.never_silent()
def main(argv: Sequence[str]) -> int:
  """Runs what a command line says; returns the exit code."""
  options = parser().parse_args(list(argv[1:]))
  try:
    return run(options)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  output.run_command(main, sys.argv)
