"""Which methods trained a policy, one stage after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.schema import UserError


def history(workdir: str | Path) -> list[tuple[str, int]]:
  """Returns (method, steps) of the stages that led to a finished one.

  From the first to the last, as far as their folders are still there.

  Args:
    workdir: the stage's directory, with @STEP or not.
  """
  folder, step = stages.place(workdir)
  info = stages.read_stage(folder)
  if info is None:
    return []
  if "methods" in info:  # what a notebook did, and all before
    return [_method(pair, folder) for pair in info["methods"]]
  before = info.get("init_from") or info.get("merged_from")
  earlier = history(folder / before) if before else []
  steps = int(step) if step.isdigit() else _last_step(folder, info)
  if step == "best":
    steps = stages.step_of(workdir)
  return [*earlier, (_method_of(folder, info), steps)]


def _last_step(folder: Path, info: dict) -> int:
  """Returns the step that a stage ended with, as @STEP counts them.

  stage.json may count gradient updates, of which a step may be several.
  """
  kept: list[int] = []
  if (folder / "checkpoints").is_dir():
    with checkpoint.Checkpoints(
      str(folder / "checkpoints"), is_read_only=True
    ) as saved:
      kept = saved.steps()
  return max(kept, default=info.get("steps", 0))


def _method(pair: Any, folder: Path) -> tuple[str, int]:
  """Returns (method, steps) as stage.json has it."""
  kinds = [type(value) for value in pair] if isinstance(pair, list) else []
  if kinds != [str, int]:
    raise UserError(
      f"{folder / stages.STAGE_FILE}: damaged ('methods' holds {pair!r:.60}). "
      "Bring the file back."
    )
  return pair[0], pair[1]


def _method_of(folder: Path, info: dict) -> str:
  """Returns the name of a stage's method, or of its pipeline."""
  if isinstance(info.get("algorithm", {}).get("name"), str):
    return info["algorithm"]["name"]
  for path, inside in ((folder, ()), (folder.parent, (folder.name,))):
    record = path / "config.json"  # main.py writes it, for all stages of a run
    if not record.is_file():
      continue
    values = strict_json.read_object(record, "Move the damaged file away.")
    for name in ("config", *inside, "algorithm", "name"):
      values = values.get(name) if isinstance(values, dict) else None
    if isinstance(values, str):
      return values
  return info["pipeline"]
