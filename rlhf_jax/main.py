"""The command: one configuration, one working directory.

    python -m rlhf_jax.main --config=configs/quickstart.py --workdir=runs/x
    python -m rlhf_jax.main --config=configs/sft.py \\
        --config.data.source=my.jsonl --workdir=runs/sft

Exit codes: 0 done (also when it was done before), 2 a mistake in the command,
the configuration or the data, 3 training diverged, 75 stopped by a signal
with a checkpoint saved: the same command goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment file, file.py or file.py:argument."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")

EXIT_USAGE = 2
EXIT_DIVERGED = 3
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


def write_config(config: Any, workdir: Path) -> None:
  """Writes config.json: every value, the command, code and package versions."""
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
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(record, indent=2, default=str)
  (workdir / "config.json").write_text(text + "\n")


def set_up_jax() -> None:
  """Sets what must be set before the first computation.

  Compiled programs are kept in $RLHF_JAX_CACHE/xla (default
  ~/.cache/rlhf_jax/xla) and reused by the next process.
  """
  import jax

  from rlhf_jax.data import assets

  logging.set_verbosity(logging.ERROR)
  cache = assets.cache_directory() / "xla"
  cache.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  jax.config.update("jax_threefry_partitionable", True)


def run(config: Any, workdir: Path) -> int:
  """Runs the pipeline that the configuration names; returns the exit code."""
  from rlhf_jax import interrupt
  from rlhf_jax.checkpoint import CheckpointError
  from rlhf_jax.data.assets import AssetError
  from rlhf_jax.data.sources import DataError
  from rlhf_jax.pipelines import RUN, loop
  from rlhf_jax.pipelines.config import ConfigError

  mistakes = (
    ConfigError,
    DataError,
    AssetError,
    CheckpointError,
    ValueError,
    OSError,
  )
  try:
    if config.get("pipeline") not in RUN:
      raise ConfigError(
        f"config.pipeline={config.get('pipeline')!r}: must be one of "
        f"{', '.join(RUN)}."
      )
    write_config(config, workdir)
    RUN[config.pipeline](config, workdir)
  except (interrupt.Stopped, KeyboardInterrupt) as stopped:
    command = shlex.join(["python", "-m", "rlhf_jax.main", *sys.argv[1:]])
    what = str(stopped) if str(stopped) else "stopped between checkpoints"
    print(f"\n{what}. To go on, run the same command:\n  {command}")
    return interrupt.EXIT_INTERRUPTED
  except loop.NonFiniteError as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_DIVERGED
  except mistakes as error:
    if os.environ.get("RLHF_JAX_TRACEBACK"):
      raise
    print(
      f"error: {error}\n(RLHF_JAX_TRACEBACK=1 shows where this was raised.)",
      file=sys.stderr,
    )
    return EXIT_USAGE
  return 0


def _terminate(number: int, frame: Any) -> None:
  """Makes SIGTERM outside of a training loop end as Ctrl-C does."""
  del number, frame
  raise KeyboardInterrupt


def _main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise app.UsageError(
      f"unexpected arguments {argv[1:]}: options are written --name=value."
    )
  if _CONFIG.value is None or not _WORKDIR.value:
    raise app.UsageError("--config=FILE.py and --workdir=DIR are both needed.")
  signal.signal(signal.SIGTERM, _terminate)
  set_up_jax()
  return run(_CONFIG.value, Path(_WORKDIR.value))


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a mistake is one line and exit code 2, not a traceback."""
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
  ) as error:
    text = str(error).strip("\"'")
    hint = ""
    if isinstance(error, (AttributeError, KeyError)):
      text = f"no such config field: {text}"
      hint = " Fields and defaults: rlhf_jax/pipelines/defaults.py."
    print(f"error: {text}.{hint}", file=sys.stderr)
    sys.exit(EXIT_USAGE)


if __name__ == "__main__":
  app.run(_main, flags_parser=_parse)
