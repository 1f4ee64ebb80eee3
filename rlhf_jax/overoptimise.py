"""Study over-optimisation: fits, peaks, early stops, a page.

    python -m rlhf_jax.overoptimise --level=saturation --workdir=runs/saturation

Levels (docs/overoptimising.md): exact, where all answers are enumerated;
saturation, on an engineered gold that turns; pipeline, on finished quickstarts
(--runs=runs/quickstart, several with commas: one a seed). Each trial is kept,
and the same command goes on with what is missing. WORKDIR/overoptimisation.html
is the page; table.md, table.csv, table.jsonl and curves.jsonl are its numbers.

Exit codes: 0 written, 1 a trial failed, 2 a mistake, 75 stopped by a signal:
the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import output, terminal
from rlhf_jax.schema import UserError

LEVELS = ("exact", "saturation", "pipeline")
SEEDS = {"exact": 5, "saturation": 10, "pipeline": 3}  # where nobody says
PAGE = "overoptimisation.html"


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.overoptimise",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("--level", default="saturation", help=", ".join(LEVELS))
  add("--workdir", required=True, help="where trials and the page are written")
  usual = ", ".join(f"{k}: {x}" for k, x in SEEDS.items())
  add("--seeds", type=int, default=None, help=f"runs of each judge; {usual}")
  add("--runs", default="", help="finished whole runs, for pipeline")
  add(
    "--trials", default="", help="experiment file of the trials, for pipeline"
  )
  add("--jobs", type=int, default=1, help="trials at once, for pipeline; 1")
  add("--smoke", action="store_true", help="a very short form of everything")
  add(
    "--page", action="store_true", help="only write the page of what is there"
  )
  return found


def measure(options: argparse.Namespace, workdir: Path) -> int:
  """Runs what is missing of a level; returns an exit code.

  Raises:
    UserError: value, rule and remedy.
  """
  if options.level == "pipeline":
    from rlhf_jax.experiments import real_pipeline

    names = [x.strip() for x in options.runs.split(",") if x.strip()]
    plan = real_pipeline.Plan(
      workdir=workdir,
      runs=[Path(x).expanduser() for x in names],
      seeds=options.seeds,
      file=options.trials if options.trials else real_pipeline.TRIALS,
      jobs=options.jobs,
      is_smoke=options.smoke,
      **({"prompts": 4, "samples": 8} if options.smoke else {}),
    )
    return real_pipeline.run(plan)
  from rlhf_jax.experiments import enumerated_level, saturation_level

  seeds = range(options.seeds)
  if options.level == "exact":
    widths = enumerated_level.WIDTHS
    widths = enumerated_level.SMOKE_WIDTHS if options.smoke else widths
    length = 5 if options.smoke else enumerated_level.LENGTH
    enumerated_level.run(workdir, seeds, widths, length)
    return 0
  size = saturation_level.SMOKE if options.smoke else saturation_level.Size()
  saturation_level.run(workdir, seeds, size)
  return 0


def report(options: argparse.Namespace, workdir: Path, seconds: float) -> None:
  """Writes and prints what the trials say.

  Raises:
    UserError: there are none.
  """
  from rlhf_jax.evaluation import table_page
  from rlhf_jax.experiments import claims as claims_lib
  from rlhf_jax.experiments import (
    curves,
    curves_page,
    enumerated_level,
    study,
  )

  found = curves.read(workdir)
  if not found:
    raise UserError(
      f"--workdir={options.workdir}: no trial is there. Leave --page out."
    )
  table = curves.rows(found)
  is_trained = options.level != "exact"
  claims = claims_lib.claims(table, is_trained=is_trained)
  if not is_trained:
    claims = [*enumerated_level.laws(table), *claims]
  curves.write_tables(workdir, table)
  curves.show(table)
  claims_lib.show(claims)
  notes = [study.SHORT] if options.smoke else []
  facts = [
    ("command", f"python -m rlhf_jax.overoptimise {shlex.join(sys.argv[1:])}"),
    ("level", options.level),
    ("seeds", str(options.seeds)),
    ("time of this command", terminal.format_seconds(seconds)),
  ]
  page = curves_page.page(
    f"Over-optimisation, level {options.level}", table, claims, facts, notes
  )
  table_page.write(workdir / PAGE, page)


def _check(options: argparse.Namespace) -> None:
  if options.level not in LEVELS:
    raise UserError(
      f"--level={options.level}: must be one of {', '.join(LEVELS)}."
    )
  if options.seeds is None:
    options.seeds = 2 if options.smoke else SEEDS[options.level]
  for name in ("seeds", "jobs"):
    if getattr(options, name) < 1:
      raise UserError(f"--{name}={getattr(options, name)}: must be >= 1.")
  for name in ("runs", "trials"):
    if getattr(options, name) and options.level != "pipeline":
      raise UserError(
        f"--{name}={getattr(options, name)}: --level={options.level} does not "
        "read it. Leave it out, or give --level=pipeline."
      )


def run(options: argparse.Namespace) -> int:
  """Runs a study; returns the exit code.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.experiments import study
  from rlhf_jax.pipelines import workdir as workdir_lib
  from rlhf_jax.runs import lock

  _check(options)
  workdir = Path(options.workdir).expanduser()
  workdir_lib.make_folder_of_many(workdir, "a study")
  begun = time.perf_counter()
  with lock.held(workdir):
    study.check(workdir, {"level": options.level})
    code = 0 if options.page else measure(options, workdir)
    if code == output.EXIT_INTERRUPTED:
      print("\nstopped. To go on, run the same command.")
      return code
    report(options, workdir, time.perf_counter() - begun)
  print(f"\n{workdir / PAGE}")
  return code


@output.never_silent()
def main(argv: Sequence[str]) -> int:
  """Runs what a command line says; returns the exit code."""
  options: Any = parser().parse_args(list(argv[1:]))
  try:
    return run(options)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  output.run_command(main, sys.argv)
