"""How many files a reader opens to follow one thing through the package.

    python -m tests.proofs.trips

Tiny runs are watched: each call of a function of the package is noted with the
file that it is in. A trip is the files, in the order of their first visit,

  clip_ratio     whose functions are handed the value, or the section, method or
                 settings that hold it, on its way from main to the loss
  PPO gradient   whose functions run while the update is traced, on one device,
                 but for the network (models/) and what all of it stands on
                 (types, ops, likelihood); several devices add parallel/rules.py
  jsonl line     whose functions are handed a word of it, or its token, between
                 the file and the batch of a step; the tokenizer is left out,
                 and what only looks at records and says what it sees
  mesh.fsdp      whose functions are handed the value, or the section or mesh
                 that holds it, from main to the PartitionSpec of a weight

Left out: what only carries the whole experiment without opening it, and what is
called once a process to prepare (logging, checkpoints).
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import rlhf_jax
from rlhf_jax.terminal import format_table

PACKAGE = Path(rlhf_jax.__file__).parent
CLIP_RATIO = 0.17171
BASIS = (
  *(
    "types.py",
    "ops.py",
    "likelihood.py",
    "metrics.py",
    "interrupt.py",
    "distributed.py",
  ),
  "strict_json.py",
)
WATCHERS = (
  "data/markup.py",
  "data/near.py",
  "data/overlap.py",
  "data/statistics.py",
)
PREPARES = ("trackers.py",)  # is handed the whole experiment, to show it
BEFORE = {  # before the wiring was rebuilt, counted by hand
  "clip_ratio": 9,
  "PPO gradient": 10,
  "jsonl line": 12,
  "mesh.fsdp": 8,
}


def _fields(value: Any) -> Iterator[Any]:
  """Yields what a section, a method, a mapping or a mesh holds directly."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    for field in dataclasses.fields(value):
      yield getattr(value, field.name, None)
  elif isinstance(value, Mapping):
    yield from value.values()
  elif isinstance(value, (list, tuple)):
    yield from value[:64]
  elif isinstance(value, np.ndarray) and value.dtype == np.int32:
    yield from value.reshape(-1)[:256].tolist()
  elif hasattr(value, "shape") and isinstance(value.shape, Mapping):
    yield from value.shape.values()


def holds(value: Any, wanted: Any, depth: int) -> bool:
  """Says whether an argument is a value, or holds it within some levels."""
  if isinstance(value, bytes):
    value = value.decode()
  if isinstance(wanted, str) and isinstance(value, str) and wanted in value:
    return True
  if type(value) is type(wanted) and value == wanted:
    return True
  return depth > 0 and any(
    holds(part, wanted, depth - 1) for part in _fields(value)
  )


@contextmanager
def visited(
  takes: Callable[[Any], bool] = lambda frame: True,
) -> Iterator[list[str]]:
  """Fills a list with the files of the package whose functions are called.

  Args:
    takes: frame -> whether the call counts.
  """
  files: list[str] = []

  def note(frame: Any, event: str, argument: Any) -> None:
    del argument
    path = frame.f_code.co_filename
    if event != "call" or not path.startswith(str(PACKAGE)):
      return
    name = str(Path(path).relative_to(PACKAGE))
    if name not in files and takes(frame):
      files.append(name)

  sys.setprofile(note)
  try:
    yield files
  finally:
    sys.setprofile(None)


def arguments(frame: Any) -> list[Any]:
  """Returns the arguments of a call."""
  found = inspect.getargvalues(frame)
  names = [*found.args, *filter(None, (found.varargs, found.keywords))]
  return [found.locals[name] for name in names if name in found.locals]


def carrying(wanted: Any, depth: int) -> Callable[[Any], bool]:
  """Returns a filter of calls that are handed a value; see `holds`."""
  return lambda frame: any(
    holds(value, wanted, depth) for value in arguments(frame)
  )


def _policy_config(root: Path) -> tuple[Any, Path]:
  """Returns a tiny PPO run, its stages finished, and its folder."""
  from rlhf_jax import pipelines
  from tests.pipelines import tiny_runs

  files = tiny_runs.make_files(root)
  sft, reward = root / "sft", root / "reward"
  pipelines.run(tiny_runs.sft_config(files, "lora"), sft)
  samples = sft / "samples.npz"
  pipelines.run(tiny_runs.reward_config(files, "head", "", samples), reward)
  config = tiny_runs.policy_config(files, "lora", sft, reward)
  config.value.pretrain_steps = 0
  config.schedule.steps = 1
  return config, root / "policy"


def of_clip_ratio_and_gradient(root: Path) -> dict[str, list[str]]:
  """Returns the trips of clip_ratio and of a PPO gradient."""
  from rlhf_jax import main
  from rlhf_jax.algorithms.policy_gradient import update

  config, folder = _policy_config(root)
  config.algorithm.clip_ratio = CLIP_RATIO
  gradient: list[str] = []
  inner = update.update

  def watched(*args: Any, **options: Any) -> Any:
    before = sys.getprofile()
    with visited() as files:
      result = inner(*args, **options)
    gradient.extend(files)
    sys.setprofile(before)
    return result

  # Two runs: one profile at a time.
  with visited(carrying(CLIP_RATIO, 2)) as clip:
    assert main.run(config, folder) == 0
  update.update = watched
  try:
    assert main.run(config, folder.with_name("again")) == 0
  finally:
    update.update = inner
  return {
    "clip_ratio": [
      "main.py",
      *[name for name in clip if name not in ("main.py", *PREPARES)],
    ],
    "PPO gradient": [
      name
      for name in gradient
      if not name.startswith("models/") and name not in BASIS
    ],
  }


def of_a_line(root: Path) -> list[str]:
  """Returns the trip of a line of JSON into a batch of SFT."""
  import functools

  from rlhf_jax.data import batches
  from rlhf_jax.data.tokenizers import load_tokenizer
  from rlhf_jax.pipelines import sft
  from rlhf_jax.programs import build
  from tests.pipelines import tiny_runs

  files = tiny_runs.make_files(root)
  config = tiny_runs.sft_config(files, "full")
  settings = tiny_runs.settings_of(config)
  world = tiny_runs.world_of(config, root)
  base = world.base(settings.model)
  assert load_tokenizer(files.model).fingerprint == base.tokenizer.fingerprint
  collate = functools.partial(
    batches.collate_tokens, length=24, pad_id=base.tokenizer.pad_id
  )
  (word,) = base.tokenizer.encode(f" {tiny_runs.PLANTED}")

  def takes(frame: Any) -> bool:
    return any(
      holds(value, tiny_runs.PLANTED, 2) or holds(value, word, 3)
      for value in arguments(frame)
    )

  with visited(takes) as found:
    rows, _ = sft.load_rows(settings, base)
    next(build.make_loader(world.mesh, rows, 8, seed=0, collate=collate))
  return [
    name
    for name in found
    if "tokenizer" not in name and name not in (*BASIS, *WATCHERS)
  ]


def of_fsdp(root: Path) -> list[str]:
  """Returns the trip of mesh.fsdp into the PartitionSpec of a weight."""
  from rlhf_jax import pipelines
  from rlhf_jax.parallel import rules
  from tests.pipelines import tiny_runs

  config = tiny_runs.sft_config(tiny_runs.make_files(root), "full")
  config.mesh.update(devices=7, data=1, fsdp=7)
  with visited(carrying(7, 1)) as found:
    world = pipelines.read(config, root).open(root)
    specs = rules.sharding_tree(
      world.mesh, {"params": {"embedding": {"embedding": EMBEDDING}}}
    )
  assert "fsdp" in str(specs)
  return ["main.py", *found]


class EMBEDDING:
  """Stands for a weight that seven devices divide."""

  shape = (14, 7)
  ndim = 2


def all_trips(root: Path) -> dict[str, list[str]]:
  """Returns the files of every trip, in the order of their first visit.

  Args:
    root: an empty folder.
  """
  folders = {name: root / name for name in ("policy", "line", "mesh")}
  for folder in folders.values():
    folder.mkdir(parents=True)
  trips = of_clip_ratio_and_gradient(folders["policy"])
  trips["jsonl line"] = of_a_line(folders["line"])
  trips["mesh.fsdp"] = of_fsdp(folders["mesh"])
  return trips


def main() -> None:
  """Prints the table."""
  with tempfile.TemporaryDirectory() as folder:
    trips = all_trips(Path(folder))
  rows = [
    [name, str(BEFORE[name]), str(len(files)), " > ".join(files)]
    for name, files in trips.items()
  ]
  print(format_table(["trip", "before", "files", "which"], rows))


if __name__ == "__main__":
  import os

  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  main()
