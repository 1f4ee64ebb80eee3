"""Our side of a comparison, in a process of its own: see __main__.py."""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import files
from benchmarks.peers.clock import Clock

CLOCK = Clock()  # before anything is imported

BATCH = 16
ANSWERS, GROUP, PROMPT, NEW = 64, 4, 48, 64


def experiment(name: str, folder: Path, steps: int, variant: str) -> Any:
  """Returns the configuration of a comparison.

  Args:
    name: of the comparison.
    folder: of files.write.
    steps: of training.
    variant: "defaults"; "plain": an example a row, all rows to the end; of PPO
      "shared_trunk": the critic is a head on the policy.
  """
  from rlhf_jax.pipelines import defaults

  records = {
    "sft": "demonstrations",
    "reward": "comparisons",
    "dpo": "comparisons",
    "dpo_epoch": "comparisons",
    "grpo": "prompts",
    "ppo": "prompts",
  }
  source = str(folder / f"{records[name]}.jsonl")
  is_plain = variant == "plain"
  if name == "sft":
    config = defaults.sft()
    config.data.update(source=source, format="demonstration", max_length=256)
    config.data.pack = "none" if is_plain else "auto"
  elif name in ("reward", "dpo", "dpo_epoch"):
    config = defaults.of("reward" if name == "reward" else "preference")
    config.data.update(source=source, format="comparison", max_length=256)
    config.heldout_fraction = 0.05
  else:
    config = defaults.policy(name)
    config.prompts.update(
      source=source, format="prompt", max_length=PROMPT + NEW
    )
    config.generate.update(
      max_new_tokens=NEW,
      num_samples=GROUP if name == "grpo" else 1,
      stop_tokens=tuple(files.words()[: files.STOPS]),
    )
    if name == "grpo":
      config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
      config.reward_fn = f"{Path(__file__).with_name('judge.py')}:spread"
    else:
      config.reward = str(folder / "reward")
    if variant == "shared_trunk":
      config.value.update(trunk="shared", init="random")
    if is_plain:
      config.generate.compact = False
      config.packing.row_tokens = 0
  config.model.source = str(folder / "model")
  rows = {"grpo": ANSWERS // GROUP, "ppo": ANSWERS}.get(name, BATCH)
  config.schedule.update(batch_size=rows, steps=steps, save_every=10**6)
  return config


def train(config: Any, workdir: Path) -> None:
  """Runs a pipeline; every row of metrics is a tick of the clock."""
  from rlhf_jax import metrics, pipelines

  write = metrics.MetricsWriter.write

  def noted(self, step, row, phase=""):
    losses = [row[key] for key in row if key.endswith("/loss")]
    CLOCK.tick(losses[0] if losses else None)
    return write(self, step, row, phase)

  metrics.MetricsWriter.write = noted
  pipelines.run(config, workdir)


def sample(folder: Path, steps: int, variant: str) -> None:
  """Samples ANSWERS answers `steps` times."""
  import json

  import jax
  import numpy as np

  from rlhf_jax import generate
  from rlhf_jax.data import batches, stops
  from rlhf_jax.models import pretrained
  from rlhf_jax.parallel import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  model = pretrained.Model(source=str(folder / "model"))
  base = pretrained.load_base(model, mesh)
  lines = (folder / "prompts.jsonl").read_text().splitlines()
  ids = [base.tokenizer.encode(json.loads(line)["prompt"]) for line in lines]
  config = generate.Config(
    max_new_tokens=NEW,
    stop_tokens=tuple(files.words()[: files.STOPS]),
    compact=False if variant == "plain" else None,
  )
  for step in range(steps):
    part = ids[step * ANSWERS : (step + 1) * ANSWERS]
    prompts = batches.collate_prompts(part, base.tokenizer.pad_id, 40)
    found = generate.generate(
      base.params,
      prompts,
      jax.random.key(step),
      model=base.config,
      config=config,
      eos_ids=stops.end_ids(base.tokenizer, config.stop_tokens),
      pad_id=base.tokenizer.pad_id,
    )
    CLOCK.tick(float(np.sum(found.response_mask)))


def main() -> None:
  """Runs one comparison and writes its times."""
  parser = argparse.ArgumentParser()
  for name in ("comparison", "folder", "workdir", "output", "variant"):
    parser.add_argument(name)
  parser.add_argument("steps", type=int)
  asked = parser.parse_args()
  folder = Path(asked.folder)
  from rlhf_jax.main import set_up_jax

  set_up_jax()
  if asked.comparison == "generate":
    sample(folder, asked.steps, asked.variant)
  else:
    config = experiment(asked.comparison, folder, asked.steps, asked.variant)
    train(config, Path(asked.workdir))
  versions = {"jax": importlib.metadata.version("jax")}
  CLOCK.write(asked.output, versions=versions)


if __name__ == "__main__":
  main()
