"""A finished stage becomes a folder that other programs load.

    python -m rlhf_jax.main --config=configs/export.py \\
        --config.run=runs/x --workdir=exports/x

writes WORKDIR/model, or WORKDIR/adapter, /gguf: exports/folders.py says what is
in it.
export.json says what was written, and of which run. The numbers of the model
card are the run's own (exports/facts.py); an evaluation beside a stage of a
whole run is found, another one may be named.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, schema, strict_json
from rlhf_jax.exports import facts, folders, opened
from rlhf_jax.exports.folders import How
from rlhf_jax.models import model_sources
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import evaluate
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError

RESULT_FILE = "export.json"


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """A finished stage as a folder for transformers, vLLM or peft."""

  run: str = (
    ""  # folder of a finished stage, with @best or @STEP; or the source
  )
  # of a model: asset:NAME, a .gguf file, a folder
  form: str = How.form  # "model": whole weights, LoRA merged; "adapter"; "gguf"
  dtype: str = How.dtype  # of the tensors: float32, bfloat16 or float16; of
  # form "gguf" q8_0 too
  max_shard_size: str = How.max_shard_size  # of the tensors of a file
  base: str = How.base  # folder or hub name that an adapter says it is for; "":
  # where the run had its base model from
  member: int | None = How.member  # of an ensemble of reward models, from 0
  source: str = ""  # where the run's base model is now; "": where it was
  evaluation: str = ""  # folder of an evaluation of the run, for the model
  # card; "": the one beside a stage of a whole run
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    _ = self.how

  @property
  def how(self) -> How:
    """How the model is written."""
    names = [field.name for field in dataclasses.fields(How)]
    return How(**{name: getattr(self, name) for name in names})


def check_sources(settings: Settings) -> None:
  """Checks that the run is finished, and the evaluation one of it.

  Raises:
    FieldError: value, rule and remedy.
  """
  info = opened.check_run(settings.run)
  if settings.source and not info:
    raise FieldError(
      f"source={settings.source!r}: {settings.run} is a model itself. Leave "
      "it out."
    )
  if settings.source:
    try:
      model_sources.check_source(settings.source, "base")
    except FieldError as error:
      raise FieldError(str(error).removeprefix("base.")) from error
  if settings.evaluation and not info:
    raise FieldError(
      f"evaluation={settings.evaluation!r}: {settings.run} is no run. Leave it "
      "out."
    )
  if settings.evaluation:
    read_evaluation(settings.run, Path(settings.evaluation).expanduser())


def check(settings: Settings, world: World) -> None:
  """Checks settings against what is on disk."""
  del world
  check_sources(settings)


def read_evaluation(run: str, folder: Path) -> dict[str, Any]:
  """Returns the numbers of an evaluation of a run.

  Raises:
    FieldError: there is none, or it is of another run.
  """
  if not (folder / evaluate.RESULT_FILE).is_file():
    raise FieldError(
      f"evaluation={str(folder)!r}: no {evaluate.RESULT_FILE} is there. Name "
      "the --workdir of a finished evaluation, or leave it out."
    )
  if not _is_of(run, folder):
    raise FieldError(
      f"evaluation={str(folder)!r}: is not of {run} as it is now. Evaluate it, "
      "or leave it out."
    )
  return evaluate.read_result(folder)


def _is_of(run: str, folder: Path) -> bool:
  """Says whether an evaluation judged exactly what a run left."""
  record = strict_json.read_object(
    folder / evaluate.RESULT_FILE, "Evaluate again.", allows_nan=True
  )
  origins = record.get(evaluate.ORIGINS)
  origins = origins if isinstance(origins, dict) else {}
  return origins.get("policy") == stages.stage_fingerprint(run)


def _evaluation(settings: Settings) -> dict[str, Any]:
  """Returns the numbers of the evaluation that is named or beside the run."""
  if settings.evaluation:
    named = Path(settings.evaluation).expanduser()
    return read_evaluation(settings.run, named)
  beside = stages.place(settings.run)[0].parent / "evaluation"
  is_there = (beside / evaluate.RESULT_FILE).is_file()
  if is_there and _is_of(settings.run, beside):
    return evaluate.read_result(beside)
  return {}


def write(settings: Settings, world: World, folder: Path) -> list[str]:
  """Writes the folder of a run; returns the names of its files.

  Args:
    settings: of the pipeline, checked.
    world: whose devices the run comes to.
    folder: new, or empty.
  """
  leaving = opened.load(settings.run, world, settings.source)
  known = facts.Facts()
  if leaving.info:
    numbers = _evaluation(settings)
    known = facts.of_run(settings.run, leaving.info, numbers)
  return folders.write(leaving, folder, settings.how, known)


def run(settings: Settings, world: World) -> dict:
  """Exports a finished stage; returns what export.json says."""
  path = world.workdir / RESULT_FILE
  is_run = bool(opened.check_run(settings.run))
  digest = stages.stage_fingerprint(settings.run) if is_run else ""
  if path.is_file():
    found = _read(path)
    if found["origin"] != digest:
      raise FieldError(
        f"run={settings.run!r}: it has changed since {path} was written. "
        "Choose another --workdir."
      )
    return found
  folder = world.workdir / settings.form
  files = write(settings, world, folder)
  sizes = {name: (folder / name).stat().st_size for name in files}
  found = {
    "run": settings.run,
    "folder": settings.form,
    "dtype": settings.dtype,
    "bytes": sizes,
    "origin": digest,
  }
  if distributed.is_first():
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(RESULT_FILE)
  return found


def _read(path: Path) -> dict[str, Any]:
  return strict_json.read_object(path, "Delete it and export again.")


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: nothing is computed but sums of factors."""
  del settings, world
  return []


def tell(settings: Settings, workdir: Path) -> None:
  """Prints where the folder is, and what is in it."""
  found = _read(workdir / RESULT_FILE)
  folder = workdir / found["folder"]
  print(f"\n{settings.run} as {found['dtype']}, in {folder}")
  for name, size in found["bytes"].items():
    print(f"  {name:34} {size / 1e6:10.3f} MB")


PIPELINE = Pipeline(
  name="export",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: f"{settings.run} as a folder ({settings.form})",
  tell=tell,
)
