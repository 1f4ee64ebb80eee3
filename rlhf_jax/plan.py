"""Does it fit, at what cost: an experiment on a TPU slice.

    python -m rlhf_jax.plan --config=configs/recipes/ppo.py:model=llama3_8b \\
        --topology=v5e:8x8

The functions that the run would call are compiled for the slice, without a
TPU, when libtpu is installed (pip install '.[tpu]'); otherwise, or with
--analytic, weights and optimizer are counted and the rest is estimated. No
weights and no data are read. --json=FILE writes everything; --phase=NAME
plans one stage.

Exit codes: 0 it fits, 2 it does not (remedies are printed) or the command is
mistaken.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rlhf_jax import command, output
from rlhf_jax.schema import UserError

OPTIONS = {
  "topology": ("", "v5e:8x8, v5p:4x4x4, cpu:8."),
  "analytic": (False, "Estimate; compile nothing."),
  "json": ("", "File for all numbers."),
  "phase": ("", "Plan only this stage."),
}
EXIT_TOO_LARGE = 2
EXAMPLE = "--config=configs/ppo.py --topology=v5e:8x8"
# What keeps libtpu from looking for a TPU; set before JAX is imported.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
NO_COMPILER = (
  "libtpu is not installed, so this is an analytic estimate. To compile for "
  "the slice: pip install 'jax[tpu]' (no TPU is needed)."
)


def simulate(count: int) -> None:
  """Makes JAX show so many CPU devices, if nothing has asked for them yet."""
  flag = "--xla_force_host_platform_device_count"
  if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
      f"{os.environ.get('XLA_FLAGS', '')} {flag}={count}".strip()
    )


def run(
  config: Any, topology_name: str, *, analytic: bool, phase: str, file: str
) -> int:
  """Plans, prints, and returns the exit code.

  Args:
    config: an experiment.
    topology_name: "v5e:8x8".
    analytic: compile nothing.
    phase: the one wanted, or "".
    file: for JSON, or "".

  Raises:
    UserError: a mistake in the configuration or the slice.
  """
  from rlhf_jax.planning import remedies, report, table, topology

  slice_ = topology.parse(topology_name)
  if slice_.chip.generation == "cpu":
    simulate(slice_.devices)
  compiles = not analytic and topology.has_compiler(slice_)
  if not compiles and not analytic:
    print(NO_COMPILER)
  found = report.make(
    config,
    slice_,
    compiles=compiles,
    only=phase,
    progress=_show if compiles else None,
  )
  print(table.render(found))
  if file:
    text = json.dumps(table.as_json(found), indent=2) + "\n"
    Path(file).expanduser().write_text(text)
  if not found.too_large and not found.is_host_too_small:
    return 0
  print(f"\n{remedies.advice(config, found)}")
  return EXIT_TOO_LARGE


def _show(what: str) -> None:
  print(f"compiling {what}", file=sys.stderr, flush=True)


@output.never_silent()
def main(argv: list[str]) -> int:
  """Plans what a command line says; returns the exit code."""
  values = command.parse(argv, OPTIONS, __doc__, example=EXAMPLE)
  if not values.topology:
    print(f"error: --topology missing, for example {EXAMPLE}.", file=sys.stderr)
    return EXIT_TOO_LARGE
  try:
    return run(
      values.config,
      values.topology,
      analytic=values.analytic,
      phase=values.phase,
      file=values.json,
    )
  except (UserError, OSError) as error:
    return command.fail(error, str(error))


if __name__ == "__main__":
  os.environ.update(ENVIRONMENT)
  output.run_command(main, sys.argv)
