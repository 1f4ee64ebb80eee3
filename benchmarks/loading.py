"""Reading a model folder: seconds and memory of the host, beside a peer's.

    python -m benchmarks.loading
    python -m benchmarks.loading --peer=peers_env/bin/python

A folder of random bfloat16 weights is written to a temporary place (Llama 3.2
1B by its shape: 2.5 GB in 5 files), and read by a process of its own each:

  ours             read, placed on one device, as float32
  ours, stacked    the same with model.scan_layers
  ours, 8 devices  the same on 8 simulated devices with mesh.fsdp=8
  peer, float32    transformers' from_pretrained, dtype=float32
  peer, as stored  the same, dtype="auto": bfloat16 stays

All files are read once before, so that they are in the page cache. Printed are
the least and the largest of --repeats runs, taken by turns:

  seconds     from the path to arrays that are ready, without imports
  host peak   largest resident set since the start (VmHWM of /proc, counted
              anew from there) - resident set at the start (after imports and a
              first array) - bytes of the weights that stay, which a CPU keeps
              in the same memory. Pages of the files that are mapped count.
  fingerprint seconds that a run takes to hash the weights, not in `seconds`

The aim is a host peak below two of the largest tensors, as they are stored.
A peer that keeps its weights in mapped pages has them in the same sum.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHARD_BYTES = 6e8
WAYS = {
  "ours": [],
  "ours, stacked": ["--stacked"],
  "ours, 8 devices": ["--devices=8"],
}
PEER_WAYS = {
  "peer, float32": ["--dtype=float32"],
  "peer, as stored": ["--dtype=auto"],
}


def tensors(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields (name, shape) of the tied Llama that a config.json means."""
  width, mlp = config["hidden_size"], config["intermediate_size"]
  queries = config["num_attention_heads"] * config["head_dim"]
  keys = config["num_key_value_heads"] * config["head_dim"]
  yield "model.embed_tokens.weight", (config["vocab_size"], width)
  for i in range(config["num_hidden_layers"]):
    layer = f"model.layers.{i}"
    yield f"{layer}.input_layernorm.weight", (width,)
    yield f"{layer}.post_attention_layernorm.weight", (width,)
    for name, size in (("q", queries), ("k", keys), ("v", keys)):
      yield f"{layer}.self_attn.{name}_proj.weight", (size, width)
    yield f"{layer}.self_attn.o_proj.weight", (width, queries)
    for name in ("gate", "up"):
      yield f"{layer}.mlp.{name}_proj.weight", (mlp, width)
    yield f"{layer}.mlp.down_proj.weight", (width, mlp)
  yield "model.norm.weight", (width,)


def write(folder: Path, shape: str, shard_bytes: float = SHARD_BYTES) -> None:
  """Writes a folder of random weights, sharded.

  Args:
    folder: that is there.
    shape: of models/shapes.py, a tied Llama.
    shard_bytes: at most, unless one tensor is larger.
  """
  import ml_dtypes
  import numpy as np
  from safetensors.numpy import save_file

  from rlhf_jax.models import shapes

  c = shapes.named(shape)
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": c.vocab_size,
    "hidden_size": c.width,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "num_key_value_heads": c.n_kv_heads,
    "head_dim": c.head_dim,
    "intermediate_size": c.mlp_width,
    "rms_norm_eps": c.norm_epsilon,
    "rope_theta": c.rope_theta,
    "max_position_embeddings": c.max_length,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
  }
  (folder / "config.json").write_text(json.dumps(config))
  random = np.random.default_rng(0).normal(0.0, 0.02, 2**22)
  random = random.astype(ml_dtypes.bfloat16)
  shards, size = [{}], 0
  for name, dims in tensors(config):
    count = 2 * int(np.prod(dims))
    if shards[-1] and size + count > shard_bytes:
      shards, size = [*shards, {}], 0
    shards[-1][name] = dims
    size += count
  weight_map, total = {}, 0
  for i, shard in enumerate(shards, start=1):
    file = f"model-{i:05}-of-{len(shards):05}.safetensors"
    part = {name: np.resize(random, dims) for name, dims in shard.items()}
    save_file(part, folder / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(part, file)
    total += sum(x.nbytes for x in part.values())
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def resident(field: str) -> int:
  """Returns VmRSS or VmHWM of this process in bytes."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field + ":"):
      return 1024 * int(line.split()[1])
  raise OSError(f"/proc/self/status has no {field}")


def start() -> int:
  """Returns the resident bytes now, and counts the peak anew."""
  Path("/proc/self/clear_refs").write_text("5")
  return resident("VmRSS")


def ours(folder: str, asked: argparse.Namespace) -> dict:
  """Returns the numbers of one reading by us, as a run reads."""
  import jax
  import jax.numpy as jnp

  from rlhf_jax import integrity
  from rlhf_jax.models import model_sources, pretrained
  from rlhf_jax.parallel import mesh as mesh_lib
  from rlhf_jax.parallel import rules

  sizes = mesh_lib.Config(fsdp=asked.devices, data=1)
  mesh = mesh_lib.make_mesh(sizes)
  jax.block_until_ready(jnp.zeros(8) + 1)
  before, begun = start(), time.perf_counter()
  config, params = model_sources.read_weights(Path(folder))
  if asked.stacked:
    params = pretrained.stack_layers(params, config.n_layers)
  tree = {"params": params}
  placed = mesh_lib.place(tree, rules.sharding_tree(mesh, tree))
  jax.block_until_ready(placed)
  seconds, peak = time.perf_counter() - begun, resident("VmHWM")
  begun = time.perf_counter()
  integrity.fingerprint_params(placed["params"])
  stays = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(placed)
    for shard in leaf.addressable_shards
  )
  return {
    "seconds": seconds,
    "peak": peak - before - stays,
    "stays": stays,
    "fingerprint": time.perf_counter() - begun,
  }


def theirs(folder: str, asked: argparse.Namespace) -> dict:
  """Returns the numbers of one reading by transformers."""
  import torch
  from transformers import AutoModelForCausalLM

  torch.zeros(8).add(1)
  before, begun = start(), time.perf_counter()
  dtype = "auto" if asked.dtype == "auto" else getattr(torch, asked.dtype)
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
  seconds = time.perf_counter() - begun
  for weight in model.parameters():
    weight.sum()  # read, where it is only mapped
  stays = sum(x.numel() * x.element_size() for x in model.parameters())
  touched = time.perf_counter() - begun
  return {
    "seconds": touched,
    "lazy": seconds,
    "peak": resident("VmHWM") - before - stays,
    "stays": stays,
  }


def measure(command: list[str], devices: int) -> dict:
  """Returns the numbers that a process prints last."""
  flag = f"--xla_force_host_platform_device_count={devices}"
  environment = os.environ | {"XLA_FLAGS": flag, "TQDM_DISABLE": "1"}
  done = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def spread(rows: list[dict], name: str, unit: float = 1.0) -> str:
  """Returns "least to largest" of a number of several runs."""
  values = sorted(row[name] / unit for row in rows if name in row)
  if not values:
    return ""
  if len(values) == 1:
    return f"{values[0]:.2f}"
  return f"{values[0]:.2f} to {values[-1]:.2f}"


def table(found: dict[str, list[dict]], largest: int) -> str:
  """Returns the lines that are printed; largest: bytes of a stored tensor."""
  lines = [
    f"largest tensor as stored: {largest / 2**20:.0f} MiB; aim: host peak "
    f"below {2 * largest / 2**20:.0f} MiB",
    "| way | seconds | host peak, MiB | stays, MiB | fingerprint, s |",
    "|---|---|---|---|---|",
  ]
  for way, rows in found.items():
    cells = [
      spread(rows, "seconds"),
      spread(rows, "peak", 2**20),
      spread(rows, "stays", 2**20),
      spread(rows, "fingerprint"),
    ]
    lines.append(f"| {way} | {' | '.join(cells)} |")
  mine = min(row["seconds"] for row in found["ours"])
  for way in PEER_WAYS:
    if way in found:
      other = min(row["seconds"] for row in found[way])
      lines.append(f"ours / {way}: {mine / other:.2f} of its seconds")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--peer", default="", help="a Python with transformers")
  parser.add_argument("--shape", default="llama32_1b", help="of shapes.py")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
  parser.add_argument("--stacked", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--dtype", default="auto", help=argparse.SUPPRESS)
  parser.add_argument("--ours", default="", help=argparse.SUPPRESS)
  parser.add_argument("--theirs", default="", help=argparse.SUPPRESS)
  asked = parser.parse_args()
  if asked.ours or asked.theirs:
    read = ours if asked.ours else theirs
    with contextlib.redirect_stdout(sys.stderr):
      numbers = read(asked.ours + asked.theirs, asked)
    print(json.dumps(numbers))
    return
  with tempfile.TemporaryDirectory() as folder:
    write(Path(folder), asked.shape)
    for file in Path(folder).iterdir():
      with file.open("rb") as opened:
        while opened.read(2**24):
          pass
    own = [sys.executable, "-m", "benchmarks.loading", f"--ours={folder}"]
    peer = [asked.peer, __file__, f"--theirs={folder}"]
    ways = {way: own + more for way, more in WAYS.items()}
    if asked.peer:
      ways |= {way: peer + more for way, more in PEER_WAYS.items()}
    found = {way: [] for way in ways}
    for _ in range(asked.repeats):
      for way, command in ways.items():
        devices = 8 if "--devices=8" in command else 1
        found[way].append(measure(command, devices))
    entries = json.loads((Path(folder) / "config.json").read_text())
  largest = max(
    2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
    for _, dims in tensors(entries)
  )
  print(table(found, largest))


if __name__ == "__main__":
  main()
