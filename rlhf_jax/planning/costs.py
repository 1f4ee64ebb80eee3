"""What stages of advice take on a slice: memory, hours, money.

Hours are steps x seconds of a step by `report`: between all of compute, HBM
and interconnect overlapped and none, at the peak rates of the documentation.
Nothing runs at those, so the true hours are more. Reading weights, compiling,
evaluation and whatever goes wrong come on top.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlhf_jax import experiment_file
from rlhf_jax.planning import remedies, report, topology
from rlhf_jax.planning.advice import Stage
from rlhf_jax.planning.data_facts import Facts
from rlhf_jax.schema import UserError

VERIFIER = "verifier.name"  # judges in a reward model's place


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one stage.

  peak, limit: bytes of one device at the fullest moment, and what it has.
  steps: of the run. low, high: hours, everything overlapped or nothing.
  chips: of the slice.
  changes: field -> value that the plan has other than the experiment.
  remedies: what would make it fit, a line each; "" where it fits.
  why_not: why there is no plan, or "".
  """

  peak: float = math.nan
  limit: float = math.nan
  steps: int = 0
  low: float = math.nan
  high: float = math.nan
  chips: int = 0
  changes: dict[str, Any] = dataclasses.field(default_factory=dict)
  remedies: str = ""
  why_not: str = ""

  @property
  def fits(self) -> bool:
    """Whether the fullest moment fits."""
    return self.peak <= self.limit

  def money(self, price: float) -> tuple[float, float]:
    """Returns the cost between both bounds, for a price of a chip-hour."""
    return self.low * self.chips * price, self.high * self.chips * price


def _records(stage: Stage, facts: Facts) -> int:
  """Returns the records that a stage goes through once."""
  if stage.config == "configs/sft.py":
    return facts.demonstrations
  if stage.config == "configs/kto.py":
    return facts.labelled
  if stage.config == "configs/process_reward.py":
    return facts.steps
  if stage.config == "configs/reward_rankings.py":
    return facts.comparisons
  return facts.pairs


def _adapted(
  config: Any, model: str, slice_: topology.Topology
) -> dict[str, Any]:
  """Changes an experiment for a slice; returns the fields that are changed.

  Rows of a step must divide among the devices: a batch that does not becomes
  the next larger one that does, and a microbatch has one row of each device. On
  accelerators weights are computed with in bfloat16 and activations computed
  again.
  """
  changes: dict[str, Any] = {"model.source": model}
  if slice_.chip.generation != "cpu":
    changes |= {"model.dtype": "bfloat16", "model.scan_layers": True}
    changes |= {"model.remat": True}
  changes |= {"mesh.data": 1, "mesh.fsdp": -1}
  parts = config.epochs.minibatches if "epochs" in config else 1
  unit = slice_.devices * parts
  size = config.schedule.batch_size + -config.schedule.batch_size % unit
  changes["schedule.batch_size"] = size
  group = config.generate.num_samples if "epochs" in config else 1
  for section in ("accumulation", "epochs"):
    if section in config:
      changes[f"{section}.microbatches"] = size * group // unit
  if "generate" in config:
    changes["generate.batch_size"] = None
  config.update_from_flattened_dict(changes)
  return changes


def of(
  stage: Stage, facts: Facts, model: str, slice_: topology.Topology
) -> Cost | None:
  """Returns what a stage takes, or None for one that nothing plans.

  Args:
    stage: of advice.
    facts: of the data, for the number of steps.
    model: as model.source; "shape:llama3_8b" needs no weights.
    slice_: the devices.
  """
  if not stage.is_experiment:
    return None
  config = experiment_file.load(stage.config)
  if "reuse" in config:
    return Cost(why_not="it has several stages; rlhf_jax.plan shows each")
  if "schedule" not in config:
    return None  # nothing is trained
  changes = _adapted(config, model, slice_)
  if any(field.startswith(VERIFIER) for field in stage.fields):
    config.update_from_flattened_dict({VERIFIER: "exact"})  # costs as any does
  try:
    found = report.make(config, slice_, compiles=False)
  except UserError as error:  # what cannot be planned so
    return Cost(why_not=str(error))
  steps = _steps(config, _records(stage, facts))
  in_step = [line for line in found.lines if line.is_in_step]
  per_hour = steps / 3600
  return Cost(
    peak=max(line.peak for line in found.lines),
    limit=found.limit,
    steps=steps,
    low=per_hour * sum(line.overlapped for line in in_step),
    high=per_hour * sum(line.serial for line in in_step),
    chips=slice_.chips,
    changes=changes,
    remedies=remedies.advice(config, found) if found.too_large else "",
  )


def _steps(config: Any, records: int) -> int:
  schedule = config.schedule
  if schedule.epochs:
    return max(1, math.ceil(schedule.epochs * records / schedule.batch_size))
  return int(schedule.steps)
