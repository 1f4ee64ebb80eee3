"""Experiments on the tiny model, to be run and to be planned alike.

All rows of the data have their full length, so that batches of a run have the
width that a plan takes for granted. Stages that others start from are finished
without a step of training.
"""

import json
from pathlib import Path

from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs.world import Planned
from rlhf_jax.runs import checkpoint, stage_file, stages
from tests.pipelines import tiny_runs

NEW_TOKENS = tiny_runs.NEW_TOKENS
PROMPT_TOKENS = 10
LENGTH = PROMPT_TOKENS + NEW_TOKENS  # two multiples of eight
LORA_LAYER = tiny_runs.LORA_LAYER


def make_files(root: Path) -> tiny_runs.Files:
  """Writes the tiny model and rows of LENGTH tokens each."""
  words = [f" {word}" for word in tiny_runs.WORDS]

  def text(first: int, count: int) -> str:
    return "".join(words[(first + i) % len(words)] for i in range(count))

  prompts = [text(i, PROMPT_TOKENS) for i in range(24)]
  answers = NEW_TOKENS - 1  # and the end
  rows = {
    "prompts": [{"prompt": p, "reference": "cat"} for p in prompts],
    "demonstrations": [
      {"prompt": p, "response": text(i, answers)} for i, p in enumerate(prompts)
    ],
    "comparisons": [
      {
        "prompt": p,
        "chosen": text(i, answers),
        "rejected": text(i + 3, answers),
      }
      for i, p in enumerate(prompts)
    ],
  }
  paths = {}
  for name, found in rows.items():
    path = root / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    paths[name] = str(path)
  return tiny_runs.Files(
    root=root,
    model=tiny_runs.make_model(root / "model"),
    ratings="",
    **paths,
  )


def sft_config(files: tiny_runs.Files, mode: str):
  """SFT, and samples of what it trained."""
  config = tiny_runs.sft_config(files, mode)
  for name in ("data", "validation", "sample_prompts"):
    config[name].max_length = LENGTH
  config.samples = 8
  config.schedule.update(steps=2, save_every=2)
  return config


def reward_config(files: tiny_runs.Files, mode: str, start: Path | str):
  """A reward model, normalised on its training rows."""
  config = tiny_runs.reward_config(files, mode, start, "")
  if mode != "head":
    config.data.share_prompts = "never"  # a plan knows no prompts
  config.data.update(max_length=LENGTH, end_token=True)
  config.schedule.update(batch_size=8, steps=2, save_every=2)
  return config


def preference_config(files: tiny_runs.Files, name: str, start: Path):
  """A method on comparisons, with LoRA."""
  config = _lora(files, defaults.preference(name), start)
  config.data.update(source=files.comparisons, max_length=LENGTH)
  config.data.share_prompts = "never"  # a plan knows no prompts
  config.heldout_fraction = 0.25
  return config


def policy_config(
  files: tiny_runs.Files, mode: str, start: Path, scorer: Path, method="ppo"
):
  """PPO with a critic, ReMax, or GRPO with a verifier."""
  if mode == "full":
    config = tiny_runs.full_policy_config(files, start, scorer)
    config.ptx.max_length, config.ptx_batch_size = LENGTH, 16
  else:
    config = tiny_runs.policy_config(files, mode, start, scorer)
    config.schedule.update(asynchronous=False, keep_best="")
  if method != "ppo":
    config.algorithm = defaults.policy(method).algorithm
    config.value.pretrain_steps = 0
  if method == "remax":
    config.epochs.update(epochs=1, minibatches=1)
  if method == "grpo":
    config.verifier.name, config.reward = "exact", ""
    config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  config.prompts.max_length = LENGTH
  config.schedule.update(batch_size=16, steps=2, save_every=2)
  return config


def shared_trunk_config(files: tiny_runs.Files, start: Path, scorer: Path):
  """PPO with LoRA whose critic is a head on the policy."""
  config = policy_config(files, "lora", start, scorer)
  config.value.update(trunk="shared", init="random", mode="full")
  return config


def sampled_config(
  files: tiny_runs.Files, pipeline: str, start: Path, scorer: Path, **sections
):
  """A pipeline that learns from its own samples, with LoRA."""
  config = _lora(files, defaults.of(pipeline), start)
  config.reward = str(scorer)
  config.prompts.update(
    source=files.prompts, format="prompt", max_length=LENGTH
  )
  config.generate.update(max_new_tokens=NEW_TOKENS, num_samples=2)
  config.schedule.batch_size = 8
  for name, values in sections.items():
    config[name].update(values)
  return config


def evaluate_config(
  files: tiny_runs.Files, policy: Path, start: Path, scorer: Path
):
  """A policy against its start."""
  config = defaults.evaluate()
  config.model.update(source=files.model, lora_rank=2)
  config.update(policy=str(policy), init_from=str(start), reward=str(scorer))
  config.prompts.update(
    source=files.prompts, format="prompt", max_length=LENGTH
  )
  config.generate.max_new_tokens = NEW_TOKENS
  config.update(count=16, batch_size=8)
  return config


def _lora(files: tiny_runs.Files, config, start: Path):
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=LORA_LAYER)
  config.init_from = str(start)
  config.schedule.update(batch_size=8, steps=2, save_every=2)
  return config


def make_stages(files: tiny_runs.Files) -> dict[str, Path]:
  """Finishes the stages that others start from; returns their folders."""
  root = files.root
  folders = {
    name: root / name for name in ("sft_lora", "sft_full", "head", "full")
  }
  _finish(sft_config(files, "lora"), folders["sft_lora"])
  _finish(sft_config(files, "full"), folders["sft_full"])
  _finish(reward_config(files, "head", ""), folders["head"])
  start = folders["sft_full"]
  _finish(reward_config(files, "full", start), folders["full"])
  return folders


def _finish(config, folder: Path) -> None:
  """Saves what a stage begins with as if it had been trained."""
  config.mesh.devices = 1
  job = pipelines.read(config)
  world = job.open(folder)
  (phase,) = job.phases(world)
  params = phase.arrays["train"].params
  with checkpoint.Checkpoints(str(folder / "checkpoints")) as saved:
    saved.save(1, {"train": {"params": params}}, {}, is_final=True)
  facts = {"steps": 1}
  if job.pipeline.leaves == stages.REWARD:
    facts |= {
      "normalisation": {"mean": 0.0, "std": 1.0},
      "guards": [],
      "reads_end_token": True,
      "merged_from": config.init_from,
    }
  stages.write_stage(folder, job.pipeline.name, phase.base, phase.role, **facts)


def experiments(files: tiny_runs.Files, made: dict[str, Path]) -> dict:
  """Returns name -> () -> its configuration.

  Args:
    files: from `make_files`.
    made: from `make_stages`.
  """
  lora, full = made["sft_lora"], made["sft_full"]
  head, whole = made["head"], made["full"]
  rounds = {"count": 2, "prompts": 16, "batch_size": 8, "keep_truncated": True}
  return {
    "sft lora": lambda: sft_config(files, "lora"),
    "sft full": lambda: sft_config(files, "full"),
    "reward head": lambda: reward_config(files, "head", lora),
    "reward full": lambda: reward_config(files, "full", full),
    "dpo": lambda: preference_config(files, "dpo", lora),
    "orpo": lambda: preference_config(files, "orpo", lora),
    "ppo lora": lambda: policy_config(files, "lora", lora, head),
    "ppo full": lambda: policy_config(files, "full", full, whole),
    "ppo shared trunk": lambda: shared_trunk_config(files, lora, head),
    "grpo": lambda: policy_config(files, "lora", lora, "", "grpo"),
    "remax": lambda: policy_config(files, "lora", lora, head, "remax"),
    "rejection": lambda: sampled_config(
      files, "rejection", lora, head, rounds=rounds
    ),
    "online_preference": lambda: sampled_config(
      files, "online_preference", lora, head, pairing={"reference_every": 1}
    ),
    "bond": lambda: sampled_config(files, "bond", lora, head),
    "evaluate": lambda: evaluate_config(files, lora, full, head),
  }


def planned_world(config, made: dict[str, Path], devices: list) -> Planned:
  """Returns a planned world in which the finished stages are known.

  Args:
    config: of the run that is planned.
    made: from `make_stages`.
    devices: to plan for.
  """
  job = pipelines.read(config)
  world = Planned.on(job.settings.mesh, devices)
  world.tokenizer = tiny_runs.load_base(config).tokenizer
  for folder in made.values():
    info = stages.read_stage(folder)
    role = stage_file.role_of(info["role"], world.base(job.settings.model))
    merged = info.get("merged_from", "")
    world.leave(folder, role, str(folder / merged) if merged else "")
  return world
