"""The table of pipelines, and how one is read, checked and run.

A new pipeline is one file that makes a Pipeline (programs/pipeline.py) and one
line here; an experiment may also name one by import path, file.py:PIPELINE.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import imported
from rlhf_jax.pipelines import (
  ai_feedback,
  average_rewards,
  behaviour,
  bond,
  constitution,
  evaluate,
  evaluate_many,
  evaluate_tasks,
  export_run,
  generate_answers,
  ghost_attention,
  iterate,
  online_preference,
  policy,
  preference,
  process_reward,
  red_team,
  rejection,
  report_card,
  reward,
  rlhf,
  score_texts,
  segments,
  self_play,
  sft,
)
from rlhf_jax.programs.pipeline import Job, Pipeline
from rlhf_jax.runs import lock
from rlhf_jax.schema import UserError

PIPELINES: dict[str, Pipeline] = {
  "sft": sft.PIPELINE,
  "reward": reward.PIPELINE,
  "average_rewards": average_rewards.PIPELINE,
  "process_reward": process_reward.PIPELINE,
  "preference": preference.PIPELINE,
  "self_play": self_play.PIPELINE,
  "policy": policy.PIPELINE,
  "rejection": rejection.PIPELINE,
  "online_preference": online_preference.PIPELINE,
  "bond": bond.PIPELINE,
  "evaluate": evaluate.PIPELINE,
  "evaluate_many": evaluate_many.PIPELINE,
  "evaluate_tasks": evaluate_tasks.PIPELINE,
  "generate_answers": generate_answers.PIPELINE,
  "score_texts": score_texts.PIPELINE,
  "ai_feedback": ai_feedback.PIPELINE,
  "constitution": constitution.PIPELINE,
  "segments": segments.PIPELINE,
  "ghost_attention": ghost_attention.PIPELINE,
  "red_team": red_team.PIPELINE,
  "report_card": report_card.PIPELINE,
  "behaviour": behaviour.PIPELINE,
  "export": export_run.PIPELINE,
  "rlhf": rlhf.PIPELINE,
  "iterate": iterate.PIPELINE,
}


def find(name: Any, field: str = "config.pipeline") -> Pipeline:
  """Returns a pipeline by its name or its import path.

  Args:
    name: a key of PIPELINES, or file.py:PIPELINE.
    field: where it stands, for messages.

  Raises:
    UserError: there is none of that name.
  """
  try:
    return imported.find(
      name,
      PIPELINES,
      Pipeline,
      field,
      "Make one as the end of rlhf_jax/pipelines/sft.py does.",
    )
  except ValueError as error:
    raise UserError(str(error)) from error


def read(config: Any, workdir: str | Path = "") -> Job:
  """Returns what an experiment says: a pipeline and its settings, checked.

  Args:
    config: a tree of defaults.py, changed.
    workdir: where a whole run has the folders of its stages.

  Raises:
    UserError: value, rule and remedy.
  """
  if hasattr(config, "copy_and_resolve_references"):
    config = config.copy_and_resolve_references()
  return _read(config, "", Path(workdir))


def _read(
  values: Any,
  name: str,
  workdir: Path,
  place: Mapping[str, Any] | None = None,
) -> Job:
  """Returns the job of an experiment, or of a stage of a whole run.

  Args:
    values: tree.
    name: where it stands, "" or "policy".
    workdir: of the whole run.
    place: what the stage must be, for Pipeline.fits.
  """
  dotted = f"{name}." if name else ""
  field, given = f"config.{dotted}pipeline", values.get("pipeline")
  pipeline = find(given, field)
  if place is not None and not pipeline.fits(**place):
    fitting = [key for key, other in PIPELINES.items() if other.fits(**place)]
    raise UserError(
      f"{field}={given!r}: must be one of {', '.join(fitting)}, or the import "
      "path of a Pipeline that leaves the same as they do and has the fields "
      f"{', '.join(place['fields'])}."
    )

  def stage(part: Any, where: str, metadata: Mapping[str, Any]) -> Job:
    return _read(part, where, workdir, metadata)

  settings = pipeline.read(values, name, workdir, stage)
  return Job(pipeline, settings, dotted)


def run(config: Any, workdir: str | Path) -> dict:
  """Reads an experiment, checks it, and runs it on this machine.

  Args:
    config: a tree of defaults.py, changed.
    workdir: where everything is written.

  Returns:
    what the pipeline returns: stage.json, or the numbers of an evaluation.

  Raises:
    UserError: value, rule and remedy.
  """
  job = read(config, workdir)
  world = job.open(workdir)
  job.check(world)
  world.workdir.mkdir(parents=True, exist_ok=True)
  with lock.held(world.workdir):
    return job.run(world)
