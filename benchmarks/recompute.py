"""What a whole training step of SmolLM2-135M takes of a CPU's memory, and time.

    python benchmarks/recompute.py            # bytes, and seconds side by side
    python benchmarks/recompute.py --no-time  # bytes alone

SFT of all weights in float32, one step of AdamW: as XLA orders it by default,
as training steps are compiled (rlhf_jax/compiling.py), and so with
model.remat=True. Bytes are the compiler's, of what a step takes while it runs
beside weights and moments; seconds are medians of steps that take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402  (after the path is set)
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from rlhf_jax import compiling  # noqa: E402
from rlhf_jax.algorithms import sft  # noqa: E402
from rlhf_jax.models import roles, transformer  # noqa: E402
from rlhf_jax.models.architecture import Config  # noqa: E402
from rlhf_jax.programs import language_model, supervised  # noqa: E402
from rlhf_jax.types import TokenBatch  # noqa: E402

GIB = 2**30
SMOLLM2 = Config(
  vocab_size=49152,
  width=576,
  n_layers=30,
  n_heads=9,
  n_kv_heads=3,
  head_dim=64,
  mlp_width=1536,
)


def step(
  model: Config, batch: TokenBatch, *, is_ordered: bool
) -> tuple[Any, Any, Any]:
  """Returns (compiled step, its first state, its frozen arrays).

  Args:
    model: the architecture.
    batch: of the shape that is compiled for.
    is_ordered: whether it compiles as training steps do.
  """
  role = roles.Role(model, "full")
  transform = optax.adamw(1e-5)
  init = functools.partial(transformer.init, model)
  params, frozen = roles.split(role, jax.jit(init)(jax.random.key(0)))
  state = supervised.initial_state(params, transform)
  with mock.patch.object(
    compiling,
    "for_training",
    compiling.for_training if is_ordered else lambda mesh: None,
  ):
    made = language_model.make_update(role, sft.Config(), transform, None)
  key = jax.random.key(0)
  return made.lower(state, frozen, batch, key).compile(), state, frozen


def measure(rows: int, length: int, steps: int) -> None:
  """Prints a line for each way.

  Args:
    rows, length: of a batch.
    steps: that are timed of each; 0 for none.
  """
  mask = jnp.ones((rows, length))
  tokens = jax.random.randint(jax.random.key(1), mask.shape, 0, 49152)
  batch = TokenBatch(tokens, mask, mask)
  ways = {
    "XLA's order": (SMOLLM2, False),
    "least memory": (SMOLLM2, True),
    "recomputed": (dataclasses.replace(SMOLLM2, remat=True), True),
  }
  runs, sizes, state, frozen = {}, {}, None, None
  for name, (model, is_ordered) in ways.items():
    runs[name], state, frozen = step(model, batch, is_ordered=is_ordered)
    sizes[name] = runs[name].memory_analysis().temp_size_in_bytes
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  for _ in range(steps and steps + 1):
    for name, run in runs.items():
      begun = time.perf_counter()
      state, _ = run(state, frozen, batch, jax.random.key(0))
      jax.block_until_ready(state)
      seconds[name].append(time.perf_counter() - begun)
  for name in ways:
    line = f"| {rows} x {length} | {name} | {sizes[name] / GIB:.2f} |"
    if steps:
      first = [
        t / seconds["XLA's order"][i] for i, t in enumerate(seconds[name])
      ]
      first = sorted(first[1:])
      line += (
        f" {statistics.median(first):.2f} ({first[0]:.2f} to {first[-1]:.2f}) |"
      )
    print(line, flush=True)


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--no-time", action="store_true")
  parser.add_argument("--steps", type=int, default=5)
  arguments = parser.parse_args()
  steps = 0 if arguments.no_time else arguments.steps
  time_column = " time, of the first |" if steps else ""
  print(f"| rows x tokens | way | GiB |{time_column}")
  print("|---|---|---|" + ("---|" if steps else ""))
  for rows, length in ((15, 184), (8, 64)):
    measure(rows, length, steps)


if __name__ == "__main__":
  main()
