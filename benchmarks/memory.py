"""Bytes that PPO's four roles take, kept in one way and another.

    python benchmarks/memory.py                      # both tables
    python benchmarks/memory.py --table=plan         # of a large shape, by plan
    python benchmarks/memory.py --table=measured     # of SmolLM2-135M, run here
    python benchmarks/memory.py --only=lora/int4     # some rows

The plan's table: GiB of one chip of a slice, at rest in the phase where most
is (weights of all roles, and moments), at the peak, and the same at rest over
the bytes of one bfloat16 model. With libtpu (and --compile) the temporaries
are the compiler's, else they are estimates.

The measured table: each row is a process of its own that trains a reward model
for one step and PPO for two, 8 prompts, answers of 16 tokens. Weights and
moments are counted from the arrays that are alive on the device when each part
of a step begins and ends; temporaries are what the compiled programs ask for
(planning for cpu:1 with the same settings); the last column is what the system
saw, the model's reading and the compiler included. Ratios are over two bytes a
parameter of one model.

A row whose setting this version does not have is named and left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rlhf_jax import plan  # noqa: E402  (after the path is set)

GIB, MIB = 2**30, 2**20
FULL: dict[str, Any] = {"trainable.mode": "full", "value.mode": "full"}
OFFLOAD = {"offload.trees": ("reference", "reward", "optimizer")}
# With factors the roles share one frozen base, which every phase reads.
LORA_OFFLOAD = {"offload.trees": ("optimizer",)}
SMALL = {"policy_optimizer.moments": "8bit", "value_optimizer.moments": "8bit"}
NARROW = {"model.weights": "bfloat16"}
LORA = {
  "trainable.mode": "lora",
  "value.mode": "lora",
  "model.lora_rank": 16,
  "model.lora_merge": False,
}
# name -> changes of the settings of a policy run in bfloat16.
ROWS: dict[str, dict[str, Any]] = {
  "full": FULL,
  "full, offload": FULL | OFFLOAD,
  "full, 8-bit moments": FULL | SMALL,
  "full, bfloat16 weights": FULL | NARROW,
  "full, all three": FULL | NARROW | SMALL | OFFLOAD,
  "lora": LORA,
  "lora, bfloat16 weights": LORA | NARROW,
  "lora, int8": LORA | NARROW | {"model.quantize": "int8"},
  "lora, int4": LORA | NARROW | {"model.quantize": "int4"},
  "lora, int8, offload": LORA
  | NARROW
  | LORA_OFFLOAD
  | {"model.quantize": "int8"},
  "lora, int4, 8-bit moments": LORA
  | NARROW
  | SMALL
  | {"model.quantize": "int4"},
  "lora, int4, 8-bit moments, offload": LORA
  | NARROW
  | SMALL
  | LORA_OFFLOAD
  | {"model.quantize": "int4"},
}
SMOLLM2 = "asset:smollm2-135m-instruct"
WORDS = "the film was good and bad with plot acting of a scene".split()


def missing(config: Any, changes: dict[str, Any]) -> list[str]:
  """Returns the fields of changes that a configuration does not have."""
  known = {".".join(path) for path in _paths(config)}
  return [field for field in changes if field not in known]


def _paths(tree: Any, before: tuple = ()) -> Iterator[tuple]:
  for name, value in tree.items():
    if hasattr(value, "items") and value:
      yield from _paths(value, (*before, name))
    else:
      yield (*before, name)


def large(shape: str, tensor: int) -> Any:
  """Returns PPO of a shape, as in configs/recipes/ppo.py with fewer prompts."""
  from rlhf_jax.pipelines import defaults

  config = defaults.policy()
  config.model.update(
    source=f"shape:{shape}", dtype="bfloat16", scan_layers=True, remat=True
  )
  config.prompts.update(format="prompt", chat=True, max_length=1024)
  config.generate.max_new_tokens = 512
  config.generate.batch_size = 32
  config.epochs.update(epochs=2, minibatches=2, microbatches=16)
  config.schedule.update(batch_size=64, steps=200)
  config.mesh.update(data=1, fsdp=-1, tensor=tensor)
  return config


def planned(config: Any, name: str, compiles: bool) -> dict[str, Any]:
  """Returns the numbers of a row by plan: bytes of one device."""
  from rlhf_jax.planning import report, topology

  slice_ = topology.parse(name)
  found = report.make(config, slice_, compiles=compiles)
  rest = max(found.lines, key=lambda line: line.weights + line.optimizer)
  peak = max(found.lines, key=lambda line: line.peak)
  return {
    "weights": rest.weights,
    "moments": rest.optimizer,
    "temporaries": max(line.temporaries for line in found.lines),
    "peak": peak.peak,
    "program": peak.program,
    "limit": found.limit,
    "host": found.offload.host,
    "model": model_bytes(config.model.source) / slice_.devices,
  }


def model_bytes(source: str) -> int:
  """Returns the bytes of one model at two a parameter."""
  import jax

  from rlhf_jax.models import model_sources, pretrained, roles

  role = roles.Role(model_sources.read_architecture(source))
  leaves = jax.tree.leaves(pretrained.variable_shapes(role)["params"])
  return 2 * sum(math.prod(leaf.shape) for leaf in leaves)


def plan_table(arguments: argparse.Namespace, rows: dict[str, dict]) -> None:
  """Prints the table of a large shape."""
  how = "compiled" if arguments.compile else "estimated"
  print(
    f"PPO of {arguments.shape} on {arguments.topology}, tensor="
    f"{arguments.tensor}; GiB of a chip, temporaries {how}\n\n"
    "| roles | weights | moments | over one bf16 model | peak | in | fits "
    "| on a host |\n|---|---|---|---|---|---|---|---|"
  )
  for name, changes in rows.items():
    config = large(arguments.shape, arguments.tensor)
    if lacks := missing(config, changes):
      print(f"| {name} | needs {', '.join(lacks)} |")
      continue
    config.update_from_flattened_dict(changes)
    found = planned(config, arguments.topology, arguments.compile)
    rest = found["weights"] + found["moments"]
    fits = "yes" if found["peak"] <= found["limit"] else "no"
    print(
      f"| {name} | {found['weights'] / GIB:.2f} | {found['moments'] / GIB:.2f} "
      f"| {rest / found['model']:.2f} | {found['peak'] / GIB:.2f} "
      f"| {found['program']} | {fits} | {found['host'] / GIB:.1f} |",
      flush=True,
    )


def measured_table(arguments: argparse.Namespace, rows: dict) -> None:
  """Prints the table of runs on this machine."""
  print(
    f"\nPPO of {arguments.model}, two steps on one CPU device; MiB\n\n"
    "| roles | weights | moments | over one bf16 model | temporaries | arrays "
    "at most | resident at most |\n|---|---|---|---|---|---|---|"
  )
  for name in rows:
    command = [sys.executable, __file__, f"--row={name}"]
    command.append(f"--model={arguments.model}")
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
      print(f"| {name} | failed: {found.stderr.strip().splitlines()[-1]} |")
      continue
    row = json.loads(found.stdout.strip().splitlines()[-1])
    if "lacks" in row:
      print(f"| {name} | needs {', '.join(row['lacks'])} |")
      continue
    rest = row["weights"] + row["moments"]
    cells = (
      f"{row['weights'] / MIB:.0f}",
      f"{row['moments'] / MIB:.0f}",
      f"{rest / row['model']:.2f}",
      *(f"{row[k] / MIB:.0f}" for k in ("temporaries", "alive", "resident")),
    )
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _records(folder: Path) -> tuple[str, str]:
  """Writes comparisons and prompts; returns their paths."""
  comparisons, prompts = folder / "pairs.jsonl", folder / "prompts.jsonl"
  texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
  with comparisons.open("w") as file:
    for i, text in enumerate(texts):
      pair = {"prompt": f"{text} {i}", "chosen": " good", "rejected": " bad"}
      file.write(json.dumps(pair) + "\n")
  with prompts.open("w") as file:
    file.writelines(json.dumps({"prompt": text}) + "\n" for text in texts)
  return str(comparisons), str(prompts)


def small(model: str, changes: dict[str, Any], folder: Path) -> tuple[Any, Any]:
  """Returns the configurations of a reward model and of PPO."""
  from rlhf_jax.pipelines import defaults

  comparisons, prompts = _records(folder)
  config = defaults.policy()
  config.model.update(source=model, dtype="bfloat16")
  config.prompts.update(source=prompts, format="prompt", max_length=48)
  config.generate.max_new_tokens = 16
  config.schedule.update(batch_size=8, steps=2)
  config.reward, config.force = str(folder / "reward"), True
  config.mesh.devices = 1
  if missing(config, changes):
    return None, config
  config.update_from_flattened_dict(changes)
  reward = defaults.reward()
  reward.model.update(config.model.to_dict())
  reward.model.lora_merge = True
  reward.trainable.mode = config.trainable.mode
  reward.data.update(source=comparisons, max_length=48)
  reward.heldout_fraction = 0.2
  reward.schedule.update(batch_size=4, steps=1)
  reward.mesh.devices = 1
  return reward, config


class Watch:
  """Bytes of arrays on the device as each part of a step begins and ends."""

  def __init__(self) -> None:
    self.alive, self.rest = 0, (0, 0)
    self._resting: set[int] = set()

  def note(self, arrays: Any, weights: Any) -> None:
    """Counts what is alive, and what of it rests there: weights, moments."""
    import jax

    from rlhf_jax.programs.offload import HOST

    here = [x for x in jax.live_arrays() if x.sharding.memory_kind != HOST]
    self.alive = max(self.alive, sum(x.nbytes for x in here))

    def size(tree: Any) -> int:
      leaves = {id(x): x for x in jax.tree.leaves(tree)}.values()
      return sum(
        x.nbytes
        for x in leaves
        if not x.is_deleted() and x.sharding.memory_kind != HOST
      )

    train = arrays["train"]
    found = size((train.params, weights)), size(train.opt_state)
    self.rest = max(self.rest, found, key=sum)


def watched(config: Any, folder: Path) -> Watch:
  """Runs PPO; returns what was seen."""
  from unittest import mock

  from rlhf_jax import pipelines
  from rlhf_jax.programs import policy_training as training

  watch = Watch()
  parts = ("_sample", "_prepare", "_learn")
  steps: list[Any] = []
  real = {name: getattr(training.Step, name) for name in parts}
  latest: dict[str, Any] = {}
  call = training.Step.__call__

  def frozen(step: Any) -> list[Any]:
    resting = step.resting
    weights = step.actors.weights
    if resting is not None:
      weights = (resting._leaves, resting._copies)
    own = step.actors.frozen, step.phase.base.params
    return [weights, own]

  def around(name: str) -> Any:
    def run(step: Any, *args: Any) -> Any:
      arrays = latest["arrays"]
      for value in args:
        if isinstance(value, dict) and "train" in value:
          arrays = value
      watch.note(arrays, frozen(step))
      result = real[name](step, *args)
      if name == "_learn":
        arrays = result[0]
      watch.note(arrays, frozen(step))
      return result

    return run

  def watched_park(settings: Any, arrays: Any) -> Any:
    latest["arrays"] = park(settings, arrays)
    return latest["arrays"]

  def watched_call(step: Any, number: int, arrays: Any, facts: dict) -> Any:
    latest["arrays"] = arrays
    steps[:] = [step]
    return call(step, number, arrays, facts)

  def watched_judge(source: Any, *args: Any) -> Any:
    result = judged(source, *args)
    watch.note(latest["arrays"], frozen(steps[0]))  # before copies are dropped
    return result

  park, judged = training.offload.park, training.rollouts.Source._judged
  with (
    mock.patch.multiple(training.Step, **{n: around(n) for n in parts}),
    mock.patch.object(training.Step, "__call__", watched_call),
    mock.patch.object(training.offload, "park", watched_park),
    mock.patch.object(training.rollouts.Source, "_judged", watched_judge),
  ):
    pipelines.run(config, folder)
  return watch


def measured(model: str, name: str) -> dict[str, Any]:
  """Returns the numbers of a row, measured in this process."""
  from rlhf_jax import pipelines

  with tempfile.TemporaryDirectory() as root:
    reward, config = small(model, ROWS[name], Path(root))
    if reward is None:
      return {"lacks": missing(config, ROWS[name])}
    pipelines.run(reward, Path(root) / "reward")
    watch = watched(config, Path(root) / "policy")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    config.model.source = model
    plan_of = planned(config, "cpu:1", compiles=True)
  return {
    "weights": watch.rest[0],
    "moments": watch.rest[1],
    "alive": watch.alive,
    "resident": peak,
    "temporaries": plan_of["temporaries"],
    "model": plan_of["model"],
  }


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--table", default="both", choices=("plan", "measured", "both")
  )
  parser.add_argument("--shape", default="llama3_8b")
  parser.add_argument("--topology", default="v5p:2x2x1")
  parser.add_argument("--tensor", type=int, default=4)
  parser.add_argument("--compile", action="store_true", help="needs libtpu")
  parser.add_argument("--model", default=SMOLLM2)
  parser.add_argument(
    "--only", default="", help="parts of names of rows, with / between"
  )
  parser.add_argument("--row", default="", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.row:
    print(json.dumps(measured(arguments.model, arguments.row)))
    return
  parts = arguments.only.split("/")
  rows = {k: v for k, v in ROWS.items() if any(part in k for part in parts)}
  if arguments.table in ("plan", "both"):
    plan_table(arguments, rows)
  if arguments.table in ("measured", "both"):
    measured_table(arguments, rows)


if __name__ == "__main__":
  os.environ.update(plan.ENVIRONMENT)
  main()
