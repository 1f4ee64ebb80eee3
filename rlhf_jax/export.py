"""Write a finished run as a folder that other programs load.

    python -m rlhf_jax.export --run=runs/x --output=DIR [--dtype=bfloat16]

The same as configs/export.py (pipelines/export_run.py), without a working
directory: the folder is DIR itself. A run is named as everywhere: runs/x,
runs/x@best, runs/x@12; the source of a model (asset:NAME, a .gguf file, a
folder) is written as it is. `export` takes a value of lab.py too.

Exit codes: 0 written, 2 a mistake (one line says which value, which rule and
what to do).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rlhf_jax import output
from rlhf_jax.exports import folders
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.folders import How
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.notebook.models import Policy, RewardModel
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import export_run
from rlhf_jax.programs.world import World
from rlhf_jax.schema import UserError, located

EXIT_USAGE = 2


def export(
  source: str | Path | Policy | RewardModel,
  folder: str | Path,
  *,
  evaluation: str = "",
  mesh: mesh_lib.Config | None = None,
  **how: Any,
) -> Path:
  """Writes a model as a folder that other programs load; returns the folder.

  Args:
    source: folder of a finished run (@best, @STEP), the source of a model, or
      a value of lab.py.
    folder: new, or empty.
    evaluation: see export_run.Settings.
    mesh: devices that a run is loaded on; None for one.
    **how: fields of folders.How: form, dtype, max_shard_size, base, member.

  Raises:
    UserError: nothing there that could leave, a form that it cannot have, or
      something in the folder already.
  """
  path = Path(folder).expanduser()
  folders.check_new(path)
  if isinstance(source, Policy | RewardModel):
    facts = Facts(trained_by=source.methods)
    folders.write(_of_value(source), path, How(**how), facts)
    return path
  settings = export_run.Settings(
    run=str(source),
    evaluation=evaluation,
    mesh=mesh_lib.Config(devices=1) if mesh is None else mesh,
    **how,
  )
  with located(""):
    export_run.check_sources(settings)
    world = World.open(settings.mesh, path.parent)
    export_run.write(settings, world, path)
  return path


def _of_value(model: Policy | RewardModel) -> Leaving:
  """Returns a model value as what leaves."""
  return Leaving(
    model.base,
    model.role,
    model.stage.variables,
    model.facts(),
    merged_from=model.origin.merged_from,
  )


@output.never_silent()
def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rlhf_jax.export",
    description="Writes a finished run as a folder that other programs load.",
  )
  add: Any = parser.add_argument
  add("--run", required=True, help="runs/x, runs/x@best or runs/x@STEP")
  add("--output", required=True, help="a new or an empty folder")
  usual = How()
  add("--form", default=usual.form, help=", ".join(folders.FORMS))
  add("--dtype", default=usual.dtype, help="float32, bfloat16, float16, q8_0")
  add("--max_shard_size", default=usual.max_shard_size, help="of a file")
  add("--base", default=usual.base, help="what an adapter is for")
  add("--member", type=int, help="of an ensemble of reward models, from 0")
  add("--evaluation", default="", help="folder of an evaluation of the run")
  given = vars(parser.parse_args(arguments))
  try:
    path = export(given.pop("run"), given.pop("output"), **given)
  except (UserError, OSError) as error:
    if os.environ.get("RLHF_JAX_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE
  print(f"{path}: {', '.join(sorted(p.name for p in path.iterdir()))}")
  return 0


if __name__ == "__main__":
  output.run_command(main)
