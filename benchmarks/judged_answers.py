"""Answers of a run's SFT policy, judged by its reward model: offline data.

    python benchmarks/judged_answers.py --reuse=runs/quickstart --seed=0 \\
        --rollouts=12 --output=runs/methods/judged_0

Draws rollouts x 64 answers, four to a prompt, from the prompts and with the
sampling of configs/quickstart.py, and writes

  comparisons.jsonl   best against worst of those that end by themselves
  labelled.jsonl      each of those: liked if above their prompt's mean

What offline methods read in benchmarks/methods_table.py, so that they see as
many answers, judged by the same model, as methods that sample while they
learn. Answers cut at the length limit are left out: an end would have to be
made up for them.
"""

import argparse
import json
import runpy
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import pipelines
from rlhf_jax.main import set_up_jax
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import own_samples, rejection_samples

ROOT = Path(__file__).resolve().parent.parent


def draw(reuse: Path, seed: int, rollouts: int):
  """Returns (Pool, tokenizer) of the SFT policy of a finished run.

  Args:
    reuse: folder of a finished quickstart.
    seed: of prompts and samples.
    rollouts: of 64 answers.
  """
  method = runpy.run_path(str(ROOT / "configs" / "quickstart_method.py"))
  config = method["get_config"]("raft").policy
  config.seed = seed
  config.init_from = str(reuse / "sft")
  config.reward = str(reuse / "reward")
  job = pipelines.read(config)
  settings, world = job.settings, job.open("")  # nothing is written there
  with mesh_lib.current(world.mesh):
    base = world.base(settings.model)
    opened = own_samples.Opened.of(settings, world, base)
    source, _ = opened.source(
      method["ANSWERS"] // settings.generate.num_samples
    )
    pool = rejection_samples.collect(
      source,
      opened.actors.params["policy"],
      jax.random.key(seed),
      rollouts,
      settings.generate.num_samples,
    )
  return pool, base.tokenizer


def judged(pool: rejection_samples.Pool, tokenizer) -> tuple[list, list, int]:
  """Returns rows of comparisons.jsonl, rows of labelled.jsonl, answers cut."""
  everything = np.ones(pool.score.shape, bool)
  rows = rejection_samples.kept_rows(pool, everything, tokenizer, 1)
  answers = pool.score.shape[1]
  comparisons, labelled, cut = [], [], 0
  for prompt in range(len(pool.score)):
    group = rows[prompt * answers : (prompt + 1) * answers]
    whole = [
      row
      for row, ended in zip(group, pool.ended[prompt], strict=True)
      if ended and row["response"].strip()
    ]
    cut += answers - len(whole)
    whole.sort(key=lambda row: row["score"])
    if len(whole) < 2 or whole[0]["score"] == whole[-1]["score"]:
      continue
    mean = sum(row["score"] for row in whole) / len(whole)
    text = whole[0]["prompt"]
    comparisons.append(
      {
        "prompt": text,
        "chosen": whole[-1]["response"],
        "rejected": whole[0]["response"],
      }
    )
    labelled += [
      {
        "prompt": text,
        "response": row["response"],
        "label": row["score"] > mean,
      }
      for row in whole
    ]
  return comparisons, labelled, cut


def main() -> None:
  """Draws, judges and writes both files; prints the counts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--reuse", required=True, type=Path)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--rollouts", type=int, default=21)
  parser.add_argument("--output", required=True, type=Path)
  arguments = parser.parse_args()
  set_up_jax()
  pool, tokenizer = draw(arguments.reuse, arguments.seed, arguments.rollouts)
  comparisons, labelled, cut = judged(pool, tokenizer)
  arguments.output.mkdir(parents=True, exist_ok=True)
  for name, rows in (("comparisons", comparisons), ("labelled", labelled)):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = arguments.output / f"{name}.jsonl"
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)  # absent or complete
  print(
    f"{pool.score.size} answers, {cut} without an end or empty; "
    f"{len(comparisons)} comparisons and {len(labelled)} judged answers in "
    f"{arguments.output}"
  )


if __name__ == "__main__":
  main()
