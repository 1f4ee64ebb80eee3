"""A stage: a directory that one pipeline filled.

Its stage.json says what was trained (role, model, tokenizer, normalisation)
and its last checkpoint holds the trainable tree; `load_stage` puts the two on
top of a base model again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import checkpoint, distributed
from rlhf_jax.models import heads, trees
from rlhf_jax.models.roles import Role, sampling_params, split
from rlhf_jax.pipelines import build
from rlhf_jax.pipelines.config import ConfigError
from rlhf_jax.types import PyTree

STAGE_FILE = "stage.json"
PATHS = ("init_from", "merged_from")  # in stage.json, relative to its folder
_POLICIES = ("preference", "rejection", "online_preference", "bond")
STANDS_FOR = {  # what else does where a run of a pipeline is wanted
  "sft": _POLICIES,
  "policy": _POLICIES,
}


@dataclasses.dataclass(frozen=True)
class Stage:
  """A trained role, ready to be used or trained further."""

  role: Role
  variables: PyTree  # {"params", "lora"?, "head"?}, complete
  info: dict  # stage.json


def _role_facts(role: Role) -> dict:
  return {
    "trainable": role.trainable,
    "first_layer": role.first_layer,
    "stop_layer": role.stop_layer,
    "lora_rank": role.model.lora_rank,
    "lora_scale": role.model.lora_scale,
    "head": None if role.head is None else dataclasses.asdict(role.head),
  }


def identity(base: build.Base) -> dict:
  """Returns what a checkpoint must agree with: model and tokenizer."""
  return {
    "model_fingerprint": base.fingerprint,
    "tokenizer_fingerprint": base.tokenizer.fingerprint,
  }


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

  It covers stage.json but for its paths, and the sha256 of all arrays, which
  the newest manifest lists.
  """
  if not workdir:
    return ""
  folder = Path(workdir)
  info = {k: v for k, v in read_stage(folder).items() if k not in PATHS}
  steps = [
    int(p.parent.name) for p in folder.glob("checkpoints/*/manifest.json")
  ]
  newest = folder / "checkpoints" / str(max(steps)) / "manifest.json"
  digest = hashlib.sha256(newest.read_bytes()).hexdigest()
  return checkpoint.fingerprint({"stage": info, "manifest": digest})


def write_stage(
  workdir: Path, pipeline: str, base: build.Base, role: Role, **facts: Any
) -> None:
  """Writes stage.json, which marks the stage as finished."""
  info = {
    "pipeline": pipeline,
    "model_source": base.source,
    **identity(base),
    "role": _role_facts(role),
    **facts,
  }
  for name in PATHS:
    if info.get(name):  # found again wherever both folders are moved to
      info[name] = os.path.relpath(info[name], workdir)
  if info.get("merged_from"):
    merged = Path(workdir) / info["merged_from"]
    info["merged_from_fingerprint"] = stage_fingerprint(merged)
  path = Path(workdir) / STAGE_FILE
  if distributed.is_first():
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(info, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(STAGE_FILE)


def read_stage(workdir: str | Path) -> dict | None:
  """Returns stage.json of a finished stage, or None.

  Raises:
    ConfigError: the file is damaged.
  """
  path = Path(workdir) / STAGE_FILE
  if not path.is_file():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(
      f"{path}: damaged ({error}). Delete it and run the stage again; it goes "
      "on from its last checkpoint."
    ) from error


def need_stage(
  workdir: str | Path, pipeline: str, field: str = "", *, exactly: bool = False
) -> dict:
  """Returns stage.json of a finished stage of a pipeline.

  Args:
    workdir: the stage's directory.
    pipeline: what filled it, "sft", "reward", "preference" or "policy".
    field: where the directory was named, for the message.
    exactly: refuse what else does (STANDS_FOR).

  Raises:
    ConfigError: when the directory holds no finished stage of that pipeline.
  """
  info = read_stage(workdir)
  fitting = (pipeline, *(() if exactly else STANDS_FOR.get(pipeline, ())))
  if info is not None and info["pipeline"] in fitting:
    return info
  remedy = f"Finish it first, with --workdir={workdir}."
  if info is not None:
    found, remedy = f"a {info['pipeline']} run", "Name another folder."
  elif (Path(workdir) / "checkpoints").is_dir():
    found = "one that is not finished"
  elif Path(workdir).is_dir():
    found = "no run in it"
  else:
    found = "no such folder"
  where = f"{field}={str(workdir)!r}" if field else str(workdir)
  raise ConfigError(
    f"{where}: wanted a finished {pipeline} run, found {found}. {remedy}"
  )


def check_same_base(info: dict, base: build.Base, workdir: str | Path) -> None:
  """Checks that a stage was trained on this model and this tokenizer.

  Raises:
    CheckpointError: naming what differs.
  """
  for field, value in identity(base).items():
    if info[field] != value:
      what = field.removesuffix("_fingerprint")
      raise checkpoint.CheckpointError(
        f"{workdir} was trained with another {what} (fingerprint "
        f"{info[field][:16]}, of {info['model_source']}) than this run "
        f"({value[:16]}, of {base.source}). Set model.source, model.tokenizer "
        "and model.scan_layers as they were there, or name another folder."
      )


def finished(workdir: Path, pipeline: str, base: build.Base) -> dict | None:
  """Returns stage.json if the stage of this run is finished, else None.

  Raises:
    ConfigError, CheckpointError: finished by another pipeline, or on another
      model or tokenizer.
  """
  if read_stage(workdir) is None:
    return None
  info = need_stage(workdir, pipeline, "--workdir", exactly=True)
  check_same_base(info, base, workdir)
  print(
    f"{pipeline}: {workdir} is finished, nothing to do. To train anew, choose "
    "another --workdir."
  )
  return info


def load_stage(
  workdir: str | Path,
  pipeline: str,
  base: build.Base,
  mesh: jax.sharding.Mesh,
  suffix: str = "",
) -> Stage:
  """Returns the trained role of a finished stage.

  Args:
    workdir: the stage's directory.
    pipeline: what filled it, "sft", "reward", "preference" or "policy"; see
      STANDS_FOR.
    base: the model it was trained on.
    mesh: where the weights go.
    suffix: "/policy" for the policy of a policy run, else ""; of no effect
      on a run of another pipeline that stands for it.

  Raises:
    ConfigError: when the directory holds no finished stage of that pipeline.
    CheckpointError: when it was trained on another model or tokenizer.
  """
  info = need_stage(workdir, pipeline)
  check_same_base(info, base, workdir)
  facts = dict(info["role"])
  head = facts.pop("head")
  rank, scale = facts.pop("lora_rank"), facts.pop("lora_scale")
  role = Role(
    model=dataclasses.replace(base.config, lora_rank=rank, lora_scale=scale),
    head=None if head is None else heads.Config(**head),
    **facts,
  )
  shapes = build.variable_shapes(role)
  wanted, _ = split(role, shapes)
  template = build.with_shardings(wanted, mesh)
  trained = checkpoint.restore_params(
    Path(workdir) / "checkpoints",
    template,
    prefix="train/params" + (suffix if info["pipeline"] == pipeline else ""),
  )
  params = start_params(base, mesh, merged_folder(workdir, info))
  flat = trees.flatten({"params": params}) | trees.flatten(trained)
  return Stage(role=role, variables=trees.unflatten(flat), info=info)


def merged_folder(workdir: str | Path, info: dict) -> Path | str:
  """Returns the SFT stage whose weights a stage was built on, or "".

  Raises:
    CheckpointError: another run is there now.
  """
  if not info.get("merged_from"):
    return ""
  folder = Path(workdir) / info["merged_from"]
  need_stage(folder, "sft", f"{Path(workdir) / STAGE_FILE}: merged_from")
  if stage_fingerprint(folder) != info["merged_from_fingerprint"]:
    raise checkpoint.CheckpointError(
      f"{workdir} was trained on the weights of {folder}, and another run is "
      "there now. Bring the old one back, or train this stage anew."
    )
  return folder


def start_params(
  base: build.Base, mesh: jax.sharding.Mesh, merged_from: str | Path
) -> PyTree:
  """Returns the whole weights a stage starts from.

  Those of the base model, or of a finished SFT stage with its LoRA factors
  merged. Frozen weights are in no checkpoint, so a stage records this as
  `merged_from` and finds them here again.
  """
  if not merged_from:
    return base.params
  stage = load_stage(merged_from, "sft", base, mesh)
  return sampling_params(stage.role, *split(stage.role, stage.variables))
