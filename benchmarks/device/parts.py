"""The parts that run on the device; see __main__.py for what they measure.

    python -m benchmarks.device.parts NAME FOLDER [--tiny]

Each result is a line of FOLDER/NAME.jsonl as soon as it is there. A case that
raises is a line too, and the next one runs.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device import steps
from rlhf_jax.models import attention

Note = Callable[..., None]

FLAGS = {
  "gpu": {
    "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "no Triton GEMM": {"xla_gpu_enable_triton_gemm": False},
    "cuDNN fusions": {"xla_gpu_cudnn_gemm_fusion_level": 1},
    "no autotuning": {"xla_gpu_autotune_level": 0},
    "command buffers from 1 op": {"xla_gpu_graph_min_graph_size": 1},
  },
  "tpu": {
    "64 MiB of VMEM a kernel": {"xla_tpu_scoped_vmem_limit_kib": "65536"},
    "no latency hiding": {"xla_tpu_enable_latency_hiding_scheduler": "false"},
  },
  "cpu": {"fast math": {"xla_cpu_enable_fast_math": True}},
}


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
  """Returns the median seconds of a call that has run before."""
  jax.block_until_ready(call())
  found = []
  for _ in range(repeats):
    begun = time.perf_counter()
    jax.block_until_ready(call())
    found.append(time.perf_counter() - begun)
  return statistics.median(found)


def environment() -> dict[str, Any]:
  """Returns the device's name and the versions of what drives it."""
  device = jax.devices()[0]
  facts = {
    "device": device.device_kind,
    "platform": device.platform,
    "devices": jax.device_count(),
    "python": platform.python_version(),
  }
  for package in ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-plugin"):
    try:
      facts[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  if device.platform == "gpu":
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
    command += ["--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True)
    facts["driver"] = found.stdout.strip() or found.stderr.strip()
  return facts


def limits(note: Note, folder: Path, shape: steps.Sizes) -> None:
  """Measures matrix products and memory, and writes limits.json."""

  @functools.partial(jax.jit, static_argnames="count")
  def products(x, count):
    return jax.lax.fori_loop(0, count, lambda _, y: x @ y, x)

  rates = []
  for size in shape.products:
    x = jnp.full((size, size), 1.0 / size, shape.dtype)
    taken = seconds_of(lambda x=x: products(x, 8))
    rates.append(8 * 2.0 * size**3 / taken)
    note(what=f"{shape.dtype} product {size}, TFLOP/s", value=rates[-1] / 1e12)
  words = jnp.ones((shape.copied // 4,), jnp.float32)
  copy = jax.jit(lambda x: x * 1.5)
  read = jax.jit(jnp.sum)
  bandwidth = [
    2 * words.nbytes / seconds_of(lambda: copy(words)),
    words.nbytes / seconds_of(lambda: read(words)),
  ]
  note(what="read and write, GB/s", value=bandwidth[0] / 1e9)
  note(what="read, GB/s", value=bandwidth[1] / 1e9)
  found = {"flops": max(rates), "bandwidth": max(bandwidth)}
  (folder / "limits.json").write_text(json.dumps(found))


def checks(note: Note, folder: Path, shape: steps.Sizes) -> None:
  """Tries what has only been reasoned about on this platform."""
  del folder
  _attention(note, shape)
  state, update, batch = steps.training(shape.models["small"], 2, shape.length)
  leaves = jax.tree.leaves((state.params, state.opt_state))
  compiled = update.lower(state, {}, batch, jax.random.key(0)).compile()
  aliased = compiled.memory_analysis().alias_size_in_bytes
  size = sum(leaf.nbytes for leaf in leaves)
  before = np.array(state.params["params"]["final_norm"]["scale"])
  new, _ = compiled(state, {}, batch, jax.random.key(0))
  gone = sum(leaf.is_deleted() for leaf in leaves)
  note(
    what="donated buffers aliased",
    value=aliased / size,
    passed=bool(aliased >= size and gone == len(leaves)),
  )
  after = np.array(new.params["params"]["final_norm"]["scale"])
  note(
    what="a good step is taken",
    value=int(new.step),
    passed=bool(int(new.step) == 1 and (before != after).any()),
  )
  bad = jax.tree.map(lambda x: x, new)
  bad.params["params"]["final_norm"]["scale"] = jnp.full_like(after, jnp.nan)
  kept = np.array(bad.params["params"]["embedding"]["embedding"])
  refused, _ = compiled(bad, {}, batch, jax.random.key(0))
  same = np.array(refused.params["params"]["embedding"]["embedding"])
  note(
    what="a step that is not finite is refused",
    value=int(refused.skipped),
    passed=bool(int(refused.skipped) == 1 and (kept == same).all()),
  )


def _attention(note: Note, shape: steps.Sizes) -> None:
  """Compares the platform's attention with float32, as the plain one does."""
  kind = attention.resolve("auto", jax.default_backend(), "bfloat16")
  keys = jax.random.split(jax.random.key(0), 4)
  rows, heads, length, width = 2, 8, shape.length, 64
  sizes = [(rows, n, length, width) for n in (heads, 2, 2, heads)]
  exact = [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]
  valid = np.ones((rows, length), np.float32)
  valid[1, length // 2 :] = 0.0
  seen = jnp.asarray(valid)[:, None, :, None]

  def both(kind: str, dtype: str) -> list[np.ndarray]:
    mask = attention.make_mask(kind, jnp.asarray(valid))

    def total(q, k, v):
      y = attention.attend(kind, q, k, v, mask) * seen.astype(q.dtype)
      return jnp.sum((y * exact[3].astype(q.dtype)).astype(jnp.float32)), y

    inputs = [x.astype(dtype) for x in exact[:3]]
    value = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    grads, y = value(*inputs)
    return [np.asarray(x, np.float32) for x in (y, *grads)]

  truth = both("einsum", "float32")
  plain, found = both("einsum", "bfloat16"), both(kind, "bfloat16")
  names = ("values", "gradient of q", "gradient of k", "gradient of v")
  for name, t, p, f in zip(names, truth, plain, found, strict=True):
    scale = float(np.abs(t).max())
    off, allowed = np.abs(f - t).max() / scale, np.abs(p - t).max() / scale
    note(
      what=f"{kind}, {name}: error over largest (einsum {allowed:.1e})",
      value=float(off),
      passed=bool(off <= 3 * allowed + 1e-2),
    )


def decode(note: Note, folder: Path, shape: steps.Sizes) -> None:
  """Measures sampling without an end, so that every row has all tokens."""
  bandwidth = json.loads((folder / "limits.json").read_text())["bandwidth"]
  for name, model in shape.models.items():
    params = steps.weights(model)
    for rows in shape.rows:
      with noted(note, model=name, rows=rows):
        taken = steps.decode_seconds(params, model, rows, shape)
        ideal = steps.token_bytes(model, rows, shape) / bandwidth
        note(
          model=name,
          rows=rows,
          tokens_per_second=rows / taken,
          ms_a_token=taken * 1e3,
          share_of_bandwidth=ideal / taken,
        )


def train(note: Note, folder: Path, shape: steps.Sizes) -> None:
  """Measures SFT steps with each program for attention."""
  flops = json.loads((folder / "limits.json").read_text())["flops"]
  best = attention.resolve("auto", jax.default_backend(), shape.dtype)
  for name, model in shape.models.items():
    for kind in dict.fromkeys((best, "einsum")):
      for is_scanned in (True, False) if kind == best else (True,):
        used = dataclasses.replace(
          model, attention=kind, scan_layers=is_scanned
        )
        facts = dict(model=name, attention=kind, scanned=is_scanned)
        with noted(note, **facts):
          _step(note, used, shape, flops, facts, {})


def flags(note: Note, folder: Path, shape: steps.Sizes) -> None:
  """Measures the largest model's step under compiler options."""
  flops = json.loads((folder / "limits.json").read_text())["flops"]
  platform_ = jax.default_backend()
  name, model = list(shape.models.items())[-1]
  kind = attention.resolve("auto", platform_, shape.dtype)
  model = dataclasses.replace(model, attention=kind, scan_layers=True)
  for what, options in ({"none": {}} | FLAGS[platform_]).items():
    facts = dict(model=name, options=what)
    with noted(note, **facts):
      _step(note, model, shape, flops, facts, options)


def _step(
  note: Note,
  model: Any,
  shape: steps.Sizes,
  flops: float,
  facts: dict,
  options: dict,
) -> None:
  """Notes the rate of an SFT step."""
  rows = shape.training_rows
  begun = time.perf_counter()
  state, update, batch = steps.training(model, rows, shape.length)
  key = jax.random.key(0)
  run = update.lower(state, {}, batch, key).compile(compiler_options=options)
  state, _ = jax.block_until_ready(run(state, {}, batch, key))
  first = time.perf_counter() - begun
  found = []
  for _ in range(shape.repeats):
    begun = time.perf_counter()
    state, _ = jax.block_until_ready(run(state, {}, batch, key))
    found.append(time.perf_counter() - begun)
  taken, tokens = statistics.median(found), rows * shape.length
  note(
    **facts,
    rows=rows,
    tokens_per_second=tokens / taken,
    ms=taken * 1e3,
    mfu=steps.step_flops(model, rows, shape.length) / flops / taken,
    seconds_to_first=first,
  )


class noted:
  """Turns what a case raises into a line; the next case runs."""

  def __init__(self, note: Note, **facts: Any) -> None:
    self.note, self.facts = note, facts

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> bool:
    if error is None or not isinstance(error, Exception):
      return False
    text = " ".join(str(error).split())[:200]
    self.note(**self.facts, failed=f"{kind.__name__}: {text}")
    return True


PARTS = (limits, checks, decode, train, flags)


def main() -> None:
  """Runs one part."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("name", choices=[part.__name__ for part in PARTS])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--tiny", action="store_true")
  asked = parser.parse_args()
  path = asked.folder / f"{asked.name}.jsonl"

  def note(**row: Any) -> None:
    with path.open("a") as lines:
      lines.write(json.dumps(row) + "\n")

  facts = json.dumps(environment())
  (asked.folder / "environment.json").write_text(facts)
  shape = steps.sizes(jax.default_backend(), is_tiny=asked.tiny)
  part = {part.__name__: part for part in PARTS}[asked.name]
  part(note, asked.folder, shape)


if __name__ == "__main__":
  main()
