"""What a finished run says last: where things are, its numbers, what to type.

The commands are those of README's "Your own data", with the folders and the
model of this run filled in; what only its user knows (prompts.jsonl) stands
there as an example.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import metrics, terminal
from rlhf_jax.models.pretrained import Model
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.runs import stage_file, stages

FILES = {
  "checkpoints": "trained weights; stage.json says what they are",
  "metrics.jsonl": "every step, also for TensorBoard",
  "samples.jsonl": "what the policy wrote",
  "texts.jsonl": "every prompt with the answers and their scores",
  "evaluation.json": "the numbers above",
  "answers.jsonl": "the answers and their scores, data for further stages",
  "generation.json": "the numbers above",
  "scores.jsonl": "every record with its scores",
  "scores.json": "the numbers above",
  "segments.json": "the numbers above",
  "feedback.jsonl": "what the judge said, data for further stages",
  "ai_feedback.json": "the numbers above",
  "revisions.jsonl": "the revised answers, data for SFT",
  "constitution.json": "the numbers above",
  "report_card.html": "the page: what the reward model likes",
  "report_card.json": "the numbers above",
  "export.json": "what was written, and how it was checked",
  "tasks.html": "the page: the table, and what was lost",
  "tasks.json": "the numbers above",
  "items.jsonl": "what each policy made of each item",
  "behaviour.html": "the page: a table a suite, with what was said",
  "behaviour.json": "the numbers above",
  "red_team.html": "the page: success by category, and what got through",
  "red_team.json": "the numbers above",
  "transcripts.jsonl": "everything that was said",
  "dialogues.jsonl": "the dialogues, data for SFT on their last answers",
  "ghost_attention.json": "the numbers above",
  "report.html": "one page: curves, numbers, texts",
  "summary.json": "the numbers above",
  "model": "what transformers and vLLM load; its README.md is a model card",
  "adapter": "what peft loads; its README.md is a model card",
}
# Numbers of the last row of metrics.jsonl that say how training ended.
LAST = {
  "sft/loss": "loss",
  "reward_model/loss": "loss",
  "preference/loss": "loss",
  "rollout/score_mean": "score",
  "rollout/kl_k1_sum": "KL (nats)",
  "rollout/length_mean": "length (tokens)",
  "heldout/score": "held-out score",
  "heldout/pass1": "held-out pass@1",
}
COUNTS = ("steps", "updates", "examples", "validation_loss")  # of stage.json
HELD_OUT = ("diagnosis", "heldout")  # sections of it
DEFAULT_MODEL = "asset:smollm2-135m-instruct"  # of configs/


def say(job: Job, workdir: Path, argv: Sequence[str], is_smoke: bool) -> None:
  """Prints what a finished run left, its numbers and the next command.

  Args:
    job: what ran.
    workdir: its folder.
    argv: of the command.
    is_smoke: whether it was a short trial.
  """
  name = job.pipeline.name
  if job.pipeline.stages is None:
    if job.pipeline.tell is not None:
      job.pipeline.tell(job.settings, workdir)
    print(f"\n{name}: finished. {numbers(workdir)}".rstrip())
  print(f"In {workdir}:")
  found = [file for file in FILES if (workdir / file).exists()]
  for file in found:
    print(f"  {file:{max(map(len, found))}}  {FILES[file]}")
  text, options = _next(job, workdir)
  if is_smoke and name == "rlhf":
    text = "the same without --smoke, in another folder"
    options = [option for option in argv[1:] if option != "--smoke"]
    options = [
      f"{option}-whole" if option.startswith("--workdir=") else option
      for option in options
    ]
  if options:
    command = _command(options, argv, is_smoke and name != "rlhf")
    print(f"Next, {text}:\n  {command}", flush=True)


def numbers(workdir: Path) -> str:
  """Returns the final numbers of a stage in one line; "" of none."""
  info = stages.read_stage(workdir) if _has_stage(workdir) else {}
  path = workdir / "metrics.jsonl"
  rows = metrics.read_metrics(path) if path.is_file() else []
  last = rows[-1] if rows else {}
  if info.get("pipeline") == "policy":  # stage.json counts gradient updates
    info = info | {"steps": last.get("step"), "updates": info["steps"]}
  parts = [_pair(name, info[name]) for name in COUNTS if _is(info.get(name))]
  parts += [
    _pair(text, last[k]) for k, text in LAST.items() if _is(last.get(k))
  ]
  for section in HELD_OUT:
    held = info.get(section) if isinstance(info.get(section), dict) else {}
    parts += [
      _pair("held-out accuracy", value)
      for name, value in held.items()
      if name.rpartition("/")[2] == "accuracy" and _is(value)
    ]
  return ", ".join(parts)


def _has_stage(workdir: Path) -> bool:
  return (workdir / stage_file.STAGE_FILE).is_file()


def _is(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _pair(name: str, value: float) -> str:
  shown = str(value) if isinstance(value, int) else terminal.short(value)
  return f"{name.replace('_', ' ')} {shown}"


def _next(job: Job, workdir: Path) -> tuple[str, list[str]]:
  """Returns what one may do next, in words and as options of a command."""
  settings, pipeline = job.settings, job.pipeline
  beside = workdir.parent
  if pipeline.leaves == stages.REWARD:
    start = settings.init_from if settings.init_from else str(beside / "sft")
    guards = (stages.read_stage(workdir) or {}).get("guards", ())
    unless = (
      " (refused as it is, see above, unless with --config.force=True)"
      if any(level == "refuse" for level, _ in guards)
      else ""
    )
    return f"a policy that it judges{unless}", [
      "--config=configs/ppo.py",
      "--config.prompts.source=prompts.jsonl",
      f"--config.init_from={start}",
      f"--config.reward={workdir}",
      *_model(settings),
      f"--workdir={beside / 'ppo'}",
    ]
  if pipeline.leaves != stages.POLICY:
    return "", []
  if pipeline.name == "sft":
    return "a reward model on your comparisons (or configs/dpo.py)", [
      "--config=configs/reward.py",
      "--config.data.source=pairs.jsonl",
      f"--config.init_from={workdir}",
      *_model(settings),
      f"--workdir={beside / 'reward'}",
    ]
  reward = getattr(settings, "reward", "")
  return "both policies on held-out prompts", [
    "--config=configs/evaluate.py",
    "--config.prompts.source=heldout_prompts.jsonl",
    f"--config.policy={workdir}",
    *([f"--config.reward={reward}"] if reward else []),
    *_model(settings),
    f"--workdir={beside / 'evaluation'}",
  ]


def _model(settings: Any) -> list[str]:
  """Returns options for the model, where it is not that of configs/."""
  model, options = settings.model, []
  for field, usual in (
    ("source", DEFAULT_MODEL),
    ("tokenizer", Model().tokenizer),
    ("scan_layers", Model().scan_layers),
    ("quantize", Model().quantize),
  ):
    value = getattr(model, field)
    if value != usual:
      options.append(f"--config.model.{field}={value}")
  return options


def _command(
  options: Sequence[str], argv: Sequence[str], is_smoke: bool
) -> str:
  """Returns a command; an experiment file is looked for beside the last one."""
  given = [x.partition("=")[2] for x in argv if x.startswith("--config=")]
  folder = Path(given[0].partition(":")[0]).parent if given else Path("configs")
  parts = ["python", "-m", "rlhf_jax.main"]
  for option in options:
    name, _, value = option.partition("=")
    beside = folder / Path(value).name
    if name == "--config" and value.startswith("configs/") and beside.is_file():
      option = f"{name}={beside}"
    parts.append(shlex.quote(option))
  return " ".join([*parts, *(["--smoke"] if is_smoke else [])])
