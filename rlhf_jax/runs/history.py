"""Which methods trained a policy, one stage after the other."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.runs import stages


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
    return [(name, steps) for name, steps in info["methods"]]
  before = info.get("init_from") or info.get("merged_from")
  earlier = history(folder / before) if before else []
  steps = int(step) if step.isdigit() else info.get("steps", 0)
  if step == "best":
    steps = stages.step_of(workdir)
  return [*earlier, (_method_of(folder, info), steps)]


def _method_of(folder: Path, info: dict) -> str:
  """Returns the name of a stage's method, or of its pipeline."""
  if "algorithm" in info:
    return info["algorithm"]["name"]
  for path, inside in ((folder, ()), (folder.parent, (folder.name,))):
    record = path / "config.json"  # main.py writes it, for all stages of a run
    if not record.is_file():
      continue
    values = json.loads(record.read_text())
    for name in ("config", *inside, "algorithm", "name"):
      values = values.get(name) if isinstance(values, dict) else None
    if values is not None:
      return values
  return info["pipeline"]
