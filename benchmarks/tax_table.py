"""What PPO costs the quickstart's model in capabilities, and what ptx saves.

  for seed in 0 1 2; do
    python -m rlhf_jax.main --config=configs/quickstart.py \\
        --config.seed=$seed --workdir=runs/seed$seed
  done
  python benchmarks/tax_table.py --workdir=runs/tax runs/seed0 runs/seed1 \\
      runs/seed2

Of each finished quickstart it takes SFT, reward models and PPO, and trains on
top of the same SFT policy, against the same reward model:

  ppo+ptx        the same PPO with text mixed into its updates (Ouyang et al.
                 2022, arXiv:2203.02155: PPO-ptx)
  no KL          PPO without KL penalty, entropy bonus and halt, at a constant
                 rate (as configs/overoptimise.py, with the quickstart's own
                 reward model)
  no KL+ptx      that, with ptx

Then all of them do the tasks that this package makes, and two texts: prose
(paragraphs of Python's language reference) and reviews (held-out movie-review
sentences, which SFT fine-tuned on others of). The text of ptx is other
paragraphs of the same reference: what the model knew before it, not what it is
asked. --only=ppo,ptx leaves the runs without KL out.

Printed, and written to table.md: for each task the SFT policy's number and the
change of each other, in points (texts: nats a token), mean over seeds with
Student's 95 % interval; below them the KL and the gold score. Everything goes
on where it was; a run that was stopped is started again by the same command.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import pipelines, terminal
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import seeds
from rlhf_jax.evaluation.tasks import made, outcomes
from rlhf_jax.pipelines import defaults

CONFIGS = Path(__file__).parent.parent / "configs"
PTX_WEIGHT = 1.0  # of the text's loss, beside PPO's
PTX_ROWS = 8  # of text in the updates of a rollout
PTX_TOKENS = 128  # of a row; longer paragraphs are left out
REVIEWS = 200  # held-out sentences
# Sums and copying are at chance or below with this model.
ASKED = ("agreement", "capitals", "opposites", "series", "prose")
TASKS = (*(f"made:{name}" for name in ASKED), "text:{}")
RUNS = {  # name -> has a KL penalty, has ptx
  "ppo+ptx": (True, True),
  "no KL": (False, False),
  "no KL+ptx": (False, True),
}
FEW = ("ppo+ptx",)  # with --only=ppo,ptx


def quickstart() -> Any:
  """Returns the module of configs/quickstart.py."""
  path = CONFIGS / "quickstart.py"
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def write_texts(workdir: Path) -> None:
  """Writes the text of ptx and the held-out reviews, if not there yet."""
  reviews = workdir / "reviews.jsonl"
  if not reviews.is_file():
    whole = Data().max_text_tokens  # no tokenizer is needed to read them
    data = Data(**quickstart().ratings("test", max_text_tokens=whole))
    found, _ = dataset.records(data, None)
    _write(reviews, [{"text": x.text} for x in found[:REVIEWS]])
  if not (workdir / "ptx.jsonl").is_file():
    texts = [x.partition(" ") for x in made.paragraphs()[1::2]]
    rows = [{"prompt": a, "response": f" {b}"} for a, _, b in texts]
    _write(workdir / "ptx.jsonl", rows)


def _write(path: Path, rows: list[dict]) -> None:
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(text, encoding="utf-8")


def policy_config(run: Path, workdir: Path, name: str) -> Any:
  """Returns the configuration of one of RUNS.

  Args:
    run: a finished quickstart.
    workdir: with ptx.jsonl.
    name: of RUNS.
  """
  has_penalty, has_ptx = RUNS[name]
  config = quickstart().policy()
  told = json.loads((run / "config.json").read_text())["config"]
  config.seed = told["policy"]["seed"] or told["seed"]
  config.init_from, config.reward = str(run / "sft"), str(run / "reward")
  config.monitors.gold = str(run / "gold")
  if not has_penalty:
    config.shaping.update(
      kl_coefficient=0.0,
      kl_controller="fixed",
      warn_nats=15.0,
      halt_nats=1000.0,
    )
    config.algorithm.entropy_coefficient = 0.0
    config.policy_optimizer.update(
      learning_rate=2e-3, schedule="constant", final_fraction=None
    )
  if has_ptx:
    config.algorithm.ptx_coefficient = PTX_WEIGHT
    config.ptx.update(
      source=str(workdir / "ptx.jsonl"),
      format="demonstration",
      max_length=PTX_TOKENS,
    )
    config.ptx_batch_size = PTX_ROWS
  return config


def tasks_config(policies: list[Path], workdir: Path) -> Any:
  """Returns the configuration of the tasks of policies, SFT first."""
  config = defaults.evaluate_tasks()
  module = quickstart()
  config.model.update(module.policy_model())
  config.policies = ",".join(map(str, policies))
  reviews = workdir / "reviews.jsonl"
  config.suite.tasks = ",".join(x.format(reviews) for x in TASKS)
  return config


def of_seed(run: Path, workdir: Path, names: tuple[str, ...]) -> dict:
  """Returns what tasks.json says of a quickstart and of the runs on top."""
  own = workdir / run.name
  for name in names:
    config = policy_config(run, workdir, name)
    pipelines.run(config, own / _folder(name))
  policies = [run / "sft", run / "policy", *(own / _folder(x) for x in names)]
  told = pipelines.run(tasks_config(policies, workdir), own / "tasks")
  shown = dict(zip(told["policies"], ("SFT", "ppo", *names), strict=True))
  return {
    "policies": {shown[k]: x for k, x in told["policies"].items()},
    "changes": {shown[k]: x for k, x in told["changes"].items()},
    "overall": {shown[k]: x for k, x in told["overall"].items()},
    "last": {
      name: _last(folder)
      for name, folder in zip(shown.values(), policies, strict=True)
      if name != "SFT"
    },
  }


def _folder(name: str) -> str:
  return name.replace(" ", "_").replace("+", "_")


def _last(folder: Path) -> dict[str, float]:
  """Returns KL and gold score of the last three rollouts of a policy."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()[-3:]
  rows = [json.loads(line) for line in lines]
  return {
    "KL (nats)": float(np.mean([x["rollout/kl_k1_sum"] for x in rows])),
    "gold score": float(np.mean([x.get("eval/gold", math.nan) for x in rows])),
  }


def _mean(values: list[float], decimals: int, *, sign: bool = True) -> str:
  """Returns a mean over seeds with its interval."""
  found = seeds.spread(values)
  text = terminal.decimal(found.mean, decimals, sign=sign)
  if math.isnan(found.interval_low):
    return text
  low, high = (
    terminal.decimal(x, decimals, sign=sign)
    for x in (found.interval_low, found.interval_high)
  )
  return f"{text} ({low} to {high})"


def table(found: list[dict]) -> list[list[str]]:
  """Returns the rows of the table, its heads first."""
  others = list(found[0]["changes"])
  rows = [["", "SFT", *others]]
  for task, numbers in found[0]["policies"]["SFT"].items():
    name = next(x for x in (*outcomes.SHARES, *outcomes.RATES) if x in numbers)
    decimals = 1 if name in outcomes.SHARES else 3
    own = [x["policies"]["SFT"][task][name] for x in found]
    cells = [
      _mean(
        [x["changes"][other][task][name]["change"] for x in found], decimals
      )
      for other in others
    ]
    label = f"{task}: {name.replace('_', ' ')}"
    rows.append([label, _mean(own, 3, sign=False), *cells])
  cells = [
    _mean([x["overall"][other]["change"] for x in found], 1) for other in others
  ]
  rows.append(["all shares, points", "", *cells])
  for name in found[0]["last"][others[0]]:
    cells = [
      _mean([x["last"][other][name] for x in found], 2, sign=False)
      for other in others
    ]
    rows.append([name, "", *cells])
  return rows


def main() -> None:
  """Runs what is missing, and prints the table."""
  parser = argparse.ArgumentParser(usage=__doc__)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--only", default="")
  parser.add_argument("runs", nargs="+", type=Path)
  asked = parser.parse_args()
  names = FEW if asked.only == "ppo,ptx" else tuple(RUNS)
  asked.workdir.mkdir(parents=True, exist_ok=True)
  write_texts(asked.workdir)
  found = [of_seed(run, asked.workdir, names) for run in asked.runs]
  heads, *rows = table(found)
  print("\n" + terminal.format_table(heads, rows))
  lines = [heads, ["---"] * len(heads), *rows]
  text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  (asked.workdir / "table.md").write_text(text + "\n")
  print(f"\n{asked.workdir / 'table.md'}")


if __name__ == "__main__":
  main()
