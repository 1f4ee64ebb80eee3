"""Our side of a comparison, in a process of its own: see __main__.py."""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import files
from benchmarks.peers.clock import (
  ANSWERS,
  BATCH,
  GROUP,
  MAX_LENGTH,
  NEW,
  RANK,
  Clock,
)

CLOCK = Clock()  # before anything is imported

RECORDS = {
  "sft": "demonstrations",
  "reward": "comparisons",
  "dpo": "comparisons",
  "dpo_epoch": "comparisons",
  "grpo": "prompts",
  "ppo": "prompts",
  "judged_ppo": "prompts",
}
# comparison -> the metric that is a mark, and what it is multiplied with
MARKS = {
  "sft": ("sft/loss", 1.0),
  "reward": ("reward_model/loss", 1.0),
  "dpo": ("preference/logprob_chosen", 1.0),
  "dpo_epoch": ("preference/logprob_chosen", 1.0),
  "grpo": ("rollout/length_mean", ANSWERS),
  "ppo": ("rollout/length_mean", ANSWERS),
  "judged_ppo": ("rollout/length_mean", ANSWERS),
}


def policy(name: str, folder: Path, is_plain: bool) -> Any:
  """Returns the configuration of a policy gradient; see `experiment`."""
  from rlhf_jax.pipelines import defaults

  config = defaults.policy("grpo" if name == "grpo" else "ppo")
  config.prompts.update(format="prompt", max_length=files.PROMPT + 8 + NEW)
  config.generate.update(
    max_new_tokens=NEW,
    num_samples=GROUP if name == "grpo" else 1,
    stop_tokens=tuple(files.stop_words(folder)),
  )
  judge = f"{Path(__file__).with_name('judge.py')}:spread"
  if name == "grpo":  # one update a rollout, as published
    config.epochs.update(epochs=1, minibatches=1)
    config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
    config.reward_fn = judge
  elif name == "ppo":
    config.reward = str(folder / "reward")
    config.force = True  # one step of training: its scores are chance
  else:  # Tunix updates once in an epoch, on everything
    config.epochs.update(epochs=2, minibatches=1)
    config.reward_fn, config.value.init = judge, "random"
  if is_plain:
    config.generate.compact = False
    config.packing.row_tokens = 0
  return config


def experiment(name: str, folder: Path, steps: int, variant: str) -> Any:
  """Returns the configuration of a comparison.

  Args:
    name: of the comparison.
    folder: of files.write.
    steps: of training.
    variant: "defaults"; "plain": an example a row, all rows to the end; of PPO
      "shared_trunk": the critic is a head on the policy; "lora": policy and
      critic are factors of rank 16 on one frozen base.
  """
  from rlhf_jax.pipelines import defaults

  source = str(folder / f"{RECORDS[name]}.jsonl")
  is_plain = variant == "plain"
  if name == "sft":
    config = defaults.sft()
    config.data.update(format="demonstration", max_length=MAX_LENGTH)
    config.data.pack = "none" if is_plain else "auto"
  elif name in ("reward", "dpo", "dpo_epoch"):
    config = defaults.of("reward" if name == "reward" else "preference")
    config.data.update(format="comparison", max_length=MAX_LENGTH)
    config.heldout.update(
      source=str(folder / "heldout.jsonl"),
      format="comparison",
      max_length=MAX_LENGTH,
    )
  else:
    config = policy(name, folder, is_plain)
  (config.prompts if "prompts" in config else config.data).source = source
  if variant == "shared_trunk":
    config.value.update(trunk="shared", init="random")
  if variant == "lora":
    config.model.lora_rank = RANK
    config.trainable.mode = "lora"
    config.value.update(mode="lora", init="random")
  config.model.source = str(folder / "model")
  rows = ANSWERS if name.endswith("ppo") else BATCH
  config.schedule.update(batch_size=rows, steps=steps, save_every=10**6)
  return config


def fix_what_is_random() -> None:
  """Keeps the order of the records, and gives heads the peer's weights."""
  import grain
  import numpy as np

  from rlhf_jax.models import heads

  grain.MapDataset.shuffle = lambda self, *_, **__: self

  def init(config, width, key):
    del config, key
    kernel = files.score_weights(width)[:, None]
    return {"output": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}

  heads.init = init


def train(name: str, config: Any, workdir: Path) -> None:
  """Runs a pipeline; every row of metrics is a tick of the clock."""
  from rlhf_jax import metrics, pipelines

  write = metrics.MetricsWriter.write
  metric, times = MARKS[name]

  def noted(self, step, row, phase=""):
    if metric in row:
      CLOCK.tick(float(row[metric]) * times)
    return write(self, step, row, phase)

  metrics.MetricsWriter.write = noted
  pipelines.run(config, workdir)


def sample(folder: Path, steps: int, variant: str) -> None:
  """Samples ANSWERS answers `steps` times."""
  import jax
  import numpy as np

  from rlhf_jax import generate
  from rlhf_jax.data import batches, stops
  from rlhf_jax.models import pretrained
  from rlhf_jax.parallel import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  model = pretrained.Model(source=str(folder / "model"))
  base = pretrained.load_base(model, mesh)
  prompts = [row["prompt"] for row in files.read(folder, "prompts")]
  ids = [base.tokenizer.encode(prompt) for prompt in prompts]
  config = generate.Config(
    max_new_tokens=NEW,
    stop_tokens=tuple(files.stop_words(folder)),
    compact=False if variant == "plain" else None,
  )
  ends = stops.end_ids(base.tokenizer, config.stop_tokens)
  pad = base.tokenizer.pad_id
  for step in range(steps):
    part = ids[step * ANSWERS : (step + 1) * ANSWERS]
    found = generate.generate(
      base.params,
      batches.collate_prompts(part, pad, files.PROMPT),
      jax.random.key(step),
      model=base.config,
      config=config,
      eos_ids=ends,
      pad_id=pad,
    )
    CLOCK.tick(float(np.sum(found.response_mask)))


def main() -> None:
  """Runs one comparison and writes its times."""
  parser = argparse.ArgumentParser()
  for name in ("comparison", "folder", "workdir", "output", "variant"):
    parser.add_argument(name)
  parser.add_argument("steps", type=int)
  asked = parser.parse_args()
  name, folder = asked.comparison, Path(asked.folder)
  from rlhf_jax.main import set_up_jax

  set_up_jax()
  if name == "generate":
    sample(folder, asked.steps, asked.variant)
  else:
    fix_what_is_random()
    config = experiment(name, folder, asked.steps, asked.variant)
    train(name, config, Path(asked.workdir))
  versions = {"jax": importlib.metadata.version("jax")}
  CLOCK.write(asked.output, versions=versions)


if __name__ == "__main__":
  main()
