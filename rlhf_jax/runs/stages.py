"""A stage: a directory that one pipeline filled.

Its stage.json says what was trained (role, model, tokenizer, normalisation)
and its checkpoints hold the trainable tree; `load` puts the two on top of a
base model again. What a stage leaves is a policy or a reward model, and any
later stage can start from it where that makes sense.

A later stage names it by its folder, and takes the step that the stage ended
with; FOLDER@best takes the best step that was kept (schedule.keep_best),
FOLDER@STEP any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlhf_jax import distributed, integrity
from rlhf_jax.models import adapters, pretrained, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.roles import Role, split
from rlhf_jax.runs import checkpoint, finite, stage_file
from rlhf_jax.runs.stage_file import STAGE_FILE
from rlhf_jax.schema import UserError
from rlhf_jax.types import PyTree

POLICY, REWARD = "policy", "reward"  # what a stage leaves
PATHS = (
  "init_from",
  "merged_from",
  "reference",
  "continue_from",
)  # in stage.json, relative to its folder
# Where a checkpoint has the policy's trainable tree.
TRAINED, BESIDE_CRITIC = "train/params", "train/params/policy"


@dataclasses.dataclass(frozen=True)
class Stage:
  """A trained role, ready to be used or trained further."""

  role: Role
  variables: PyTree  # {"params", "lora"?, "head"?}, complete
  info: dict  # stage.json

  @property
  def parts(self) -> tuple[PyTree, PyTree]:
    """The variables, split into what trains and the rest."""
    return split(self.role, self.variables)


class Shelf(Protocol):
  """Where finished stages are: on disk, or only planned (programs/world.py)."""

  mesh: Any
  is_planned: bool

  def info(self, folder: str | Path, kind: str) -> dict:
    """Returns stage.json of a finished stage that leaves a `kind`."""

  def restore(self, folder: str | Path, info: dict, template: PyTree) -> PyTree:
    """Returns the trained tree of a stage."""

  def merged(self, stage: Stage) -> PyTree:
    """Returns the whole weights of a stage, LoRA factors merged."""

  def placed(self, tree: PyTree) -> PyTree:
    """Returns weights that are read when they are indexed, as arrays."""

  def number(self, value: float | list[float]) -> Any:
    """Returns a float32 array [], or [M] of a list."""

  def compute(self, make: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns make(*args), small new arrays."""


def place(folder: str | Path) -> tuple[Path, str]:
  """Returns (folder, step) of FOLDER, FOLDER@best or FOLDER@12; "" for none.

  A folder that is there under the whole name is that folder. The best step of
  a run of rounds is in one of them, which its stage.json names.
  """
  head, at, step = str(folder).rpartition("@")
  is_step = step == "best" or (step.isascii() and step.isdigit())
  if at and is_step and not Path(folder).expanduser().is_dir():
    path = Path(head).expanduser()
    within = (stage_file.read(path) or {}).get("best_at", "")
    if step == "best" and within:
      return path / within.rpartition("@")[0], step
    return path, step
  return Path(folder).expanduser(), ""


def listed(folders: str | Path) -> list[str]:
  """Returns folders of stages that are named together, with commas between.

  A folder that is there under the whole name is that folder.
  """
  text = str(folders)
  if "," not in text or place(text)[0].is_dir():
    return [text] if text else []
  return [part.strip() for part in text.split(",") if part.strip()]


def kind_of(info: dict) -> str:
  """Returns what a stage leaves: POLICY, or REWARD where there is a head."""
  return POLICY if info["role"]["head"] is None else REWARD


def origins(**folders: str | Path) -> dict[str, str]:
  """Returns what a checkpoint must agree with about the runs it builds on.

  Args:
    folders: name -> directory of a finished stage, or "" for none.
  """
  return {
    f"{name}_fingerprint": stage_fingerprint(folder)
    for name, folder in folders.items()
  }


def stage_fingerprint(workdir: str | Path) -> str:
  """Returns a digest of what a finished stage holds; "" of no directory.

  It covers stage.json but for its paths, and the sha256 of all arrays of the
  newest step, or of the step that is named, which its manifest lists. Of
  several with commas between it covers all.
  """
  if not str(workdir):
    return ""
  several = listed(workdir)
  if len(several) > 1:
    each = {str(i): stage_fingerprint(x) for i, x in enumerate(several)}
    return integrity.fingerprint(each)
  folder, step = place(workdir)
  stage = read_stage(folder)
  if stage is not None and stage["pipeline"] == adapters.PIPELINE:
    return adapters.fingerprint(folder)
  if stage is None:
    raise UserError(f"{folder}: no finished run ({STAGE_FILE}) is there.")
  info = {k: v for k, v in stage.items() if k not in PATHS}
  found = [p.parent.name for p in folder.glob("checkpoints/*/manifest.json")]
  steps = [int(name) for name in found if name.isdigit()]
  if not steps:
    raise UserError(
      f"{folder}: {STAGE_FILE} says that the stage is finished, and there is "
      f"no whole checkpoint. Bring it back, or delete {STAGE_FILE} and run the "
      "stage again."
    )
  chosen = step_of(workdir) if step else max(steps)
  manifest = folder / "checkpoints" / str(chosen) / "manifest.json"
  digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
  return integrity.fingerprint({"stage": info, "manifest": digest})


def step_of(folder: str | Path, field: str = "") -> int | None:
  """Returns the step that FOLDER@... names; None for the newest.

  Args:
    folder: the stage's directory, with @STEP or not.
    field: where it was named, for the message.

  Raises:
    UserError: the run kept no such step.
  """
  path, step = place(folder)
  if not step:
    return None
  info = read_stage(path) or {}
  with checkpoint.Checkpoints(
    str(path / "checkpoints"), best=info.get("best", "max"), is_read_only=True
  ) as saved:
    kept = saved.steps()
    found = saved.best() if step == "best" else int(step)
  if found is None or found not in kept:
    what = "no best step" if step == "best" else f"no step {step}"
    raise UserError(
      f"{_named(folder, field)}: {what} was kept there; there are {kept}. The "
      "best one is kept where schedule.keep_best names a metric, others by "
      "schedule.keep."
    )
  return found


def write_stage(
  workdir: Path, pipeline: str, base: Base, role: Role, **facts: Any
) -> dict:
  """Writes stage.json, which marks the stage as finished; returns it.

  Raises:
    NonFiniteError: a number in it is NaN or inf.
  """
  finite.check_facts(pipeline, facts)
  info = {
    "pipeline": pipeline,
    "model_source": base.source,
    "tokenizer_source": base.tokenizer_source,
    "scan_layers": base.config.scan_layers,
    "prompt_end": getattr(base.tokenizer, "prompt_end", "template"),
    "quantize": base.config.quantize,
    **base.identity,
    "role": stage_file.role_facts(role),
    **facts,
  }
  for name in PATHS:
    if info.get(name):  # found again wherever both folders are moved to
      info[name] = os.path.relpath(os.path.expanduser(info[name]), workdir)
  if info.get("merged_from"):
    merged = Path(workdir) / info["merged_from"]
    info["merged_from_fingerprint"] = stage_fingerprint(merged)
  path = Path(workdir) / STAGE_FILE
  if distributed.is_first():
    if getattr(base.tokenizer, "has_given_template", False):
      template = Path(workdir) / stage_file.TEMPLATE_FILE
      template.write_text(base.tokenizer.chat_template, encoding="utf-8")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(info, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(STAGE_FILE)
  return read_stage(workdir)


def read_stage(workdir: str | Path) -> dict | None:
  """Returns stage.json of a finished stage, or of a PEFT folder, or None.

  Raises:
    UserError: the file is damaged.
  """
  info = stage_file.read(workdir)
  if info is None and adapters.is_adapter(workdir):
    return adapters.facts(workdir)
  return info


def need_stage(
  workdir: str | Path, kind: str, field: str = "", *, pipeline: str = ""
) -> dict:
  """Returns stage.json of a finished stage.

  Args:
    workdir: the stage's directory, with @STEP or not.
    kind: what it must leave, POLICY or REWARD.
    field: where the directory was named, for the message.
    pipeline: the only one that may have filled it; "" for any.

  Raises:
    UserError: when the directory holds no such stage.
  """
  folder, step = place(workdir)
  info = read_stage(folder)
  is_wanted = info is not None and kind_of(info) == kind
  if is_wanted and pipeline in ("", info["pipeline"]):
    if step:
      step_of(workdir, field)
    return info
  remedy = f"Finish it first, with --workdir={folder}."
  if info is not None:
    found, remedy = f"a {info['pipeline']} run", "Name another folder."
  elif (folder / "checkpoints").is_dir():
    found = "one that is not finished"
  elif folder.is_dir():
    found = "no run in it"
    below = sorted(
      path.parent.name
      for path in folder.glob(f"*/{STAGE_FILE}")
      if kind_of(read_stage(path.parent)) == kind
    )
    if below:
      found = "a folder of several runs"
      remedy = f"Name one of them: {', '.join(str(folder / x) for x in below)}."
  else:
    found = "no such folder"
    head, at, _ = str(workdir).rpartition("@")
    if at and Path(head).is_dir():
      remedy = f"For a step of a run write {head}@best or {head}@120."
  raise UserError(
    f"{_named(workdir, field)}: wanted a finished {pipeline or kind} run, "
    f"found {found}. {remedy}"
  )


def _named(folder: str | Path, field: str) -> str:
  """Returns a folder, for messages, with the field where it was named."""
  return f"{field}={str(folder)!r}" if field else str(folder)


def check_same_base(info: dict, base: Base, workdir: str | Path) -> None:
  """Checks that a stage was trained on this model and this tokenizer.

  Raises:
    CheckpointError: naming what differs.
  """
  for field, value in base.identity.items():
    if info[field] != value:
      what = field.removesuffix("_fingerprint")
      raise integrity.CheckpointError(
        f"{workdir} was trained with another {what} (fingerprint "
        f"{info[field][:16]}, of {info['model_source']}) than this run "
        f"({value[:16]}, of {base.source}). Set model.source, model.tokenizer, "
        "model.scan_layers and model.quantize as they were there, or name "
        "another folder."
      )


def asks_for_more(workdir: str | Path, asked: Mapping[str, float]) -> bool:
  """Says whether a finished stage was asked for less than it is now.

  One that its guards halted has no later end.

  Args:
    workdir: of the stage.
    asked: its length by unit, see loop.Schedule.asked; 0 where another unit
      says it.
  """
  info = read_stage(workdir) or {}
  before = info.get("asked", {})
  if info.get("halted"):
    return False
  return any(asked[unit] > before.get(unit, 0) > 0 for unit in asked)


def reopen(workdir: str | Path) -> None:
  """Makes a finished stage that trains on an unfinished one."""
  if distributed.is_first():
    (Path(workdir) / STAGE_FILE).unlink(missing_ok=True)


def finished(
  workdir: Path,
  pipeline: str,
  base: Base,
  kind: str = POLICY,
  asked: Mapping[str, float] | None = None,
) -> dict | None:
  """Returns stage.json if the stage of this run is finished, else None.

  Args:
    workdir: of the stage.
    pipeline: which must have filled it.
    base: on which.
    kind: what it leaves.
    asked: how long this run is; a stage that ended earlier is not finished.

  Raises:
    UserError: finished by another pipeline, or on another model or tokenizer.
  """
  if read_stage(workdir) is None:
    return None
  info = need_stage(workdir, kind, "--workdir", pipeline=pipeline)
  check_same_base(info, base, workdir)
  if asked is not None and asks_for_more(workdir, asked):
    return None
  units = [unit for unit, length in (asked or {}).items() if length]
  more = f"; to train on, raise its {units[0]}" if units else ""
  halted = info.get("halted")
  if halted:  # more steps would not take it further
    more = f". It ended early: {halted}"
  print(
    f"{pipeline}: {workdir} is finished, nothing to do. To train anew, choose "
    f"another --workdir{more}."
  )
  return info


def trained_prefix(folder: Path, info: dict) -> str:
  """Returns where a stage's checkpoints have its trainable tree.

  Runs of before `trained` was written are recognised by their manifest.
  """
  if "trained" in info:
    return info["trained"]
  for path in folder.glob("checkpoints/*/manifest.json"):
    manifest = integrity.read_manifest(path.parent)  # None if it is damaged
    arrays = {} if manifest is None else manifest["arrays"]
    if any(name.startswith(f"{BESIDE_CRITIC}/") for name in arrays):
      return BESIDE_CRITIC
  return TRAINED


def load(folder: str | Path, kind: str, base: Base, shelf: Shelf) -> Stage:
  """Returns the trained role of a finished stage.

  Args:
    folder: the stage's directory, with @STEP or not.
    kind: what it must leave, POLICY or REWARD.
    base: the model it was trained on.
    shelf: where it is.

  Raises:
    UserError: when the directory holds no finished stage of that kind.
    CheckpointError: when it was trained on another model or tokenizer.
  """
  info = shelf.info(folder, kind)
  if info["pipeline"] == adapters.PIPELINE:
    return Stage(*adapters.policy(folder, info, base, shelf.placed), info)
  check_same_base(info, base, folder)
  role = stage_file.role_of(info["role"], base)
  wanted, _ = split(role, pretrained.variable_shapes(role))
  template = pretrained.with_shardings(wanted, shelf.mesh)
  trained = shelf.restore(folder, info, template)
  params = start_params(merged_folder(folder, info), base, shelf)
  flat = trees.flatten({"params": params}) | trees.flatten(trained)
  return Stage(role=role, variables=trees.unflatten(flat), info=info)


def merged_folder(workdir: str | Path, info: dict) -> Path | str:
  """Returns the stage whose whole weights a stage was built on, or "".

  Raises:
    CheckpointError: another run is there now.
  """
  if not info.get("merged_from"):
    return ""
  path, _ = place(workdir)
  folder = path / info["merged_from"]
  if "merged_from_fingerprint" not in info:  # planned, so nothing is there
    return folder
  need_stage(folder, POLICY, f"{path / STAGE_FILE}: merged_from")
  if stage_fingerprint(folder) != info["merged_from_fingerprint"]:
    raise integrity.CheckpointError(
      f"{workdir} was trained on the weights of {folder}, and another run is "
      "there now. Bring the old one back, or train this stage anew."
    )
  return folder


def start_params(folder: str | Path, base: Base, shelf: Shelf) -> PyTree:
  """Returns the whole weights a stage starts from.

  Those of the base model, or of a finished stage that leaves a policy, with
  its LoRA factors merged. Frozen weights are in no checkpoint, so a stage
  records this as `merged_from` and finds them here again.
  """
  if not str(folder):
    return base.params
  return shelf.merged(load(folder, POLICY, base, shelf))
