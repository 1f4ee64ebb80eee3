"""Run many trials of one experiment: what its sweep() says.

    python -m rlhf_jax.sweep --config=configs/X.py --workdir=runs/sweep --jobs=2
    python -m rlhf_jax.sweep --config=configs/X.py --lines > grid.txt

An experiment file has sweep() beside get_config(); docs/sweeps.md. Each trial
is a run of rlhf_jax.main in WORKDIR/001, WORKDIR/002, ... with a seed; what it
prints is in WORKDIR/001.log. The same command goes on with what was stopped or
not run, after Ctrl-C, SIGTERM and kill -9 too. The table and a picture of the
metric against each field are written at the end, and by --results at any time.

Exit codes: 0 all trials are done, 1 some failed, 2 a mistake, 75 stopped by a
signal: the same command goes on.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from rlhf_jax import command, output, terminal
from rlhf_jax.schema import UserError

OPTIONS = {
  "workdir": (None, "Where trials and tables are written."),
  "jobs": ("1", "Trials at once."),
  "seeds": ("1", "Runs of each setting, with seeds that follow the first."),
  "sweep": ("sweep", "The function of the experiment file."),
  "metric": ("", "What trials are told by; NAME:best, :mean, :tail too."),
  "best": ("", "max or min, where the name does not tell."),
  "pareto": ("", "Two or more metrics: their front; -NAME: less is better."),
  "halving": ("0", "Successive halving: one setting in so many goes on."),
  "least": ("0", "Steps of the first rung of halving."),
  "steps_field": ("schedule.steps", "The field of the steps, for halving."),
  "chips": ("0", "Accelerator chips of each trial; 0: each sees all."),
  "smoke": (False, "Every trial is a short one."),
  "retry_failed": (False, "Run failed trials again."),
  "results": (False, "Write the tables of what is there; run nothing."),
  "lines": (False, "Print the options of each trial; run nothing."),
}
EXAMPLE = "--config=configs/X.py --workdir=runs/sweep"


def _whole(values: Any, name: str, least: int) -> int:
  text = getattr(values, name)
  if not text.isascii() or not text.isdigit() or int(text) < least:
    raise UserError(f"--{name}={text}: must be a whole number >= {least}.")
  return int(text)


def run(values: Any, argv: list[str]) -> int:
  """Runs a sweep, or prints its trials; returns the exit code.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.sweeps import trials

  file = command.value_of("config", argv)
  common = trials.common_options(argv)
  found = trials.make(
    trials.read(file, values.sweep),
    values.config.get("seed", None),
    _whole(values, "seeds", 1),
    command.given(argv) - {"seed"},
  )
  workdir = Path(values.workdir if values.workdir else "").expanduser()
  if values.lines:
    trials.check(found, file, common, workdir)
    for trial in found:
      print(shlex.join(trials.arguments(trial, file, common)[1:]))
    return 0
  if not values.workdir:
    raise UserError(f"--workdir=DIR missing, for example {EXAMPLE}.")
  if not values.results:
    code = _run_trials(values, file, common, found, workdir)
    if code:
      print(
        f"\nstopped. To go on, run the same command:\n  "
        f"{shlex.join(['python', '-m', 'rlhf_jax.sweep', *argv[1:]])}"
      )
      return code
  return report(workdir, found, values.metric, values.best, values.pareto)


def _run_trials(
  values: Any,
  file: str,
  common: list[str],
  found: list,
  workdir: Path,
) -> int:
  """Runs what is not over; returns 75 after a signal, else 0."""
  import jax

  from rlhf_jax.pipelines import workdir as workdir_lib
  from rlhf_jax.runs import lock, numbers
  from rlhf_jax.sweeps import fronts, processes, running, trials

  jax.config.update("jax_platforms", "cpu")  # chips are for the trials
  eta, seeds = _whole(values, "halving", 0), _whole(values, "seeds", 1)
  plan = running.Plan(
    workdir=workdir,
    file=file,
    common=common,
    jobs=_whole(values, "jobs", 1),
    chips=_whole(values, "chips", 0),
    retries_failed=values.retry_failed,
    is_smoke=values.smoke,
  )
  configs = trials.check(found, file, common, workdir)
  if values.metric:
    numbers.split(values.metric)
  if values.pareto:
    fronts.read(values.pareto)
  halved = _halving(values, configs, found, eta) if eta else None
  facts = {"options": common, "smoke": values.smoke}
  if halved is not None:
    facts["halving"] = [halved.field, list(halved.rungs), halved.metric]
  workdir_lib.make_folder_of_many(workdir, "a sweep")
  with lock.held(workdir), processes.Signals() as signals:
    trials.record(workdir, found, facts)
    print(
      f"{len(found)} trials, {plan.jobs} at once, "
      f"{seeds} {'seed' if seeds == 1 else 'seeds'} of each setting; logs in "
      f"{workdir}",
      flush=True,
    )
    sweep = running.Sweep(plan, found, signals)
    sweep.run() if halved is None else sweep.run_halving(halved)
    if signals.number is not None:
      return output.EXIT_INTERRUPTED
  return 0


def _halving(values: Any, configs: list, found: list, eta: int) -> Any:
  """Returns how the sweep is halved.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.runs import numbers
  from rlhf_jax.sweeps import halving, running

  if not values.metric:
    raise UserError(
      f"--halving={eta}: what are trials told by? Give --metric=NAME."
    )
  field = values.steps_field
  if any(field in trial.settings for trial in found):
    raise UserError(
      f"--halving={eta}: sweep() sets {field} itself. Leave one of them out."
    )
  steps = {halving.check_schedules(config, field) for config in configs}
  return running.Halving(
    field=field,
    rungs=halving.rungs(_whole(values, "least", 1), min(steps), eta),
    eta=eta,
    metric=values.metric,
    best=numbers.direction(values.metric, values.best),
  )


def report(
  workdir: Path, found: list, metric: str, best: str, pareto: str = ""
) -> int:
  """Writes and prints the tables; returns 0 where all trials are done, else 1.

  Args:
    workdir: of the sweep.
    found: its trials.
    metric: that was asked for, or "".
    best: "max", "min" or "".
    pareto: metrics, with commas between, whose front is asked for too; or "".

  Raises:
    UserError: no trial has a metric, or the folder has no trials.
  """
  from rlhf_jax.runs import numbers
  from rlhf_jax.sweeps import fronts, pictures, results, running

  if not workdir.is_dir():
    raise UserError(f"--workdir={str(workdir)!r}: no such folder.")
  front = fronts.read(pareto) if pareto else None
  metric = results.choose(workdir, found, metric)
  best = numbers.direction(metric, best) if metric else "max"
  rows, settings = results.write(workdir, found, metric, best)
  headers, cells = results.table(settings)
  print(f"\n{results.heading(metric, best)}")
  print(terminal.format_table(headers, cells))
  files = ["results.md", "results.csv", "results.jsonl", "trials.csv"]
  if pictures.write(workdir / "results.png", rows, settings, metric, best):
    files.append("results.png")
  if front is not None:
    headers, cells = fronts.write(workdir, found, front)
    print(f"\n{terminal.format_table(headers, cells)}")
    files += ["pareto.md", "pareto.csv", "pareto.png"]
  print(f"In {workdir}: {', '.join(files)}")
  over = (running.DONE, running.HALVED)
  open_ = [row for row in rows if row["status"] not in over]
  for row in open_:
    log = workdir / f"{row['trial']}.log"
    where = f": {log}" if log.is_file() else ""
    print(f"  {row['trial']} {row['status']}{where}")
  if any(row["status"] == running.FAILED for row in open_):
    print("Failed trials run again with --retry_failed.")
  return 1 if open_ else 0


def main(argv: list[str]) -> int:
  """Runs what a command line says; returns the exit code."""
  values = command.parse(argv, OPTIONS, __doc__, example=EXAMPLE)
  try:
    return run(values, argv)
  except (UserError, OSError) as error:
    return command.fail(error, str(error))


if __name__ == "__main__":
  output.run_command(main, sys.argv)
