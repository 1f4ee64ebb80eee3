"""Matrices of few bits that come out of files, a matrix at a time."""

import weakref

import gguf as gguf_writer
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import (
  gguf,
  huggingface,
  pretrained,
  quantised,
  quantised_files,
  stored,
  trees,
)
from rlhf_jax.models.quantised import Quantised
from rlhf_jax.parallel import mesh as mesh_lib
from tests.models import test_gguf

FOLDER = test_gguf.ORACLES / "tiny_llama"
Type = gguf_writer.GGMLQuantizationType
rng = np.random.default_rng


def numbers(tree):
  """Returns {path: float32} of a tree, of few bits or wide."""
  return {
    path: np.asarray(
      quantised.merged(x) if isinstance(x, Quantised) else x, np.float32
    )
    for path, x in trees.flatten(tree).items()
  }


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("scans", [False, True])
def test_a_folder_on_a_mesh_is_what_its_arrays_round_to(kind, scans):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(2, 2, 2))
  config, tree = huggingface.load(FOLDER)
  _, placed, print_ = pretrained._placed(FOLDER, scans, "float32", kind, mesh)
  whole = jax.tree.map(np.asarray, tree)
  expected = quantised.quantise_tree(whole, kind)
  if scans:
    layers = [expected.pop(f"layer_{i}") for i in range(config.n_layers)]
    expected["layers"] = jax.tree.map(lambda *x: np.stack(x), *layers)
  assert jax.tree.structure(placed) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, placed, expected)
  up = placed["layers" if scans else "layer_0"]["mlp"]["up_proj"]["kernel"]
  assert up.values.addressable_shards[0].data.size == up.values.size // 4
  plain = pretrained._placed(FOLDER, scans, "float32", "none", mesh)
  assert print_ != plain[2]


def test_a_matrix_is_read_once_and_dropped_before_the_next(monkeypatch):
  names, sources, held = [], [], []
  read, of = stored.StoredWeight.__getitem__, quantised_files._Rounded._of

  def counted(self, index):
    names.append(self.place)
    return read(self, index)

  def watched(self, outputs):
    held.append(
      sum(bool(x._read) for x in map(weakref.ref.__call__, sources) if x)
    )
    sources.append(weakref.ref(self))
    return of(self, outputs)

  monkeypatch.setattr(stored.StoredWeight, "__getitem__", counted)
  monkeypatch.setattr(quantised_files._Rounded, "_of", watched)
  mesh = mesh_lib.make_mesh(mesh_lib.Config(), jax.devices()[:1])
  pretrained._placed.__wrapped__(FOLDER, False, "float32", "int8", mesh)
  assert len(names) == len(set(names))
  assert len(held) == 15 and set(held) == {0}


def blocks_of(kind, outputs, inputs, seed):
  """Returns bytes of a GGUF tensor, and what they mean in float32."""
  random = rng(seed)
  count = inputs // 32
  size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
  data = random.integers(0, 256, (outputs, count, size)).astype(np.uint8)
  scales = random.uniform(0.01, 0.1, (outputs, count, 1)).astype(np.float16)
  data[..., :2] = scales.view(np.uint8)
  if kind == "Q4_1":
    data[..., 2:4] = (scales * -7).astype(np.float16).view(np.uint8)
  data = data.reshape(outputs, -1)
  return data, gguf_writer.quants.dequantize(data, Type[kind])


@pytest.mark.parametrize(
  ("kind", "bits"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_1", "int4")]
)
def test_blocks_of_a_gguf_file_are_kept_as_they_are(kind, bits, tmp_path):
  """No rounding, and no float32 on the way; rows of q and k are turned."""
  tensors = test_gguf.gguf_tensors("tiny_llama")
  chosen = {
    name: blocks_of(kind, *tensors[name].shape, seed)
    for seed, name in enumerate(tensors)
    if tensors[name].ndim == 2
    and tensors[name].shape[1] % 32 == 0
    and (name != "token_embd.weight" or kind == "Q8_0")
  }
  assert {"blk.0.attn_q.weight", "blk.1.attn_v.weight"} <= set(chosen)
  wide = {name: found[1] for name, found in chosen.items()}
  few = {name: (found[0], Type[kind]) for name, found in chosen.items()}
  for name, written in (("wide", wide), ("few", few)):
    test_gguf.write(tmp_path / name, "tiny_llama", tensors | written)
  _, expected = gguf.load(tmp_path / "wide")
  _, tree = gguf.load(tmp_path / "few")
  pending = quantised_files.pending(tree, bits)
  found = jax.tree.map(lambda x: jnp.asarray(x[...]), pending)
  ready = 0
  for path, matrix in trees.flatten(found).items():
    is_ready = quantised_files.is_ready(trees.flatten(tree)[path], path, bits)
    if is_ready:
      ready += 1
      np.testing.assert_array_equal(
        numbers({path: matrix})[path],
        np.asarray(trees.flatten(expected)[path]),
        err_msg=path,
      )
  assert ready == len(chosen)


def test_blocks_are_not_widened(monkeypatch, tmp_path):
  tensors = test_gguf.gguf_tensors("tiny_llama")
  name = "blk.0.attn_q.weight"
  data, _ = blocks_of("Q8_0", *tensors[name].shape, 0)
  path = test_gguf.write(
    tmp_path / "few", "tiny_llama", tensors | {name: (data, Type.Q8_0)}
  )
  _, tree = gguf.load(path)
  monkeypatch.setattr(gguf.QuantisedWeight, "__getitem__", None)
  tree = {
    "layer_0": {"attention": {"q_proj": tree["layer_0"]["attention"]["q_proj"]}}
  }
  kernel = quantised_files.pending(tree, "int8")["layer_0"]["attention"][
    "q_proj"
  ]
  part = kernel["kernel"].values[:, 4:9]
  assert part.dtype == np.int8 and part.shape == (tensors[name].shape[1], 5)
