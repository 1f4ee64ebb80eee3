"""stage.json, which marks a stage as finished: read, and checked by its types.

What later stages take from it is either of the type that a stage writes, or the
file is damaged; what it means is in stages.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.models import heads
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.roles import Role
from rlhf_jax.schema import UserError

STAGE_FILE = "stage.json"
TEMPLATE_FILE = "chat_template.jinja"  # beside it, where the run was given one
_NUMBER = (int, float)
NEEDED = {
  "pipeline": str,
  "model_source": str,
  "model_fingerprint": str,
  "tokenizer_fingerprint": str,
  "role": dict,
}
# Older runs do not have all of them.
FURTHER = {
  "tokenizer_source": str,
  "scan_layers": bool,
  "prompt_end": str,
  "quantize": str,
  "best": str,
  "best_at": str,
  "trained": str,
  "steps": int,
  "asked": dict,
  "origins": dict,
  "halted": (str, type(None)),
  "methods": list,
  "algorithm": dict,
  "init_from": str,
  "merged_from": str,
  "merged_from_fingerprint": str,
  "normalisation": dict,
  "outputs": list,
  "objectives": list,
  "reads_end_token": bool,
  "process": dict,
  "heldout_pairs": dict,
  "guards": list,
  "diagnosis": dict,
}
ROLE = {
  "trainable": str,
  "first_layer": int,
  "stop_layer": (int, type(None)),
  "lora_rank": int,
  "lora_scale": _NUMBER,
  "head": (dict, type(None)),
}
# Not in older runs, and the last two of ensembles alone.
FURTHER_ROLE = {"lora_targets": list, "members": int, "own_factors": bool}
ASKED = {"steps": int, "epochs": _NUMBER, "rounds": int}  # some of them
HEAD = {"pooling": str, "outputs": int, "hidden_units": int}
PROCESS = {"delimiter": str, "score": str}
NORMALISATION = {"mean": _NUMBER, "std": _NUMBER}
OUTPUT = {"name": str} | NORMALISATION


def read(workdir: str | Path) -> dict[str, Any] | None:
  """Returns stage.json of a finished stage, or None.

  Raises:
    UserError: the file is damaged.
  """
  path = Path(workdir) / STAGE_FILE
  if not path.is_file():
    return None
  remedy = (
    "Delete it and run the stage again; it goes on from its last checkpoint."
  )
  info = strict_json.read_object(
    path, f"It is damaged. {remedy}", allows_nan=True
  )
  complaint = _complaint(info)
  if complaint:
    raise UserError(f"{path}: damaged ({complaint}). {remedy}")
  return info


def template_of(workdir: str | Path) -> str:
  """Returns the file of the chat template that a run was given, or ""."""
  path = Path(workdir) / TEMPLATE_FILE
  return str(path) if path.is_file() else ""


def _complaint(info: dict[str, Any]) -> str:
  """Returns what is wrong with the first wrong value, or ""."""
  found = _wrong(info, NEEDED, "", is_needed=True)
  found = found or _wrong(info, FURTHER, "")
  found = found or _wrong(info["role"], ROLE, "role.", is_needed=True)
  found = found or _wrong(info["role"], FURTHER_ROLE, "role.")
  if "asked" in info:
    found = found or _wrong(info["asked"], ASKED, "asked.")
  if found:
    return found
  targets = info["role"].get("lora_targets", [])
  if not all(isinstance(name, str) for name in targets):
    return f"'role.lora_targets' is {targets!r:.60}"
  head = info["role"]["head"]
  if head is not None:
    unknown = set(head) - {
      field.name for field in dataclasses.fields(heads.Config)
    }
    found = f"role.head has {sorted(unknown)}" if unknown else ""
    found = found or _wrong(head, HEAD, "role.head.")
    if "process" in info:
      found = found or _wrong(
        info["process"], PROCESS, "process.", is_needed=True
      )
    found = found or _complaint_of_scale(info)
  return found


def _complaint_of_scale(info: dict[str, Any]) -> str:
  """Returns what is wrong with the scale of a reward model's scores, or ""."""
  values, found = info.get("normalisation"), ""
  if "outputs" not in info:
    if values is not None:
      found = _wrong(values, NORMALISATION, "normalisation.", is_needed=True)
    return found
  for i, output in enumerate(info["outputs"]):
    if not isinstance(output, dict):
      return f"'outputs[{i}]' is {str(output)[:60]!r}"
    found = found or _wrong(output, OUTPUT, f"outputs[{i}].", is_needed=True)
  members = info["role"].get("members", 1)
  if len(info["outputs"]) < members:
    found = found or f"{len(info['outputs'])} outputs of {members} members"
  return found


def outputs(info: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the name, mean and deviation of each output of a reward model.

  Of members, and of runs that have one output and list none, "reward".

  Args:
    info: stage.json.
  """
  if "outputs" in info:
    return list(info["outputs"])
  scale = info.get("normalisation", {"mean": 0.0, "std": 1.0})
  return [{"name": "reward", "mean": scale["mean"], "std": scale["std"]}]


def _wrong(
  values: Mapping[str, Any],
  kinds: Mapping[str, Any],
  prefix: str,
  *,
  is_needed: bool = False,
) -> str:
  """Returns what is said of the first value of another type, or ""."""
  for name, kind in kinds.items():
    if name not in values:
      if is_needed:
        return f"no {prefix + name!r}"
      continue
    value = values[name]
    is_flag = isinstance(value, bool) and kind is not bool
    if is_flag or not isinstance(value, kind):
      return f"{prefix + name!r} is {str(value)[:60]!r}"
  return ""


def role_facts(role: Role) -> dict:
  """Returns what stage.json says of a role; `role_of` reads it."""
  members = {"members": role.members, "own_factors": role.own_factors}
  return (members if role.members > 1 else {}) | {
    "trainable": role.trainable,
    "first_layer": role.first_layer,
    "stop_layer": role.stop_layer,
    "lora_rank": role.model.lora_rank,
    "lora_scale": role.model.lora_scale,
    "lora_targets": list(role.model.lora_targets),
    "head": None if role.head is None else dataclasses.asdict(role.head),
  }


def role_of(facts: dict, base: Base) -> Role:
  """Returns the role that `role_facts` wrote, on a base model."""
  facts = dict(facts)
  head = facts.pop("head")
  rank, scale = facts.pop("lora_rank"), facts.pop("lora_scale")
  targets = tuple(facts.pop("lora_targets", ()))
  return Role(
    model=dataclasses.replace(
      base.config, lora_rank=rank, lora_scale=scale, lora_targets=targets
    ),
    head=None if head is None else heads.Config(**head),
    **facts,
  )
