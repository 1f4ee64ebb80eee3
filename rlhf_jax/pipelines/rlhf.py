"""The whole job: SFT, reward models, a policy, evaluation and report.

Each stage is its own pipeline in its own folder; a stage that is finished is
not repeated, one that was stopped goes on from its checkpoint. `reuse` takes
SFT and reward models (`reuse_stages`) from another finished run, to try
another policy stage on the same ones. The policy stage is any pipeline that
ends in a policy (POLICY_STAGES): config.policy.pipeline says which.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax import distributed
from rlhf_jax.pipelines import (
  bond,
  evaluate,
  forecast,
  online_preference,
  policy,
  preference,
  rejection,
  reward,
  sft,
  stages,
  summary,
)
from rlhf_jax.pipelines.config import ConfigError, check_sections

SECTIONS = frozenset(
  "pipeline title seed reuse reuse_stages sft reward gold policy evaluation "
  "facts caveats".split()
)
PHASES = ("sft", "reward", "gold", "policy", "evaluation")
REUSABLE = ("sft", "reward", "gold")
POLICY_STAGES = {
  "policy": policy,
  "rejection": rejection,
  "online_preference": online_preference,
  "bond": bond,
  "preference": preference,
}


def check_policy_stage(config: Any) -> None:
  """Raises ConfigError unless the policy stage is one of POLICY_STAGES."""
  kind = config.policy.get("pipeline")
  if kind not in POLICY_STAGES:
    raise ConfigError(
      f"config.policy.pipeline={kind!r}: must be one of "
      f"{', '.join(POLICY_STAGES)}."
    )


@contextmanager
def timed(workdir: Path, phase: str):
  """Appends the wall time of a phase, also of one that was interrupted."""
  begun = time.perf_counter()
  try:
    yield
  finally:
    row = {"phase": phase, "seconds": time.perf_counter() - begun}
    if distributed.is_first():
      with open(workdir / summary.TIMES_FILE, "a") as file:
        file.write(json.dumps(row) + "\n")


def connect(config: Any, workdir: Path) -> dict[str, Path]:
  """Tells each stage its seed and where the stages before it are.

  Returns the folders of the stages by name.

  Raises:
    ConfigError: `reuse` names a run without the finished stages, or
      `reuse_stages` are not stages that can be taken over.
  """
  folders = {phase: workdir / phase for phase in PHASES}
  reused = tuple(config.reuse_stages)
  if "sft" not in reused or not set(reused) <= set(REUSABLE):
    raise ConfigError(
      f"config.reuse_stages={reused}: must hold 'sft', on whose samples the "
      f"others are normalised, and otherwise only some of {REUSABLE}."
    )
  if config.reuse:
    for phase in reused:
      folders[phase] = Path(config.reuse) / phase
      if stages.read_stage(folders[phase]) is None:
        raise ConfigError(
          f"config.reuse={config.reuse!r}: {folders[phase]} is not finished. "
          "Finish that run first, or set reuse=''."
        )
  for offset, phase in enumerate(PHASES):
    config[phase].seed = config.seed + 1000 * offset
  samples = str(folders["sft"] / "samples.npz")
  config.reward.reference_samples = samples
  config.gold.reference_samples = samples
  config.policy.init_from = str(folders["sft"])
  if "reward" in config.policy:  # not where people's comparisons are the data
    config.policy.reward = str(folders["reward"])
    with config.unlocked():
      config.policy.monitors.gold = str(folders["gold"])
  config.evaluation.init_from = str(folders["sft"])
  config.evaluation.policy = str(folders["policy"])
  config.evaluation.reward = str(folders["reward"])
  config.evaluation.gold = str(folders["gold"])
  return folders


def _is_done(folder: Path, phase: str) -> bool:
  if phase == "evaluation":
    return (folder / evaluate.RESULT_FILE).is_file()
  return stages.read_stage(folder) is not None


def run(config: Any, workdir: Path) -> dict:
  """Runs all stages and writes summary.json and report.html."""
  check_sections(config, SECTIONS, "")
  workdir.mkdir(parents=True, exist_ok=True)
  folders = connect(config, workdir)
  with timed(workdir, "load"):
    is_done = {phase: _is_done(folders[phase], phase) for phase in PHASES}
    forecast.announce(config, is_done)
  runs = {
    "sft": sft.run,
    "reward": reward.run,
    "gold": reward.run,
    "policy": POLICY_STAGES[config.policy.pipeline].run,
    "evaluation": evaluate.run,
  }
  for phase, run_stage in runs.items():
    if _is_done(folders[phase], phase):
      continue
    with timed(workdir, phase):
      run_stage(config[phase], folders[phase])
  if not distributed.is_first():
    return {}
  return summary.write(config, workdir, folders)
