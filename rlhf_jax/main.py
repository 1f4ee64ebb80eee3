"""Run an experiment: one configuration, one working directory.

    python -m rlhf_jax.main --config=configs/quickstart.py --workdir=runs/x
    python -m rlhf_jax.main --config=configs/sft.py \\
        --config.data.source=my.jsonl --workdir=runs/sft

--explain prints what can be set and what it means, --list what there is to
choose from, and neither runs anything (explain.py, catalogue.py).

Exit codes:
  0   done, also when it was done before
  1   a bug, with a traceback
  2   a mistake in the command, the configuration, the data or the machine's
      set-up: one message says which value, which rule and what to do
  3   training diverged
  42  another process of the run died: start all of them again
  75  stopped by a signal with a checkpoint saved: the same command goes on

RLHF_JAX_TRACEBACK=1 shows where a mistake was noticed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import shlex
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags, logging

import rlhf_jax
from rlhf_jax import allocator, command, output
from rlhf_jax.schema import UserError

OPTIONS = {
  "workdir": (None, "Where everything is written."),
  "distributed": ("auto", "auto, off or HOST:PORT,PROCESSES,INDEX."),
  "track": ("", "Send metrics there, too: wandb, mlflow, or both."),
  "smoke": (False, "A short trial: two steps a stage, few and short rows."),
  "explain": (False, "Print the fields of the experiment; see explain.py."),
  "list": (False, "Print what there is to choose from; see catalogue.py."),
}
PEER_LOST = (
  "another process of this run is gone ({:.200}). Start all processes again; "
  "they go on from the last checkpoint."
)
EXIT_USAGE = command.EXIT_USAGE
EXIT_DIVERGED = 3


def set_up_jax() -> None:
  """Sets what must be set before the first computation.

  Compiled programs are kept in $RLHF_JAX_CACHE/xla (default
  ~/.cache/rlhf_jax/xla), or where JAX_COMPILATION_CACHE_DIR says, and reused by
  the next process.
  """
  import jax

  from rlhf_jax.data import caches

  logging.set_verbosity(logging.FATAL)  # Orbax logs all that it raises
  caches.keep_compiled()
  jax.config.update("jax_threefry_partitionable", True)


def join_processes(text: str) -> None:
  """Joins the other processes of a run; only the first one talks."""
  import jax

  from rlhf_jax import distributed, terminal
  from rlhf_jax.parallel import mesh

  distributed.initialise(text)
  mesh.all_devices()
  if jax.process_count() > 1 and not distributed.is_first():
    sys.stdout = open(os.devnull, "w")
    terminal.Progress.default_stream = sys.stdout


def run(
  config: Any,
  workdir: Path,
  *,
  is_smoke: bool = False,
  given: Collection[str] = (),
  track: str = "",
) -> int:
  """Runs the pipeline that the configuration names; returns the exit code.

  Args:
    config: the experiment.
    workdir: of the run.
    is_smoke: whether it is cut to a short trial.
    given: fields that the command line sets, which no trial changes.
    track: trackers that metrics are sent to, with commas between.
  """
  import jax

  from rlhf_jax import distributed, interrupt, pipelines, startup, trackers
  from rlhf_jax.pipelines import closing, pinned, smoke
  from rlhf_jax.pipelines import workdir as workdir_lib
  from rlhf_jax.runs import lock, loop

  startup.begin(imports_seconds=time.perf_counter() - rlhf_jax.BEGUN)
  workdir = Path(workdir).expanduser()
  try:
    names = trackers.parse(track) if distributed.is_first() else ()
    if is_smoke:
      smoke.shorten(config, workdir, given)
    pipelines.read(config, workdir)  # mistakes first, without a network
    commits = pinned.pin(config, workdir / workdir_lib.CONFIG_FILE)
    job = pipelines.read(config, workdir)
    world = job.open(workdir)
    job.check(world)
    workdir_lib.make_folder(workdir)
    with lock.held(workdir):
      changes = workdir_lib.prepare(config, job, workdir)
      with (
        workdir_lib.recorded(workdir, workdir_lib.describe(config, commits)),
        workdir_lib.explained(changes),
        trackers.tracking(names, workdir, config.to_dict()),
      ):
        job.run(world)
      if distributed.is_first():
        closing.say(job, workdir, sys.argv, is_smoke)
  except (interrupt.Stopped, KeyboardInterrupt) as stopped:
    interrupt.settle()
    line = shlex.join(["python", "-m", "rlhf_jax.main", *sys.argv[1:]])
    what = str(stopped).partition(";")[0] or "stopped between checkpoints"
    print(f"\n{what}. To go on, run the same command:\n  {line}")
    return output.EXIT_INTERRUPTED
  except SystemExit as error:  # of code that the experiment names
    return command.fail(
      error,
      f"code of the experiment ended the process (sys.exit({error.code!r})). "
      "Let it raise an error instead.",
    )
  except loop.NonFiniteError as error:
    return command.fail(error, str(error), EXIT_DIVERGED)
  except Exception as error:
    if distributed.is_peer_lost(error):
      return command.fail(
        error, PEER_LOST.format(str(error)), distributed.EXIT_PEER_LOST
      )
    message = told(error)
    if message is None:
      if jax.process_count() > 1:
        traceback.print_exception(error)
        _leave_if_alone(1)
      raise
    return command.fail(error, message)
  return 0


def _leave_if_alone(code: int) -> None:
  """Ends a process that failed, without waiting for the others.

  A normal exit waits for all processes, which wait for this one. They notice
  that it is gone and leave with EXIT_PEER_LOST; where it did not fail they are
  told so.
  """
  import jax

  from rlhf_jax import distributed

  if code in (0, output.EXIT_INTERRUPTED):
    distributed.farewell()
  elif jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def told(error: Exception) -> str | None:
  """Returns what a person can mend, or None for a bug.

  What a person gave is a UserError; beyond that the machine may have too little
  memory or room, or refuse a file.
  """
  text = str(error)
  if isinstance(error, UserError):
    return text
  if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
    return (
      f"out of memory ({text.splitlines()[0] if text else 'host'}). Lower "
      "schedule.batch_size or max_length, raise microbatches, or set "
      "model.remat=True."
    )
  if isinstance(error, OSError):
    return (
      f"{text}. Check that the path is right, that it may be written, and that "
      "the disk has room."
    )
  return None


def _say_first(argv: list[str]) -> None:
  """Says at once what happens: importing jax takes seconds, without a word.

  Lines reach a file or a pipe as they are printed.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True)
  files = [x.partition("=")[2] for x in argv if x.startswith("--config=")]
  is_other = any(x.startswith("--distributed=") for x in argv) and not any(
    x.startswith("--distributed=") and x.endswith(",0") for x in argv
  )
  if files and not is_other and not any(x.startswith("--help") for x in argv):
    with contextlib.suppress(OSError):  # nobody reads it: see interrupt.py
      print(f"rlhf_jax: reading {files[0]}, importing jax", flush=True)


def main(argv: list[str]) -> int:
  """Runs what a command line says; returns the exit code."""
  if "--list" in argv:
    from rlhf_jax import catalogue

    return catalogue.main(argv[:1])
  if "--explain" in argv:
    from rlhf_jax import explain

    return explain.main(argv, OPTIONS)
  _say_first(argv)
  allocator.keep_blocks()
  values = command.parse(argv, OPTIONS, __doc__, needs_workdir=True)
  from rlhf_jax import interrupt

  interrupt.prepare()
  faulthandler.enable()
  logging.use_absl_handler()
  flags.FLAGS(argv[:1])  # absl's own, which logging reads, as they are
  try:
    set_up_jax()
  except OSError as error:
    message = f"RLHF_JAX_CACHE: cannot write the cache ({error})."
    return command.fail(error, f"{message} Set it to another folder.")
  try:
    join_processes(values.distributed)
  except UserError as error:
    return command.fail(error, str(error))
  except RuntimeError as error:  # some may have joined, and would be waited for
    code = command.fail(error, str(error))
    sys.stderr.flush()
    os._exit(code)
  with output.never_silent():
    code = run(
      values.config,
      Path(values.workdir),
      is_smoke=values.smoke,
      given=command.given(argv),
      track=values.track,
    )
  interrupt.settle()
  _leave_if_alone(code)
  return code


if __name__ == "__main__":
  output.run_command(main, sys.argv)
