"""Which stage leaves, opened on this machine's devices."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.models import model_sources
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Role
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import PyTree

RECORD = "config.json"  # of a run; main.py writes it
EVALUATION = "evaluation.json"  # in the folder of one
_ROUND = re.compile(r"round_\d+")
# Of a Model section: what says which weights and which tokenizer, and not how
# they run or what trains.
_FIELDS = frozenset(
  field.name
  for field in dataclasses.fields(Model)
  if field.name not in ("dtype", "attention", "remat")
  and not field.name.startswith("lora_")
)


@dataclasses.dataclass(frozen=True)
class Leaving:
  """A model that leaves.

  variables: {"params", "lora"?, "head"?}, complete.
  info: stage.json; {} of a model that no run trained.
  run: its folder as it was named, "" for one in memory.
  merged_from: whose whole weights the frozen ones are; "" for the base's,
    None for those of a policy that is in no folder.
  """

  base: Base
  role: Role
  variables: PyTree
  info: dict[str, Any]
  run: str = ""
  merged_from: str | None = ""

  @property
  def is_reward(self) -> bool:
    """Whether it is a reward model."""
    return self.role.head is not None


def check_run(run: str, field: str = "run") -> dict[str, Any]:
  """Returns stage.json of a finished stage, {} of a model's own source.

  Args:
    run: folder of a stage, with @STEP or not, or what Model.source takes.
    field: that gave it, for messages.

  Raises:
    UserError: nothing there that could leave.
  """
  if not run:
    raise FieldError(
      f"{field} is empty: name the --workdir of a finished run, "
      f"--config.{field}=runs/x, runs/x@best or runs/x@120."
    )
  folder, step = stages.place(run)
  info = stages.read_stage(folder) if folder.is_dir() else None
  if info is not None:
    stages.step_of(run, f"config.{field}")
    return info
  if _is_source(run, folder):
    model_sources.check_source(run, field)
    return {}
  _say_what_else(run, folder, field)
  stages.need_stage(run, stages.POLICY, f"config.{field}")
  raise AssertionError(f"{run} is a stage after all.")


def _is_source(run: str, folder: Path) -> bool:
  """Says whether a run is none but the source of a model."""
  if run.startswith("asset:") or folder.suffix == ".gguf":
    return True
  if not (folder / RECORD).is_file() or (folder / "checkpoints").exists():
    return False
  return "config" not in strict_json.read_object(folder / RECORD, "Move it.")


def _say_what_else(run: str, folder: Path, field: str) -> None:
  """Raises FieldError for a folder that holds another kind of run."""
  inside = sorted(path.parent.name for path in folder.glob("*/stage.json"))
  if inside or any(folder.glob("*/checkpoints")):
    listed = ", ".join(f"{folder / name}" for name in inside)
    remedy = f"Name one of them: {listed}." if inside else "Finish it first."
    raise FieldError(
      f"{field}={run!r}: a run of several stages, of which one can leave. "
      f"{remedy}"
    )
  if (folder / EVALUATION).is_file():
    judged = recorded(folder).get("policy")
    more = f", --config.{field}={judged}" if judged else ""
    raise FieldError(
      f"{field}={run!r}: an evaluation, which trains nothing. Name the run "
      f"that it judged{more}."
    )


def recorded(folder: Path) -> dict[str, Any]:
  """Returns the settings of a stage as config.json has them, or {}.

  Args:
    folder: of the stage; the record of a whole run is beside its stages, and
      that of a round in the folder of its run.
  """
  if _ROUND.fullmatch(folder.name) and not (folder / RECORD).is_file():
    return recorded(folder.parent)
  for path, inside in ((folder, ""), (folder.parent, folder.name)):
    if not (path / RECORD).is_file():
      continue
    values = strict_json.read_object(
      path / RECORD, "Move the damaged file away."
    ).get("config")
    if inside:
      values = values.get(inside) if isinstance(values, dict) else None
    if isinstance(values, dict):
      return values
  return {}


def was_trial(folder: Path) -> bool:
  """Says whether a stage is of a short trial (--smoke)."""
  for path in (folder, folder.parent):
    if (path / RECORD).is_file():
      record = strict_json.read_object(path / RECORD, "Move it away.")
      if "is_smoke" in record:
        return bool(record["is_smoke"])
  return False


def model_of(run: str, info: dict[str, Any], source: str) -> Model:
  """Returns the Model section of what a stage was trained on.

  Args:
    run: the stage's folder, with @STEP or not, or a model's own source.
    info: its stage.json, {} for such a source.
    source: where the base model is now; "" for where it was.
  """
  if not info:
    return Model(source=run)
  record = recorded(stages.place(run)[0]).get("model")
  known = {
    name: value
    for name, value in (record if isinstance(record, dict) else {}).items()
    if name in _FIELDS
  }
  template = known.get("chat_template", "")
  if template and not os.path.isfile(os.path.expanduser(template)):
    raise UserError(
      f"{run}: its dialogues were rendered with the template {template!r}, "
      "which is not there. Bring the file back, or start where the run "
      "started, as its path is relative."
    )
  known |= {name: info[name] for name in _FIELDS & info.keys()}
  known |= {
    "source": source if source else info["model_source"],
    "tokenizer": info.get("tokenizer_source", ""),
  }
  return Model(**known)


def load(run: str, world: World, source: str = "") -> Leaving:
  """Returns what leaves of a run.

  Args:
    run: see `check_run`.
    world: whose devices it comes to.
    source: see `model_of`.

  Raises:
    UserError: nothing there, or its base model is another one now.
  """
  info = check_run(run)
  base = world.base(model_of(run, info, source))
  if not info:
    role = Role(model=base.config)
    return Leaving(base, role, {"params": base.params}, {}, run)
  stage = stages.load(run, stages.kind_of(info), base, world)
  merged = stages.merged_folder(run, info)
  return Leaving(base, stage.role, stage.variables, info, run, str(merged))
