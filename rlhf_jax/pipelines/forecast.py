"""What a whole run will do, and how long it may take: said at its start.

FLOPs are those of the programs that `plan` would compile (programs/work.py),
from the shapes that the settings give; seconds come from the rate at which this
machine multiplies, measured by one matrix product. `EFFICIENCY` is what the
stages reach of it (attention, sampling, padding, compilation are the rest). It
is a forecast for the reader, and nothing depends on it.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.programs.world import Planned, World
from rlhf_jax.terminal import format_seconds

EFFICIENCY = 0.5


def matmul_rate() -> float:
  """Returns FLOP/s of a float32 matrix product on the default device."""
  size = 1024
  x = jax.device_put(np.ones((size, size), np.float32))
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  begun, count = time.perf_counter(), 0
  while time.perf_counter() - begun < 0.2:
    product(x).block_until_ready()
    count += 1
  return count * 2.0 * size**3 / (time.perf_counter() - begun)


def seconds(flops: float, rate: float) -> float:
  """Returns the forecast for so many FLOPs at a measured rate."""
  return flops / (rate * EFFICIENCY)


def flops(
  jobs: dict[str, Job], folders: dict[str, Path], world: World
) -> dict[str, float | None]:
  """Returns stage -> FLOPs, None where only the data tell its length.

  Args:
    jobs: the stages of a run by name.
    folders: of each, where later stages look for it.
    world: of its first stage.
  """
  first = next(iter(jobs.values())).settings
  planned = Planned.on(first.mesh, mesh_lib.all_devices())
  planned.tokenizer = world.base(first.model).tokenizer
  found: dict[str, float | None] = {}
  for name, job in jobs.items():
    there = planned.beside(job.settings.mesh, folders[name])
    parts = [phase.flops for phase in job.phases(there)]
    found[name] = None if None in parts else sum(parts)
  return found


def announce(
  title: str,
  jobs: dict[str, Job],
  folders: dict[str, Path],
  is_done: dict[str, bool],
  world: World,
  notes: dict[str, str],
) -> None:
  """Prints what will run and a forecast of how long it takes.

  The time of a stage whose length only its data tell is left out.

  Args:
    title: of the run.
    jobs: its stages by name.
    folders: of each.
    is_done: stage -> whether it is finished.
    world: of the first stage.
    notes: stage -> what is said of it besides.
  """
  base = world.base(next(iter(jobs.values())).settings.model)
  rate = matmul_rate()
  work = flops(jobs, folders, world)
  print(
    f"{title}\n{base.source}: {base.config.n_layers} layers, width "
    f"{base.config.width}; this machine multiplies at {rate / 1e9:.0f} "
    "GFLOP/s"
  )
  left, unknown = 0.0, False
  for name, job in jobs.items():
    state = "finished"
    if not is_done[name] and work[name] is None:
      state, unknown = "as long as the data say", True
    elif not is_done[name]:
      guess = seconds(work[name], rate)
      state, left = f"about {format_seconds(guess)}", left + guess
    text = job.pipeline.describe(job.settings) + notes.get(name, "")
    print(f"  {name:<11} {text:<52} {state}")
  more = " and that" if unknown else ""
  print(f"  {'together':<64} about {format_seconds(left)}{more}", flush=True)
