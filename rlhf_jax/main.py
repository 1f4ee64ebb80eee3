"""The command: one configuration, one working directory.

    python -m rlhf_jax.main --config=configs/quickstart.py --workdir=runs/x
    python -m rlhf_jax.main --config=configs/sft.py \\
        --config.data.source=my.jsonl --workdir=runs/sft

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

import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax import command
from rlhf_jax.schema import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment file, file.py or file.py:argument."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")

_DISTRIBUTED = flags.DEFINE_string(
  "distributed", "auto", "auto, off or HOST:PORT,PROCESSES,INDEX."
)

PEER_LOST = (
  "another process of this run is gone ({:.200}). Start all processes again; "
  "they go on from the last checkpoint."
)
EXIT_USAGE = 2
EXIT_DIVERGED = 3
_LATE = ("Event loop is closed", "cannot schedule new futures after shutdown")
PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "tokenizers",
)


def describe_run(config: Any) -> str:
  """Returns config.json: every value, the command, code and packages."""
  import rlhf_jax

  record = {
    "config": config.to_dict(),
    "command": [
      os.path.basename(sys.executable),
      "-m",
      "rlhf_jax.main",
      *sys.argv[1:],
    ],
    "code": rlhf_jax.__version__,
    "packages": {name: metadata.version(name) for name in PACKAGES},
  }
  return json.dumps(record, indent=2, default=str) + "\n"


def set_up_jax() -> None:
  """Sets what must be set before the first computation.

  Compiled programs are kept in $RLHF_JAX_CACHE/xla (default
  ~/.cache/rlhf_jax/xla) and reused by the next process.
  """
  import jax

  from rlhf_jax.data import assets

  logging.set_verbosity(logging.FATAL)  # Orbax logs all that it raises
  cache = assets.cache_directory() / "xla"
  cache.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  jax.config.update("jax_threefry_partitionable", True)


def join_processes(text: str) -> None:
  """Joins the other processes of a run; only the first one talks."""
  import jax

  from rlhf_jax import distributed, metrics

  distributed.initialise(text)
  if jax.process_count() > 1 and not distributed.is_first():
    sys.stdout = open(os.devnull, "w")
    metrics.Progress.default_stream = sys.stdout


def run(config: Any, workdir: Path) -> int:
  """Runs the pipeline that the configuration names; returns the exit code."""
  import jax

  from rlhf_jax import distributed, interrupt, pipelines
  from rlhf_jax.pipelines import workdir as workdir_lib
  from rlhf_jax.runs import loop

  workdir = Path(workdir).expanduser()
  try:
    job = pipelines.read(config, workdir)
    world = job.open(workdir)
    job.check(world)
    workdir_lib.prepare(config, job, workdir)
    with workdir_lib.recorded(workdir, describe_run(config)):
      job.run(world)
  except (interrupt.Stopped, KeyboardInterrupt) as stopped:
    line = shlex.join(["python", "-m", "rlhf_jax.main", *sys.argv[1:]])
    what = str(stopped) if str(stopped) else "stopped between checkpoints"
    print(f"\n{what}. To go on, run the same command:\n  {line}")
    return interrupt.EXIT_INTERRUPTED
  except loop.NonFiniteError as error:
    return _fail(error, str(error), EXIT_DIVERGED)
  except Exception as error:
    if distributed.is_peer_lost(error):
      return _fail(
        error, PEER_LOST.format(str(error)), distributed.EXIT_PEER_LOST
      )
    message = told(error)
    if message is None:
      if jax.process_count() > 1:
        traceback.print_exception(error)
        _leave_if_alone(1)
      raise
    return _fail(error, message, EXIT_USAGE)
  return 0


def _leave_if_alone(code: int) -> None:
  """Ends a process that failed, without waiting for the others.

  A normal exit waits for all processes, which wait for this one. They notice
  that it is gone and leave with EXIT_PEER_LOST; where it did not fail they are
  told so.
  """
  import jax

  from rlhf_jax import distributed, interrupt

  if code in (0, interrupt.EXIT_INTERRUPTED):
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


def _fail(error: Exception, message: str, code: int) -> int:
  """Prints an error in one message; returns the exit code."""
  if os.environ.get("RLHF_JAX_TRACEBACK"):
    traceback.print_exception(error)
  print(f"error: {message}", file=sys.stderr)
  return code


def _terminate(number: int, frame: Any) -> None:
  """Makes SIGTERM outside of a training loop end as Ctrl-C does."""
  del number, frame
  raise KeyboardInterrupt


def _without_late(show: Callable[[Any], None]) -> Callable[[Any], None]:
  """Returns a hook that leaves out what threads of a failed save still meet.

  Threads of TensorStore and Orbax go on for a moment after Orbax has raised
  the reason, which is reported; hundreds of complaints would bury it.
  """

  def hook(found: Any) -> None:
    if not (found.exc_type is RuntimeError and str(found.exc_value) in _LATE):
      show(found)

  return hook


def _main(argv: list[str]) -> int:
  del argv
  signal.signal(signal.SIGTERM, _terminate)
  sys.unraisablehook = _without_late(sys.__unraisablehook__)
  threading.excepthook = _without_late(threading.__excepthook__)
  try:
    set_up_jax()
  except OSError as error:
    message = f"RLHF_JAX_CACHE: cannot write the cache ({error})."
    return _fail(error, f"{message} Set it to another folder.", EXIT_USAGE)
  try:
    join_processes(_DISTRIBUTED.value)
  except UserError as error:
    return _fail(error, str(error), EXIT_USAGE)
  except RuntimeError as error:  # some may have joined, and would be waited for
    code = _fail(error, str(error), EXIT_USAGE)
    sys.stderr.flush()
    os._exit(code)
  code = run(_CONFIG.value, Path(_WORKDIR.value))
  _leave_if_alone(code)
  return code


def _parse(argv: list[str]) -> list[str]:
  """Parses the command line; ends with exit code 2 at a mistake."""
  command.accept_none()
  try:
    command.check_before(argv)
    rest = flags.FLAGS(argv)
    command.check_after(rest, _CONFIG.value, _WORKDIR.value, argv)
    return rest
  except command.CommandError as error:
    sys.exit(_fail(error, str(error), EXIT_USAGE))
  except Exception as error:
    message = command.explain(argv, error)
    if message is None:
      raise
    sys.exit(_fail(error, message, EXIT_USAGE))


if __name__ == "__main__":
  app.run(_main, flags_parser=_parse)
