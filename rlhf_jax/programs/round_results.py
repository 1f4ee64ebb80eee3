"""What rounds leave together: their held-out numbers, and the best of them.

    round_N/metrics.jsonl   each measurement while a round trains
    metrics.jsonl           the last one of each round, at the round's number
    FOLDER@best             the best measured step of all rounds

A round that starts from the base model may be worse than the one before it, so
the best step of a run is not always one of its last round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, metrics
from rlhf_jax.programs import own_samples, several
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.runs.loop import MEASURED, Schedule
from rlhf_jax.types import PyTree


def measured(folder: Path) -> dict[str, float]:
  """Returns the last held-out numbers of a round, {} where none were taken.

  Args:
    folder: of the round.
  """
  path = folder / "metrics.jsonl"
  rows = metrics.read_metrics(path) if path.is_file() else []
  found = [
    {name: x for name, x in row.items() if name.startswith(MEASURED)}
    for row in rows
  ]
  return next((row for row in reversed(found) if row), {})


def tell(
  writer: metrics.MetricsWriter, number: int, folder: Path, phase: str
) -> None:
  """Writes the held-out numbers of a finished round, unless they are there.

  Args:
    writer: of the run's metrics.
    number: of the round, the step of the row.
    folder: of the round.
    phase: of the run's rows.
  """
  row = measured(folder)
  if not row or not writer.metrics_path.is_file():
    return
  told = metrics.read_metrics(writer.metrics_path)
  at = [x for x in told if (x["step"], x["phase"]) == (number, phase)]
  if not any(row.keys() <= x.keys() for x in at):
    writer.write(number, row, phase)


def best_at(folders: Iterable[Path], schedule: Schedule) -> dict[str, str]:
  """Returns what stage.json says of the best step of all rounds.

  Only numbers of held-out data compare: a round trains on data of its own.
  Of equals the newest is the best, as within a round.

  Args:
    folders: of the rounds, in their order.
    schedule: of each.

  Returns:
    {"best_at": "round_2@best"}, or {} where none was measured.
  """
  if not schedule.keep_best.startswith(MEASURED):
    return {}
  sign = -1.0 if schedule.best_of == "min" else 1.0
  found: list[tuple[float, str]] = []
  for folder in folders:
    with checkpoint.Checkpoints(
      str(folder / "checkpoints"), best=schedule.best_of, is_read_only=True
    ) as saved:
      step = saved.best()
      score = None if step is None else saved.score(step)
    if score is not None:
      found.append((sign * score, folder.name))
  if not found:
    return {}
  top = max(value for value, _ in found)
  name = [name for value, name in found if value == top][-1]
  return {"best_at": f"{name}@best"}


def finish(
  settings: Any,
  opened: own_samples.Opened,
  params: PyTree,
  folders: Sequence[Path],
  phase: str,
  **facts: Any,
) -> dict:
  """Saves the policy of the last round as that of the run; returns stage.json.

  Args:
    settings: of the run.
    opened: roles.
    params: trained tree of the last round.
    folders: of the rounds, in their order.
    phase: the pipeline's name, of the rows of the run.
    **facts: more for stage.json.
  """
  workdir, number = opened.world.workdir, len(folders)
  with checkpoint.Checkpoints(str(workdir / "checkpoints")) as saved:
    if saved.latest() != number:
      saved.save(
        number,
        {"train": {"params": params}},
        opened.identity,
        is_final=True,
      )
  told = _reports(workdir, phase) if distributed.is_first() else []
  return stages.write_stage(
    workdir,
    phase,
    opened.base,
    opened.actors.plan.policy,
    asked=settings.asked,
    steps=number,
    rounds=told,
    init_from=settings.init_from,
    reference=settings.reference,
    merged_from=opened.actors.merged_from,
    **best_at(folders, settings.schedule),
    **several.facts(settings),
    **facts,
  )


def _reports(workdir: Path, phase: str) -> list[dict[str, Any]]:
  """Returns what was sampled and measured in each round, in order."""
  found: dict[int, dict[str, Any]] = {}
  for row in metrics.read_metrics(workdir / "metrics.jsonl"):
    if row.get("phase") == phase:
      areas = (f"{phase}/", *MEASURED)
      told = {k: v for k, v in row.items() if k.startswith(areas)}
      found[row["step"]] = found.get(row["step"], {}) | told
  return [found[step] for step in sorted(found)]
