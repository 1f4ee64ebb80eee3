"""Two processes sample on one mesh: the tokens of one process on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import distributed, generate, slots
from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from tests.ports import free_port
from tests.test_generate import MODEL, prompt_batch

ROOT = Path(__file__).parent.parent
WAYS = (
  dict(max_new_tokens=7),
  dict(max_new_tokens=7, batch_size=16),
)
ENDS = (2, 5, 7, 11, 13, 17)


def sampled(mesh, **how):
  """Returns the tokens of 32 samples, as lists."""
  params = transformer.init(MODEL, jax.random.key(0))["params"]
  params = jax.tree.map(np.asarray, params)
  params = mesh_lib.place(params, rules.sharding_tree(mesh, params))
  part, parts = mesh_lib.host_part(mesh)
  mine = slice(part * 32 // parts, (part + 1) * 32 // parts)
  prompts = jax.tree.map(lambda x: np.asarray(x)[mine], prompt_batch(32))
  with mesh_lib.current(mesh):
    found = generate.generate(
      params,
      mesh_lib.shard_batch(mesh, prompts),
      jax.random.key(3),
      model=MODEL,
      config=generate.Config(**how),
      eos_ids=ENDS,
      pad_id=0,
    )
  return distributed.fetch(found.tokens).tolist()


def child():
  """Prints the tokens of each of WAYS, and how often rows left and came."""
  jax.config.update("jax_threefry_partitionable", True)
  distributed.initialise(sys.argv[1])
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=2, fsdp=2))
  seen = []
  for name in ("shrink", "refill"):
    real = getattr(slots, name)
    setattr(
      slots,
      name,
      lambda *a, name=name, real=real, **k: seen.append(name) or real(*a, **k),
    )
  for how in WAYS:
    seen.clear()
    tokens = sampled(mesh, **how)
    print("found", json.dumps([tokens, sorted(set(seen))]), flush=True)
  distributed.farewell()


@pytest.mark.slow
def test_every_process_takes_the_same_decisions():
  port = free_port()
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-c"),
        "from tests import test_slots_two_processes as t; t.child()",
        f"127.0.0.1:{port},2,{index}",
      ],
      cwd=ROOT,
      env=os.environ
      | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in (0, 1)
  ]
  one = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=1, devices=1))
  expected = sampled(one, max_new_tokens=7, compact=False)
  try:
    for process in processes:
      out, error = process.communicate(timeout=240)
      assert process.returncode == 0, error[-3000:]
      found = [
        json.loads(line[line.index("found ") + 6 :])
        for line in out.splitlines()
        if "found " in line
      ]
      left = [names for _, names in found]
      assert left[0] == ["shrink"] and "refill" in left[1]
      assert all(tokens == expected for tokens, _ in found)
  finally:
    for process in processes:
      process.kill()
