"""The whole job: SFT, reward model, gold reward model, PPO, evaluation, report.

Each stage is its own pipeline in its own folder; a stage that is finished is
not repeated, one that was stopped goes on from its checkpoint. `reuse` takes
SFT and reward models (`reuse_stages`) from another finished run, to try
another policy stage on the same ones.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax import distributed
from rlhf_jax.data.batches import bucket_length
from rlhf_jax.metrics import format_seconds
from rlhf_jax.pipelines import (
  build,
  estimate,
  evaluate,
  policy,
  reward,
  sft,
  stages,
  summary,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Model,
  Trainable,
  check_sections,
  section,
)

SECTIONS = frozenset(
  "pipeline title seed reuse reuse_stages sft reward gold policy evaluation "
  "facts caveats".split()
)
PHASES = ("sft", "reward", "gold", "policy", "evaluation")
REUSABLE = ("sft", "reward", "gold")


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
  config.policy.reward = str(folders["reward"])
  with config.unlocked():
    config.policy.monitors.gold = str(folders["gold"])
  config.evaluation.init_from = str(folders["sft"])
  config.evaluation.policy = str(folders["policy"])
  config.evaluation.reward = str(folders["reward"])
  config.evaluation.gold = str(folders["gold"])
  return folders


def announce(config: Any, folders: dict[str, Path]) -> None:
  """Prints what will run and a forecast of how long it takes."""
  mesh = build.make_mesh(config.sft)
  base = build.load_base(section(Model, config.sft.model, "model"), mesh)
  rate = estimate.matmul_rate()
  work = forecast_flops(config, base)
  print(
    f"{config.title}\n{base.source}: {base.config.n_layers} layers, width "
    f"{base.config.width}; this machine multiplies at {rate / 1e9:.0f} "
    "GFLOP/s"
  )
  left = 0.0
  for phase in PHASES:
    is_done = _is_done(folders[phase], phase)
    guess = estimate.seconds(work[phase], rate)
    left += 0.0 if is_done else guess
    state = "finished" if is_done else f"about {format_seconds(guess)}"
    print(f"  {phase:<11} {describe(config, phase):<52} {state}")
  print(f"  {'together':<64} about {format_seconds(left)}", flush=True)


def describe(config: Any, phase: str) -> str:
  """Returns one line that says what a phase does."""
  stage = config[phase]
  if phase == "evaluation":
    return f"{stage.count} held-out prompts, before and after"
  size = f"{stage.schedule.steps} steps of {stage.schedule.batch_size}"
  what = {
    "sft": "demonstrations",
    "reward": "comparisons (proxy reward model)",
    "gold": "comparisons (held-out reward model)",
    "policy": "prompts (PPO)",
  }
  return f"{size} {what[phase]}"


def forecast_flops(config: Any, base: build.Base) -> dict[str, float]:
  """Returns phase -> FLOPs, from the shapes that the configuration gives."""
  model = base.config
  text = config.sft.data.max_text_tokens
  row = bucket_length(text if text else config.sft.data.max_length)
  settings = config.policy.generate
  response = settings.max_new_tokens
  prompt = len(base.tokenizer.encode(config.policy.prompts.prompt))
  prompt += config.policy.prompts.prefix_tokens
  length = prompt + response
  role = build.make_role(
    base, section(Trainable, config.policy.trainable, "policy.trainable")
  )
  sft_rows = config.sft.schedule.steps * config.sft.schedule.batch_size
  samples = config.policy.schedule.batch_size * settings.num_samples
  updates = config.policy.epochs.epochs

  def sampling(count: float) -> float:
    return estimate.forward_flops(
      model, count * length, model.n_layers, count * response
    )

  def judging(count: float) -> float:
    return estimate.forward_flops(
      model, count * length, model.n_layers, count * response
    )

  def features(stage: Any) -> float:
    stop = stage.stop_layer if stage.stop_layer else model.n_layers
    count = sum(_rows(stage.data)) + sum(_rows(stage.heldout))
    return estimate.forward_flops(model, count * row, stop, 0)

  policy_step = sampling(samples) + judging(samples)
  policy_step += updates * estimate.training_flops(
    role, samples * length, samples * response
  )
  return {
    "sft": estimate.training_flops(role, sft_rows * row, sft_rows * row)
    + estimate.forward_flops(model, sft_rows * row, role.entrance, 0)
    + sampling(config.sft.samples),
    "reward": features(config.reward),
    "gold": features(config.gold),
    "policy": config.policy.schedule.steps * policy_step,
    "evaluation": 2
    * (sampling(config.evaluation.count) + judging(config.evaluation.count)),
  }


def _rows(data: Any) -> list[int]:
  """Returns how many rows a Data section selects, as far as it says."""
  for part in filter(None, data.splits.split(",")):
    name, _, size = part.partition(":")
    if name.strip() == data.split:
      return [min(int(size), data.limit) if data.limit else int(size)]
  return [data.limit]


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
    announce(config, folders)
  runs = {
    "sft": sft.run,
    "reward": reward.run,
    "gold": reward.run,
    "policy": policy.run,
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
