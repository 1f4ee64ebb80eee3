"""How much the default settings compute: work, not time.

    python benchmarks/work.py            # measures, compares with work.json
    python benchmarks/work.py --write    # measures, stores

Runs a few steps of SFT, a reward model, DPO, PPO and GRPO on records of very
different lengths, and counts for every program: calls, shapes that compile,
the cells of the rows that it reads, how many of them hold a token (fill),
tokens that are read, and FLOPs and bytes of the compiled program. What grows
beyond benchmarks/work.json fails: a slow default cannot come back unseen.

The model is tiny and random, so counts are those of layouts and programs, not
of a real model. Records and answers depend on the seed alone. "all" is a whole
run: how many programs XLA was asked for; "quickstart" is configs/quickstart.py
with this model, five stages one after the other.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from rlhf_jax import decoding, experiment_file, pipelines, startup
from rlhf_jax.algorithms.policy_gradient.packing import Packing
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface, transformer
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs.program import Program
from rlhf_jax.types import PreferenceBatch, PromptBatch, Rollout, TokenBatch

STORED = Path(__file__).with_name("work.json")
QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
WORDS = [f"w{n}" for n in range(240)]
STOPS = tuple(WORDS[:8])  # end a sampled answer: 24 tokens or so in the mean
# How much of a count may be more than what is stored. Compilers count FLOPs
# and bytes in their own way, and that way changes.
ALLOWED = {"shapes": 1.0, "cells": 1.02, "flops": 1.1, "bytes": 1.3}
ALLOWED["compiles"] = 1.0
BETTER = 0.9  # below this share of what is stored, it should be stored anew


def make_files(folder: Path, seed: int = 0, **sizes: int) -> dict[str, str]:
  """Writes a model and records; returns their paths by name.

  Answers are of 1 to 90 words, 18 in the mean; prompts of 2 to 24.

  Args:
    folder: is made.
    seed: of weights and records.
    **sizes: of the model, others than the usual.
  """
  rng = np.random.default_rng(seed)
  vocabulary = {word: n for n, word in enumerate(["<end>", *WORDS])}
  backend = tokenizers.Tokenizer(
    models.WordLevel(vocabulary, unk_token="<end>")
  )
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.add_special_tokens(["<end>"])
  model = folder / "model"
  model.mkdir(parents=True)
  backend.save(str(model / "tokenizer.json"))
  entries = {"eos_token": "<end>"}
  (model / "tokenizer_config.json").write_text(json.dumps(entries))
  usual = dict(width=32, n_layers=2, head_dim=8, mlp_width=64)
  config = transformer.Config(
    vocab_size=load_tokenizer(model).vocab_size,
    n_heads=4,
    n_kv_heads=2,
    max_length=256,
    **(usual | sizes),
  )
  params = transformer.init(config, jax.random.key(seed))["params"]
  huggingface.save(model, config, jax.tree.map(np.array, params))

  def text(count: int) -> str:
    return " ".join(rng.choice(WORDS, count))

  def answer() -> str:
    return text(min(int(rng.geometric(1 / 18)), 90))

  prompts = [{"prompt": text(int(rng.integers(2, 25)))} for _ in range(320)]
  records = {
    "prompts": prompts,
    "demonstrations": [row | {"response": answer()} for row in prompts],
    "comparisons": [
      row | {"chosen": answer(), "rejected": answer()} for row in prompts
    ],
    "ratings": [
      {
        "text": text(int(rng.integers(8, 16))),
        "ratings": rng.integers(-4, 5, 5).tolist(),
      }
      for _ in range(240)
    ],
  }
  paths = {"model": str(model)}
  for name, rows in records.items():
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths[name] = str(path)
  judge = folder / "judge.py"
  judge.write_text(
    "def spread(texts):\n"
    "  return [len(set(text.split())) / 32 for text in texts]\n"
  )
  return paths | {"judge": f"{judge}:spread"}


def experiments(files: dict[str, str]) -> dict[str, Any]:
  """Returns the configurations that are measured, defaults but for data."""
  sft, reward = defaults.sft(), defaults.reward()
  sft.data.update(source=files["demonstrations"], format="demonstration")
  dpo = defaults.of("preference")
  for config in (reward, dpo):
    config.data.update(source=files["comparisons"], format="comparison")
  ppo, grpo = defaults.policy(), defaults.policy("grpo")
  for config in (ppo, grpo):
    config.prompts.update(source=files["prompts"], format="prompt")
    config.prompts.max_length = 88
    config.reward_fn = files["judge"]
    config.generate.update(max_new_tokens=64, stop_tokens=STOPS)
  ppo.value.init = "random"
  grpo.generate.num_samples = 4
  grpo.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  found = dict(sft=sft, reward=reward, dpo=dpo, ppo=ppo, grpo=grpo)
  for config in found.values():
    config.model.source = files["model"]
    config.mesh.devices = 1
    config.schedule.update(batch_size=32, steps=4, save_every=4)
  reward.heldout_fraction = dpo.heldout_fraction = 0.1
  grpo.schedule.batch_size = 16
  found["quickstart"] = quickstart(files)
  return found


def quickstart(files: dict[str, str]) -> Any:
  """Returns configs/quickstart.py, short, on the model and records of `files`.

  Ratings of random words teach nothing: what must not be is allowed.
  """
  config = experiment_file.load(str(QUICKSTART))
  ratings = {"source": files["ratings"], "prompt": WORDS[-1]}
  ratings["splits"] = "test:60,A:90,B:90"
  for name in ("sft", "reward", "gold", "policy", "evaluation"):
    stage = config[name]
    stage.model.source, stage.mesh.devices = files["model"], 1
    for section in ("data", "heldout", "prompts", "sample_prompts"):
      if section in stage and stage[section].source:
        stage[section].update(ratings)
        if stage[section].pairs:
          stage[section].update(pairs=1024)
    if "schedule" in stage:
      stage.schedule.update(steps=4, save_every=4)
    if "trainable" in stage and stage.trainable.mode == "lora":
      stage.trainable.first_layer = 1
    if "stop_layer" in stage:
      stage.stop_layer = 1
    if "lexicon" in stage:
      stage.lexicon = False
  config.sft.samples = config.evaluation.count = 32
  config.sft.generate.batch_size = config.evaluation.batch_size = 16
  config.policy.schedule.batch_size = 16
  config.policy.force = True
  return config


def read_rows(arguments: Any) -> tuple[int, float]:
  """Returns (cells, tokens) of the rows that a program reads."""
  kinds = (Packing, PreferenceBatch, Rollout, TokenBatch, PromptBatch)
  parts = jax.tree.leaves(arguments, is_leaf=lambda x: isinstance(x, kinds))
  parts = [part for part in parts if isinstance(part, kinds)]
  layouts = [part for part in parts if isinstance(part, Packing)]
  layouts += [
    part.packing
    for part in parts
    if isinstance(part, PreferenceBatch) and part.packing is not None
  ]
  if layouts:
    segments = [np.asarray(layout.segment_ids) for layout in layouts]
    return sum(x.size for x in segments), sum((x > 0).sum() for x in segments)
  masks = [np.asarray(part.valid_mask) for part in parts]
  return sum(x.size for x in masks), sum(float((x > 0).sum()) for x in masks)


class Counter:
  """Counts what programs are called with, and what they were compiled to."""

  def __init__(self) -> None:
    self.rows: dict[str, dict] = defaultdict(lambda: defaultdict(float))
    self._costs: dict[str, dict] = defaultdict(dict)
    self.own_compiles = 0  # to know what a program costs

  def count(self, name: str, function: Any, args: tuple, how: dict) -> None:
    """Adds one call of a jitted function."""
    before = startup.COMPILES.count
    leaves, tree = jax.tree.flatten((args, how))
    shapes = [getattr(x, "shape", x) for x in leaves]
    key = str((tree, shapes))
    if key not in self._costs[name]:
      cost = function.lower(*args, **how).compile().cost_analysis()
      self._costs[name][key] = cost
    self.own_compiles += startup.COMPILES.count - before
    cost, row = self._costs[name][key], self.rows[name]
    cells, tokens = read_rows((args, how))
    row["calls"] += 1
    row["cells"] += cells
    row["tokens"] += tokens
    row["flops"] += cost["flops"]
    row["bytes"] += cost["bytes accessed"]
    row["shapes"] = len(self._costs[name])

  def found(self) -> dict[str, dict[str, float]]:
    """Returns {program: counts}, those of one call where they are means."""
    return {
      name: {
        "calls": int(row["calls"]),
        "shapes": int(row["shapes"]),
        "cells": int(row["cells"]),
        "fill": round(row["tokens"] / row["cells"], 3) if row["cells"] else 1.0,
        "flops": int(row["flops"]),
        "bytes": int(row["bytes"]),
      }
      for name, row in self.rows.items()
    }


def measure(config: Any, folder: Path) -> dict[str, dict[str, float]]:
  """Runs an experiment; returns the counts of its programs.

  Nothing that was compiled before counts as there.
  """
  jax.clear_caches()
  before = startup.COMPILES.count
  counter, call = Counter(), Program.__call__
  passes = {"prefill": decoding.prefill, "decode": decoding.decode}

  def counted(self: Program, *args: Any, **how: Any) -> Any:
    counter.count(self.name, self.function, args, how)
    return call(self, *args, **how)

  def prefill(*args: Any, **how: Any) -> Any:
    counter.count("prefill", passes["prefill"], args, how)
    return passes["prefill"](*args, **how)

  def decode(params: Any, state: Any, *rest: Any, **how: Any) -> Any:
    rows, before = state.row.shape[0], int(state.slot)
    counter.count("decode", passes["decode"], (params, state, *rest), how)
    sampled = int(np.sum(state.answers.step))
    state = passes["decode"](params, state, *rest, **how)
    row = counter.rows["decode"]
    row["cells"] += rows * (int(state.slot) - before)
    row["tokens"] += int(np.sum(state.answers.step)) - sampled
    return state

  Program.__call__ = counted
  decoding.prefill, decoding.decode = prefill, decode
  try:
    pipelines.run(config, folder)
  finally:
    Program.__call__ = call
    decoding.prefill, decoding.decode = passes["prefill"], passes["decode"]
  compiles = startup.COMPILES.count - before - counter.own_compiles
  return counter.found() | {"all": {"compiles": compiles}}


def worse(found: dict, stored: dict) -> list[str]:
  """Returns what computes more than what is stored, in words.

  Args:
    found, stored: {experiment: {program: counts}}.
  """
  lines = []
  for name in sorted({*found, *stored}):
    ours, theirs = found.get(name, {}), stored.get(name, {})
    for program in sorted({*ours, *theirs}):
      new, old = ours.get(program), theirs.get(program)
      if new is None or old is None:
        lines.append(f"{name} {program}: {'gone' if new is None else 'new'}")
        continue
      lines += [
        f"{name} {program}: {what} {new[what]:,} > {old[what]:,} stored"
        for what, allowed in ALLOWED.items()
        if what in old and new[what] > allowed * old[what]
      ]
  return lines


def better(found: dict, stored: dict) -> list[str]:
  """Returns which counts are so much less that they should be stored."""
  return [
    f"{name} {program}: {what} {row[what]:,} < {stored[name][program][what]:,}"
    for name, programs in found.items()
    for program, row in programs.items()
    for what in ("cells", "flops", "compiles")
    if what in stored.get(name, {}).get(program, {})
    and row[what] < BETTER * stored[name][program][what]
  ]


def table(found: dict) -> str:
  """Returns counts as a markdown table."""
  lines = [
    "| experiment | program | calls | shapes | cells | fill | MFLOP | MB |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name, programs in found.items():
    lines += [
      f"| {name} | {program} | {row['calls']} | {row['shapes']} | "
      f"{row['cells']:,} | {row['fill']:.2f} | {row['flops'] / 1e6:,.0f} | "
      f"{row['bytes'] / 1e6:,.0f} |"
      for program, row in programs.items()
      if program != "all"
    ]
  lines += ["", "| experiment | programs compiled |", "|---|---|"]
  lines += [
    f"| {name} | {programs['all']['compiles']} |"
    for name, programs in found.items()
  ]
  return "\n".join(lines)


def main() -> int:
  """Returns 1 where something computes more than what is stored."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--write", action="store_true", help="store the counts")
  parser.add_argument("--only", default="", help="names, commas between")
  asked = parser.parse_args()
  jax.config.update("jax_threefry_partitionable", True)
  with tempfile.TemporaryDirectory() as folder:
    every = list(experiments(make_files(Path(folder) / "names")))
    names = asked.only.split(",") if asked.only else every
    found = {}
    for name in names:  # with a model of its own, which is loaded anew
      made = experiments(make_files(Path(folder) / f"{name} files"))
      found[name] = measure(made[name], Path(folder) / name)
  print(table(found))
  stored = json.loads(STORED.read_text()) if STORED.exists() else {}
  if asked.write:
    STORED.write_text(json.dumps(stored | found, indent=2) + "\n")
    return 0
  bad = worse(found, {name: stored.get(name, {}) for name in names})
  for line in bad:
    print(f"more work: {line}")
  for line in better(found, stored):
    print(f"less work, store it with --write: {line}")
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main())
