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
from rlhf_jax.planning.report import Line, Report
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
    rows.append(f"  {_offload(own)}")
  if report.is_host_too_small:
    rows.append(
      "host: its largest weight does not fit. Use hosts with more memory, a "
      "Hugging Face folder instead of a GGUF file, which is read whole, or "
      "model.scan_layers=False, whose weights are one layer each."
    )
  return "\n".join(rows)


def _offload(lines: list[Line]) -> str:
  """Returns what parking weights on the host would give."""
  worst = max(lines, key=lambda line: line.peak)
  return (
    f"offload: {worst.program} does not read {_gib(worst.idle)} of what stays "
    f"on the device; parked on the host {_gib(worst.peak - worst.idle)} would "
    "remain. Not implemented; with LoRA the roles share one base instead."
  )


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
  for field in ("epochs", "loss", "accumulation"):
    if field in stage and wanted > stage[field].microbatches:
      yield {f"{prefix}{field}.microbatches": wanted}
  samples = "prompts" in stage and "rounds" not in stage
  if samples and rows > ways:
    yield {f"{prefix}generate.batch_size": max(ways, rows // 2)}
  if mesh["tensor"] == 1 and mesh["fsdp"] % 4 == 0:
    yield {
      f"{prefix}mesh.data": 1,
      f"{prefix}mesh.fsdp": -1,
      f"{prefix}mesh.tensor": 4,
    }
  if trains and stage.trainable.mode == "full":
    lora = {f"{prefix}trainable.mode": "lora"}
    lora[f"{prefix}model.lora_rank"] = LORA_RANK
    has_critic = "value" in stage and stage.value.trunk == "own"
    if has_critic and stage.value.mode == "full":
      lora[f"{prefix}value.mode"] = "lora"
    yield lora
  if rows >= 2 * ways:
    yield {f"{prefix}{batch}": rows // 2}
