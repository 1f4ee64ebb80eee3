"""What leaves a mesh of two processes; what each reads of text and of names.

The folders are those of one process on one device, and no process ever has
more than one tensor of the model on its host.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax import distributed, pipelines
from rlhf_jax.data import retold
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import pinned
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards import reader as reader_lib
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Samples
from tests.letters import Letters
from tests.pipelines import test_export_run, tiny_runs
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
root = test_export_run.root
CASES = {  # name -> stage of the run, and how it leaves
  "model": ("policy", {}),
  "adapter": ("policy", {"form": "adapter", "base": "model"}),
  "gguf": ("policy", {"form": "gguf"}),
  "reward": ("reward", {}),
}
WHOLE = ("model", "gguf", "reward")  # without what trained alone
SAID = ["the cat sat", "a mat", "on", "the cat sat on the mat"]


def config_of(root, name, mesh):
  stage, changes = CASES[name]
  config = test_export_run.config_of(root / "run" / stage, **changes)
  if config.base:
    config.base = str(root / config.base)
  config.mesh.update(mesh)
  return config


def scores(root, mesh):
  """Returns what a judge says of letters that another model wrote."""
  world = tiny_runs.world_of(config_of(root, "reward", mesh))
  base = world.base(Model(source=str(root / "model")))
  scorer, weights, _ = reward_model.load(root / "run" / "reward", base, world)
  reader = reader_lib.Reader("reward", scorer, weights, base.tokenizer)
  tokens = np.full((len(SAID), 32), Letters.pad_id, np.int32)
  response = np.zeros(tokens.shape, np.float32)
  for i, text in enumerate(SAID):
    ids = [ord("q"), *Letters().encode(text), Letters.eos_id]
    tokens[i, : len(ids)] = ids
    response[i, 1 : len(ids)] = 1.0
  valid = response.copy()
  valid[:, 0] = 1.0
  reasons = np.int32([FINISH_EOS, FINISH_LENGTH] * 2)
  samples = Samples(tokens, valid, response, -response, reasons)
  asked = {"reward": [retold.asked("q", reader.tokenizer)] * 2}
  read = reader_lib.Readers((reader,), asked, Letters(), (2,), world.mesh)
  samples = mesh_lib.spread_batch(world.mesh, samples)
  found = read(samples, mesh_lib.spread_batch(world.mesh, np.arange(2)))
  return {name: np.asarray(x).tolist() for name, x in found.items()}


def child():
  """Exports all, then prints what it fetched, scored and asked."""
  address, root, out, index = sys.argv[1:5]
  jax.config.update("jax_threefry_partitionable", True)
  distributed.initialise(f"{address},2,{index}")
  mesh = {"devices": 0, "data": 1, "fsdp": 2, "tensor": 2}
  real, sizes, most = distributed.fetch, [], {}

  def fetch(tree):
    found = real(tree)
    sizes.append(sum(x.nbytes for x in jax.tree.leaves(found)))
    return found

  distributed.fetch = fetch
  for name in CASES:
    sizes.clear()
    pipelines.run(config_of(Path(root), name, mesh), Path(out) / name)
    most[name] = max(sizes)
  asked = []

  def ask(*question):
    asked.append(question)
    return "owner/name@abc"

  found = {
    "most": most,
    "scores": scores(Path(root), mesh),
    "commit": pinned._agreed("owner/name", "model.source", ask),
    "asked": len(asked),
  }
  path = Path(out) / f"found_{index}.json"
  path.write_text(json.dumps(found))
  distributed.farewell()


def tensors_of(path):
  """Returns name -> array of a file of weights."""
  if path.suffix == ".gguf":
    return {x.name: np.array(x.data) for x in gguf.GGUFReader(path).tensors}
  return load_file(path)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(root, tmp_path):
  address = f"127.0.0.1:{free_port()}"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-c"),
        "from tests.pipelines import test_export_two_processes as t; t.child()",
        *(address, str(root), str(tmp_path), str(index)),
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
  one = {"devices": 1}
  for name in CASES:
    config = config_of(root, name, one)
    pipelines.run(config, tmp_path / "one" / name)
  expected = scores(root, one)
  try:
    for process in processes:
      _, error = process.communicate(timeout=240)
      assert process.returncode == 0, error[-3000:]
  finally:
    for process in processes:
      process.kill()
  largest, whole = 0, 0
  for name in CASES:
    parts = [path / name for path in (tmp_path, tmp_path / "one")]
    (inside,) = {x.name for x in parts[0].iterdir() if x.is_dir()}
    files = [sorted(x.name for x in (p / inside).iterdir()) for p in parts]
    assert files[0] == files[1]
    for file in files[0]:
      found, other = (part / inside / file for part in parts)
      if file.endswith((".safetensors", ".gguf")):
        found, other = tensors_of(found), tensors_of(other)
        assert found.keys() == other.keys()
        for key, x in other.items():
          np.testing.assert_allclose(found[key], x, rtol=1e-5, atol=1e-6)
        if name == "model":
          largest = max(x.nbytes for x in other.values())
          whole = sum(x.nbytes for x in other.values())
      else:
        assert found.read_bytes() == other.read_bytes(), file
  for index in (0, 1):
    told = json.loads((tmp_path / f"found_{index}.json").read_text())
    assert max(told["most"][name] for name in WHOLE) == largest < whole
    assert told["commit"] == "owner/name@abc"
    assert told["asked"] == (1 if index == 0 else 0)  # the first asks the hub
    assert told["scores"].keys() == expected.keys()
    for name, x in expected.items():
      np.testing.assert_allclose(told["scores"][name], x, atol=1e-5)
