"""What sampling computes where more prompts wait than there are slots.

    python benchmarks/waiting_prompts.py
    python benchmarks/waiting_prompts.py --devices=8

256 prompts, 64 slots, answers of geometric length. Counts for each way of
doing it: steps of the decode loop, rows times steps (cells), cells that gave a
token that was wanted (fill), slots of the cache that were read, cells of the
prompts, calls and shapes that compile. Counts, not times: a step reads all
weights once however few rows it has, a cell costs the arithmetic of a row.
"""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--devices", type=int, default=1, help="simulated")
parser.add_argument("--prompts", type=int, default=256)
parser.add_argument("--slots", type=int, default=64)
parser.add_argument("--new", type=int, default=64, help="new tokens at most")
parser.add_argument("--mean", type=int, default=27, help="tokens of an answer")
asked = parser.parse_args()
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} "
  f"--xla_force_host_platform_device_count={asked.devices}"
)

import jax  # noqa: E402  (after the environment is set)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from rlhf_jax import decoding, generate  # noqa: E402
from rlhf_jax.models import cache, transformer  # noqa: E402
from rlhf_jax.parallel import mesh as mesh_lib  # noqa: E402
from rlhf_jax.types import PromptBatch, Samples  # noqa: E402

WIDTH = 24  # tokens of a prompt at most
MODEL = transformer.Config(
  vocab_size=1000,
  width=8,
  n_layers=1,
  n_heads=1,
  n_kv_heads=1,
  head_dim=8,
  mlp_width=8,
  max_length=WIDTH + asked.new,
)
WAYS = {
  "all at once, plain": dict(batch_size=None, compact=False),
  "all at once, compact": dict(batch_size=None),
  "by turns, plain": dict(compact=False, refill=False),
  "by turns, compact": dict(refill=False),
  "refilled": dict(refill=True),
}


def prompts(rng: np.random.Generator) -> PromptBatch:
  """Returns prompts of 1 to WIDTH tokens."""
  lengths = rng.integers(1, WIDTH + 1, asked.prompts)
  mask = np.arange(WIDTH)[None, :] >= WIDTH - lengths[:, None]
  return PromptBatch(
    tokens=np.ones(mask.shape, np.int32),
    valid_mask=mask.astype(np.float32),
    index=np.arange(asked.prompts, dtype=np.int32),
  )


@contextlib.contextmanager
def counted() -> Iterator[dict[str, Any]]:
  """Counts the passes that run inside."""
  found = dict(steps=0, cells=0, read=0, prompt=0, calls=0, shapes=set())
  prefill, decode = decoding.prefill, decoding.decode

  def note(name: str, rows: int, size: int) -> None:
    found["calls"] += 1
    found["shapes"].add((name, rows, size))

  def prefilled(params: Any, batch: Any, keys: Any, *rest: Any, **how: Any):
    rows, width = batch.tokens.shape
    note("prefill", rows, how["room"])
    found["prompt"] += rows * width
    return prefill(params, batch, keys, *rest, **how)

  def decoded(params: Any, state: Any, *rest: Any, **how: Any):
    rows, size = state.row.shape[0], cache.cache_slots(state.cache)
    note("decode", rows, size)
    before = int(state.slot)
    state = decode(params, state, *rest, **how)
    steps = int(state.slot) - before
    found["steps"] += steps
    found["cells"] += rows * steps
    found["read"] += rows * steps * size
    return state

  decoding.prefill, decoding.decode = prefilled, decoded
  try:
    yield found
  finally:
    decoding.prefill, decoding.decode = prefill, decode


def sampled(way: dict[str, Any], mesh: Any) -> Samples:
  """Returns samples of a model that finds all tokens equally likely."""
  params = transformer.init(MODEL, jax.random.key(0))["params"]
  config = generate.Config(max_new_tokens=asked.new, batch_size=asked.slots)
  with mesh_lib.current(mesh):
    return generate.generate(
      jax.device_put(
        jax.tree.map(jnp.zeros_like, params), mesh_lib.replicated(mesh)
      ),
      mesh_lib.shard_batch(mesh, prompts(np.random.default_rng(0))),
      jax.random.key(0),
      model=MODEL,
      config=dataclasses.replace(config, **way),
      eos_ids=tuple(range(MODEL.vocab_size // asked.mean)),
      pad_id=0,
    )


def main() -> None:
  """Prints the table."""
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=asked.devices, fsdp=1))
  print("| way | steps | cells | fill | slots read | prompt | calls | shapes |")
  print("|---|---|---|---|---|---|---|---|")
  first = None
  for name, way in WAYS.items():
    with counted() as found:
      samples = sampled(way, mesh)
    first = samples if first is None else first
    if not np.array_equal(first.tokens, samples.tokens):
      raise AssertionError(f"{name}: other tokens than {next(iter(WAYS))}")
    tokens = float(np.sum(samples.response_mask)) - asked.prompts
    print(
      f"| {name} | {found['steps']:,} | {found['cells']:,} | "
      f"{tokens / found['cells']:.2f} | {found['read']:,} | "
      f"{found['prompt']:,} | {found['calls']} | {len(found['shapes'])} |"
    )


if __name__ == "__main__":
  jax.config.update("jax_threefry_partitionable", True)
  main()
