"""What a run of rlhf.py will do, and how long it may take: said at its start.

FLOPs come from the shapes that the configuration gives, seconds from the rate
at which this machine multiplies (estimate.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax.algorithms.preference import registry
from rlhf_jax.data.batches import bucket_length
from rlhf_jax.metrics import format_seconds
from rlhf_jax.pipelines import build, estimate
from rlhf_jax.pipelines.config import Model, Trainable, section


def announce(config: Any, is_done: dict[str, bool]) -> None:
  """Prints what will run and a forecast of how long it takes.

  The time of a stage whose length only its data tell is left out.

  Args:
    config: of an rlhf run.
    is_done: phase -> whether it is finished.
  """
  mesh = build.make_mesh(config.sft)
  base = build.load_base(section(Model, config.sft.model, "model"), mesh)
  rate = estimate.matmul_rate()
  work = flops(config, base)
  print(
    f"{config.title}\n{base.source}: {base.config.n_layers} layers, width "
    f"{base.config.width}; this machine multiplies at {rate / 1e9:.0f} "
    "GFLOP/s"
  )
  left, unknown = 0.0, False
  for phase, done in is_done.items():
    guess = estimate.seconds(work[phase], rate)
    state = "finished" if done else f"about {format_seconds(guess)}"
    if not done and not _is_known(config[phase]):
      guess, state, unknown = 0.0, "as long as the data say", True
    left += 0.0 if done else guess
    print(f"  {phase:<11} {describe(config, phase):<52} {state}")
  more = " and that" if unknown else ""
  print(f"  {'together':<64} about {format_seconds(left)}{more}", flush=True)


def _is_known(stage: Any) -> bool:
  """Says whether a stage's configuration tells its length."""
  if "schedule" not in stage or stage.pipeline == "rejection":
    return True
  return stage.schedule.steps > 0


def method_name(stage: Any) -> str:
  """Returns what trains the policy, for people: "PPO", "online DPO".

  Args:
    stage: config of a pipeline that ends in a policy.
  """
  if stage.pipeline == "rejection":
    return "rejection sampling"
  if stage.pipeline == "bond":
    return stage.target.kind.upper().replace("_", "-")
  name = stage.algorithm.name.upper().replace("_", "-")
  return f"online {name}" if stage.pipeline == "online_preference" else name


def describe(config: Any, phase: str) -> str:
  """Returns one line that says what a phase does."""
  stage = config[phase]
  if phase == "evaluation":
    return f"{stage.count} held-out prompts, before and after"
  if stage.pipeline == "rejection":
    rounds = stage.rounds
    return f"{rounds.count} rounds of {rounds.prompts} prompts (best of n)"
  schedule = stage.schedule
  size = f"{schedule.steps} steps of {schedule.batch_size}"
  if not schedule.steps:
    size = f"{schedule.epochs:g} epochs of"
  if phase == "policy":
    rows = "prompts"
    if stage.pipeline == "preference":
      is_single = stage.algorithm.name in registry.UNPAIRED
      rows = "judged answers" if is_single else "comparisons"
    return f"{size} {rows} ({method_name(stage)})"
  what = {
    "sft": "demonstrations",
    "reward": "comparisons (proxy reward model)",
    "gold": "comparisons (held-out reward model)",
  }
  return f"{size} {what[phase]}"


def flops(config: Any, base: build.Base) -> dict[str, float]:
  """Returns phase -> FLOPs, from the shapes that the configuration gives."""
  model, start = base.config, config.sft
  text = start.data.max_text_tokens
  row = bucket_length(text if text else start.data.max_length)
  role = build.make_role(
    base, section(Trainable, start.trainable, "sft.trainable")
  )
  rows = start.schedule.steps * start.schedule.batch_size
  width, response = _lengths(config.evaluation, base)

  def features(stage: Any) -> float:
    stop = stage.stop_layer if stage.stop_layer else model.n_layers
    count = _rows(stage.data) + _rows(stage.heldout)
    return estimate.forward_flops(model, count * row, stop, 0)

  def passes(count: float) -> float:
    return estimate.forward_flops(
      model, count * width, model.n_layers, count * response
    )

  return {
    "sft": estimate.training_flops(role, rows * row, rows * row)
    + estimate.forward_flops(model, rows * row, role.entrance, 0)
    + passes(start.samples),
    "reward": features(config.reward),
    "gold": features(config.gold),
    "policy": policy_flops(config.policy, base),
    "evaluation": 4 * passes(config.evaluation.count),  # sample, judge; twice
  }


def policy_flops(stage: Any, base: build.Base) -> float:
  """Returns FLOPs of a stage that ends in a policy: sample, judge, train.

  Args:
    stage: its configuration.
    base: the model.
  """
  own = section(Model, stage.model, "policy.model")
  model = dataclasses.replace(  # `base` was read as another stage wants it
    base.config,
    lora_rank=own.lora_rank,
    lora_scale=own.lora_scale,
    scan_layers=own.scan_layers,
  )
  role = build.make_role(
    dataclasses.replace(base, config=model),
    section(Trainable, stage.trainable, "policy.trainable"),
  )
  width, response = _lengths(stage, base)
  sampled, trained = _answers(stage)
  passes = 2 * sampled  # sample and judge
  if stage.pipeline == "preference":
    is_free = stage.algorithm.name in registry.REFERENCE_FREE
    passes = 0.0 if is_free else trained
  return estimate.forward_flops(
    model, passes * width, model.n_layers, passes * response
  ) + estimate.training_flops(role, trained * width, trained * response)


def _lengths(stage: Any, base: build.Base) -> tuple[int, int]:
  """Returns (tokens of a row, tokens of its response) of a policy's answers."""
  if stage.pipeline == "preference":
    return stage.data.max_length, stage.data.max_length
  response = stage.generate.max_new_tokens
  prompt = len(base.tokenizer.encode(stage.prompts.prompt))
  return prompt + stage.prompts.prefix_tokens + response, response


def _answers(stage: Any) -> tuple[float, float]:
  """Returns (answers sampled, answers trained on) in a policy stage."""
  schedule = stage.schedule
  steps = schedule.steps * schedule.batch_size
  if stage.pipeline == "preference":
    return 0.0, 2.0 * steps
  samples = stage.generate.num_samples
  if stage.pipeline == "rejection":
    rounds = stage.rounds
    drawn = rounds.count * rounds.prompts
    kept = drawn * schedule.epochs  # one of each prompt
    return drawn * samples, rounds.count * steps if steps else kept
  if stage.pipeline == "policy":
    return steps * samples, steps * samples * stage.epochs.epochs
  own = 1 if stage.pipeline == "bond" else 0
  return steps * (samples + own), 2.0 * steps


def _rows(data: Any) -> int:
  """Returns how many rows a Data section selects, as far as it says."""
  for part in filter(None, data.splits.split(",")):
    name, _, size = part.partition(":")
    if name.strip() == data.split:
      return min(int(size), data.limit) if data.limit else int(size)
  return data.limit
