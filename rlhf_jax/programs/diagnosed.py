"""What a finished policy run is told about itself: evaluation/diagnosis.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_jax import distributed, metrics
from rlhf_jax.evaluation import diagnosis


def rates(settings: Any) -> diagnosis.Rates:
  """Returns the learning rates of a run.

  Args:
    settings: of a pipeline that samples.
  """
  if not hasattr(settings, "policy_optimizer"):
    return diagnosis.Rates(policy=settings.optimizer.learning_rate)
  value = None
  if settings.has_critic:
    value = settings.value_optimizer.learning_rate
  return diagnosis.Rates(settings.policy_optimizer.learning_rate, value)


def findings(settings: Any, workdir: Path, phase: str) -> list[list[str]]:
  """Returns ("warn", sentence) of each finding, printed, for stage.json.

  Args:
    settings: of the run.
    workdir: with its metrics.jsonl.
    phase: whose rows they are.
  """
  if not distributed.is_first():  # stage.json is the first process's
    return []
  rows = metrics.read_metrics(workdir / "metrics.jsonl")
  own = [row for row in rows if row.get("phase") == phase]
  found = [str(x) for x in diagnosis.findings(own, rates(settings))]
  for sentence in found:
    print(f"{phase}: {sentence}")
  return [["warn", sentence] for sentence in found]
