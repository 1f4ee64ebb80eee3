"""The alignment tax: RL on one skill costs another, and what pays it back.

  python -m tests.proofs.alignment_tax [SEEDS]

METHODS 14, annex A10. A random decoder of two layers is fine-tuned on two
skills: modular addition ("7+6=" wants "3", modulo 10), and a format ("7-6=" is
answered by any one digit, uniformly). Then RLOO trains on the second alone: a
reward of 0.05 for the digit 0. Addition is no part of it, and is probed before
and after as a capability task, through the section `tax` of the run: the right
digit among ten, over all 100 problems.

Printed, for each seed and each of

  beta B      KL coefficient B: 0, 0.01, 0.03, 0.1
  ptx         beta 0, with demonstrations of additions mixed into the updates
  mixing      beta 0, with additions and their verifier among the prompts

are the points of addition that were lost, how often the policy says 0, the KL
to the start, and seconds. It fails (exit code 1) unless, in the mean over
seeds, beta 0 costs more than 5 points, beta 0.1, ptx and mixing less than 1,
and the tax falls with beta (to 0.5 points); and unless beta 0 has learned its
format, so that there is something to pay for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults
from tests.proofs import modular_addition as addition
from tests.proofs.rows import Row, show

MODULUS, LENGTH, NEW_TOKENS = 10, 8, 2
REWARD = 0.05  # of the digit 0; beta 0.1 tilts by the root of e
BETAS = (0.0, 0.01, 0.03, 0.1)
PTX, MIXING = "ptx", "mixing"
LEARNED = 0.9  # share of zeros at beta 0
_REWARD_FILE = f'''
def score(texts, records):
  """A reward for the digit 0, or for the right sum where one is asked."""
  found = []
  for text, record in zip(texts, records):
    wanted = record.get("sum", "0")
    found.append({REWARD} * (text.strip() == wanted))
  return found
'''


@dataclasses.dataclass(frozen=True)
class Size:
  """How long each stage trains."""

  sft_steps: int = 400
  policy_steps: int = 150
  learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Found:
  """One run: points lost, share of zeros in the end, nats, seconds."""

  tax: float
  zeros: float
  kl: float
  seconds: float


def write_data(folder: Path) -> None:
  """Writes demonstrations, prompts, text for ptx, the probe and the reward."""
  rng = np.random.default_rng(0)
  a, b = (x.ravel() for x in np.indices((MODULUS, MODULUS)))
  pairs = list(zip(a.tolist(), b.tolist(), strict=True))
  sums = [
    {"prompt": f"{x}+{y}=", "response": str((x + y) % MODULUS)}
    for x, y in pairs
  ]
  formats = [
    {"prompt": f"{x}-{y}=", "response": str(rng.integers(MODULUS))}
    for x, y in pairs * 40
  ]
  digits = [str(digit) for digit in range(MODULUS)]
  probe = [
    {"prompt": x["prompt"], "choices": digits, "answer": int(x["response"])}
    for x in sums
  ]
  asked = [{"prompt": f"{x}-{y}="} for x, y in pairs]
  mixed = [{"prompt": x["prompt"], "sum": x["response"]} for x in sums]
  for name, rows in (
    ("demonstrations", sums * 40 + formats),
    ("sums", sums),
    ("probe", probe),
    ("prompts", asked),
    ("mixed", asked + mixed),
  ):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
  (folder / "reward.py").write_text(_REWARD_FILE)


def sft_config(folder: Path, size: Size, seed: int) -> Any:
  """Returns the configuration of supervised fine-tuning on both skills."""
  config = addition.sft_config(folder, addition.Size(sft_steps=size.sft_steps))
  config.seed = seed
  return config


def policy_config(
  folder: Path, size: Size, seed: int, beta: float, remedy: str = ""
) -> Any:
  """Returns the configuration of RL on the format.

  Args:
    folder: with model, data and the stage sft.
    size: how long.
    seed: of the run.
    beta: KL coefficient.
    remedy: PTX, MIXING or "".
  """
  config = defaults.policy("rloo")
  config.mesh.devices = 1
  config.seed = seed
  config.model.source = str(folder / "model")
  config.init_from = str(folder / f"sft_{seed}")
  config.reward_fn = f"{folder / 'reward.py'}:score"
  name = "mixed" if remedy == MIXING else "prompts"
  config.prompts.update(
    source=str(folder / f"{name}.jsonl"), format="prompt", max_length=LENGTH
  )
  config.generate.update(max_new_tokens=NEW_TOKENS, num_samples=8)
  config.shaping.update(
    kl_coefficient=beta,
    kl_controller="fixed",
    clip=None,
    warn_nats=1e5,
    halt_nats=1e6,
  )
  config.epochs.update(epochs=1, minibatches=1)
  config.policy_optimizer.update(
    learning_rate=size.learning_rate,
    warmup_steps=5,
    schedule="linear",
    final_fraction=0.0,  # what is probed is where it settles, not its noise
  )
  if remedy == PTX:
    config.algorithm.ptx_coefficient = 1.0
    config.ptx.update(
      source=str(folder / "sums.jsonl"),
      format="demonstration",
      max_length=LENGTH,
    )
    config.ptx_batch_size = 64
  config.tax.update(
    tasks=f"choice:{folder / 'probe.jsonl'}",
    batch_size=16,
    warn_points=math.inf,
    halt_points=math.inf,
  )
  steps = size.policy_steps
  config.schedule.update(batch_size=32, steps=steps, save_every=steps)
  return config


def prepare(folder: Path, size: Size, seed: int) -> float:
  """Fine-tunes on both skills, with model and data if they are not there yet.

  Returns:
    seconds.
  """
  since = time.perf_counter()
  if not (folder / "model").is_dir():
    addition.write_model(folder / "model")
    write_data(folder)
  with addition.quietly():
    pipelines.run(sft_config(folder, size, seed), folder / f"sft_{seed}")
  return time.perf_counter() - since


def train(
  folder: Path, size: Size, seed: int, beta: float, remedy: str = ""
) -> Found:
  """Trains on the format; returns what that cost."""
  since = time.perf_counter()
  config = policy_config(folder, size, seed, beta, remedy)
  where = folder / f"policy_{seed}_{beta}_{remedy}"
  with addition.quietly():
    info = pipelines.run(config, where)
  rows = [
    json.loads(line)
    for line in (where / "metrics.jsonl").read_text().splitlines()
  ]
  last = rows[-5:]
  told = info["tax"]["probe"]
  return Found(
    tax=0.0 - told["change"],
    zeros=float(np.mean([row["rollout/score_mean"] for row in last])) / REWARD,
    kl=float(np.mean([row["rollout/kl_k1_sum"] for row in last])),
    seconds=time.perf_counter() - since,
  )


def settings(betas: tuple[float, ...] = BETAS) -> dict[str, tuple]:
  """Returns name -> (beta, remedy) of each run."""
  runs = {f"beta {beta:g}": (beta, "") for beta in betas}
  return runs | {PTX: (0.0, PTX), MIXING: (0.0, MIXING)}


def measured(
  seeds: int, size: Size = Size(), betas: tuple[float, ...] = BETAS
) -> dict[str, list[Found]]:
  """Returns name -> what each seed found; prints the runs."""
  found: dict[str, list[Found]] = {name: [] for name in settings(betas)}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for seed in range(seeds):
      spent = prepare(folder, size, seed)
      print(f"seed {seed}: both skills learned in {spent:.0f} s", flush=True)
      for label, (beta, remedy) in settings(betas).items():
        one = train(folder, size, seed, beta, remedy)
        found[label].append(one)
        print(
          f"  {label:10} tax {one.tax:5.1f} points, right format "
          f"{one.zeros:.2f}, KL {one.kl:.2f} nats, {one.seconds:.0f} s",
          flush=True,
        )
  return found


def rows(
  seeds: int = 3, size: Size = Size(), betas: tuple[float, ...] = BETAS
) -> Iterator[Row]:
  """Yields a row a setting: its tax; the control is beta 0."""
  found = measured(seeds, size, betas)
  tax = {name: float(np.mean([x.tax for x in v])) for name, v in found.items()}
  curve = [tax[f"beta {beta:g}"] for beta in betas]
  falls = all(b <= a + 0.5 for a, b in zip(curve, curve[1:], strict=False))
  zeros = float(np.mean([x.zeros for x in found["beta 0"]]))
  for name in (f"beta {betas[-1]:g}", PTX, MIXING):
    yield Row(
      f"{name}, {seeds} seeds",
      "no tax",
      "points",
      tax[name],
      1.0,
      tax["beta 0"],
      5.0,
      sum(x.seconds for x in found[name]),
      falls and zeros > LEARNED,
    )


if __name__ == "__main__":
  sys.exit(show(rows(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
