"""What a run of rlhf.py will do, and how long it may take: said at its start.

FLOPs come from the shapes that the configuration gives, seconds from the rate
at which this machine multiplies (estimate.py).
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.data.batches import bucket_length
from rlhf_jax.metrics import format_seconds
from rlhf_jax.pipelines import build, estimate
from rlhf_jax.pipelines.config import Model, Trainable, section


def announce(config: Any, is_done: dict[str, bool]) -> None:
  """Prints what will run and a forecast of how long it takes.

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
  left = 0.0
  for phase, done in is_done.items():
    guess = estimate.seconds(work[phase], rate)
    left += 0.0 if done else guess
    state = "finished" if done else f"about {format_seconds(guess)}"
    print(f"  {phase:<11} {describe(config, phase):<52} {state}")
  print(f"  {'together':<64} about {format_seconds(left)}", flush=True)


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
  size = f"{stage.schedule.steps} steps of {stage.schedule.batch_size}"
  if phase == "policy":
    is_offline = stage.pipeline == "preference"
    rows = "comparisons" if is_offline else "prompts"
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
  model = base.config
  role = build.make_role(
    base, section(Trainable, stage.trainable, "policy.trainable")
  )
  width, response = _lengths(stage, base)
  sampled, trained = _answers(stage)
  passes = 2 * sampled  # sample and judge
  if stage.pipeline == "preference":
    passes = trained  # the reference
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
    drawn = stage.rounds.count * stage.rounds.prompts
    return drawn * samples, drawn * max(schedule.epochs, 1.0)
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
