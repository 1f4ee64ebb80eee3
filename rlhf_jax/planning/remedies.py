"""What to change when a program does not fit: each change planned anew.

Every remedy is tried on a copy of the configuration, analytically, and shown
with the peak that it leads to, alone and together with those before it. Where
the compiler asked for more than the estimate, that much is kept free.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from rlhf_jax.planning import report as report_lib
from rlhf_jax.planning.report import Report
from rlhf_jax.programs import offload
from rlhf_jax.schema import UserError

_GIB = 2**30
LORA_RANK = 16


def advice(config: Any, report: Report) -> str:
  """Returns remedies for every phase that does not fit, one a line."""
  rows = []
  for name in dict.fromkeys(line.phase for line in report.too_large):
    own = [line for line in report.too_large if line.phase == name]
    programs = ", ".join(line.program for line in own)
    rows.append(f"{name}: {programs} does not fit. Estimates of what would:")
    rows += [f"  {row}" for row in _tried(config, report, name)]
  if report.is_host_too_small:
    rows.append(
      "host: its largest weight, or what offload.trees puts there, does not "
      "fit. Use hosts with more memory, a Hugging Face folder instead of a "
      "GGUF file, which is read whole, model.scan_layers=False, whose weights "
      "are one layer each, or fewer trees."
    )
  return "\n".join(rows)


def _gib(size: float) -> str:
  return f"{size / _GIB:.2f} GiB"


def _tried(config: Any, report: Report, phase: str) -> Iterator[str]:
  """Yields one line a remedy; stops when all so far together fit."""
  is_stage = phase in config and "pipeline" in config[phase]
  prefix = f"{phase}." if is_stage else ""
  estimate = _peak(config, report, phase)
  found = max(line.peak for line in report.lines if line.phase == phase)
  more = max(found - estimate, 0.0)
  yield f"as it is: {_gib(estimate)} by estimate" + (
    f", {_gib(found)} by the compiler; {_gib(more)} are added below"
    if more
    else ""
  )
  together = copy.deepcopy(config)
  for changes in _candidates(config, prefix, report.meshes[phase]):
    alone, both = copy.deepcopy(config), copy.deepcopy(together)
    for target in (alone, both):
      target.update_from_flattened_dict(changes)
    text = " ".join(f"--config.{k}={v}" for k, v in changes.items())
    try:
      one = _peak(alone, report, phase) + more
      every = _peak(both, report, phase) + more
    except UserError as error:
      yield f"{text}: not possible here ({error})"
      continue
    together = both
    fits = every <= report.limit
    yield (
      f"{text}: {_gib(one)} alone, {every / _GIB:.2f} with those "
      f"above{': fits' if fits else ''}"
    )
    if fits:
      return
  yield "not enough: a larger slice, or a generation with more HBM"


def _peak(config: Any, report: Report, phase: str) -> float:
  found = report_lib.make(config, report.topology, compiles=False, only=phase)
  return max(line.peak for line in found.lines)


def _candidates(
  config: Any, prefix: str, mesh: dict[str, int]
) -> Iterator[dict[str, Any]]:
  """Yields changes {field: value}, cheapest for the result first."""
  stage = config[prefix.rstrip(".")] if prefix else config
  trains = "trainable" in stage  # an evaluation does not
  if mesh["data"] > 1:
    yield {f"{prefix}mesh.data": 1, f"{prefix}mesh.fsdp": -1}
  if trains and not stage.model.remat:
    yield {f"{prefix}model.remat": True}
  batch = "schedule.batch_size" if "schedule" in stage else "batch_size"
  rows = stage.schedule.batch_size if "schedule" in stage else stage.batch_size
  ways = mesh["data"] * mesh["fsdp"]
  most = rows // stage.epochs.minibatches if "epochs" in stage else rows
  wanted = most // ways  # one row a device at a time
  cut = [
    f"{prefix}{field}.microbatches"
    for field in ("epochs", "loss", "accumulation")
    if field in stage and wanted > stage[field].microbatches
  ]
  for field in cut:
    yield {field: wanted}
  samples = "prompts" in stage and "rounds" not in stage
  if samples and rows > ways:
    yield {f"{prefix}generate.batch_size": max(ways, rows // 2)}
  if mesh["tensor"] == 1 and mesh["fsdp"] % 4 == 0:
    yield {
      f"{prefix}mesh.data": 1,
      f"{prefix}mesh.fsdp": -1,
      f"{prefix}mesh.tensor": 4,
    }
  yield from _smaller(stage, prefix)
  if rows >= 2 * ways:  # half the rows, still one a device at a time
    halves = dict.fromkeys(cut, max(wanted // 2, 1))
    yield {f"{prefix}{batch}": rows // 2} | halves


def _smaller(stage: Any, prefix: str) -> Iterator[dict[str, Any]]:
  """Yields changes of how weights and moments are kept.

  What changes no number comes first, what trains something else last.
  """
  if "offload" in stage and not stage.offload.trees:
    trees = list(offload.TREES)
    if not stage.get("reward") and not stage.get("monitors"):
      judged = stage.get("reward_fn") or stage.verifier.name
      trees = [name for name in trees if name != "reward" or not judged]
    if "rounds" in stage:  # they have no moments, and train the reference
      trees = [name for name in trees if name == "reward"]
    parked = {f"{prefix}offload.trees": tuple(trees)}
    if trees:
      yield parked
      yield parked | {f"{prefix}offload.prefetch": False}
  if "trainable" not in stage:  # nothing trains
    return
  sections = [
    name for name in stage if name == "optimizer" or name.endswith("_optimizer")
  ]
  if stage.trainable.mode == "full":
    yield {f"{prefix}{name}.moments": "8bit" for name in sections}
  model = stage.model
  if model.dtype == "bfloat16" and model.weights == "float32":
    yield {f"{prefix}model.weights": "bfloat16"}
  lora: dict[str, Any] = {}
  if stage.trainable.mode == "full":
    lora = {f"{prefix}trainable.mode": "lora"}
    lora[f"{prefix}model.lora_rank"] = LORA_RANK
    has_own_critic = "value" in stage and stage.value.trunk == "own"
    if has_own_critic and stage.value.mode == "full":
      lora[f"{prefix}value.mode"] = "lora"
    yield lora
  if "generate" in stage and model.lora_merge:
    yield lora | {f"{prefix}model.lora_merge": False}
  if "quantize" in model and model.quantize == "none":
    yield lora | {f"{prefix}model.quantize": "int8"}
    yield lora | {f"{prefix}model.quantize": "int4"}
