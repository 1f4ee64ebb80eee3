"""Weights read piece by piece: the same numbers, and never a whole model."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf_jax import integrity
from rlhf_jax.models import family_names, stored
from rlhf_jax.models.stored import StackedWeight, StoredWeight
from rlhf_jax.models.tensor_files import TensorFile
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules

WHOLE = np.arange(24 * 16, dtype=np.float32).reshape(24, 16) / 7


@pytest.fixture(params=[np.float32, np.float16, ml_dtypes.bfloat16])
def file(request, tmp_path):
  path = tmp_path / "model.safetensors"
  tensors = {f"layer.{i}": (WHOLE + i).astype(request.param) for i in range(3)}
  save_file(tensors, path)
  return tensors, TensorFile(path).tensors


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_piece_is_the_slice_of_the_whole(file, is_transposed):
  tensors, opened = file
  expected = tensors["layer.0"].astype(np.float32)
  expected = expected.T if is_transposed else expected
  weight = StoredWeight(opened["layer.0"], is_transposed=is_transposed)
  assert weight.shape == expected.shape
  for index in (
    (slice(2, 9), slice(3, 5)),
    (slice(None), slice(0, 1)),
    (slice(None), slice(None)),
  ):
    piece = weight[index]
    assert piece.dtype == np.float32
    np.testing.assert_array_equal(piece, expected[index])
  np.testing.assert_array_equal(np.asarray(weight), expected)


def test_a_stack_is_the_stack_of_the_wholes(file):
  tensors, opened = file
  stack = StackedWeight(
    [StoredWeight(opened[name], is_transposed=True) for name in sorted(tensors)]
  )
  expected = np.stack(
    [tensors[name].astype(np.float32).T for name in sorted(tensors)]
  )
  assert stack.shape == expected.shape
  index = (slice(1, 3), slice(0, 4), slice(5, 24))
  np.testing.assert_array_equal(stack[index], expected[index])
  np.testing.assert_array_equal(np.asarray(stack), expected)


class Spy(StoredWeight):
  """Notes the size of every piece that is read."""

  sizes: list[int] = []

  def __getitem__(self, index):
    piece = super().__getitem__(index)
    Spy.sizes.append(piece.size)
    return piece


@pytest.mark.parametrize(
  "sizes, pieces", [((1, 8, 1), 8), ((2, 2, 2), 4), ((8, 1, 1), 1)]
)
def test_each_device_gets_its_piece_and_each_piece_is_read_once(
  file, sizes, pieces
):
  tensors, opened = file
  data, fsdp, tensor = sizes
  mesh = mesh_lib.make_mesh(
    mesh_lib.Config(data=data, fsdp=fsdp, tensor=tensor)
  )
  Spy.sizes = []
  weight = Spy(opened["layer.1"], is_transposed=False)
  tree = {"params": {"layer_0": {"mlp": {"up_proj": {"kernel": weight}}}}}
  placed = mesh_lib.place(tree, rules.sharding_tree(mesh, tree))
  expected = jax.tree.map(np.asarray, tree)
  assert Spy.sizes[:-1] == [WHOLE.size // pieces] * pieces
  found = jax.tree.leaves(placed)[0]
  np.testing.assert_array_equal(found, jax.tree.leaves(expected)[0])
  assert integrity.fingerprint_params(placed) == (
    integrity.fingerprint_params(expected)
  )


def test_pieces_that_are_read_by_rows_are_the_same(tmp_path, monkeypatch):
  """Several threads, rows that do not divide, a part of the outputs."""
  monkeypatch.setattr(stored, "_CHUNK_BYTES", 4 * 30 * 20)
  whole = np.random.default_rng(0).normal(size=(150, 30)).astype(np.float32)
  save_file({"a": whole}, tmp_path / "a.safetensors")
  tensor = TensorFile(tmp_path / "a.safetensors").tensors["a"]
  turned = StoredWeight(tensor, is_transposed=True)
  np.testing.assert_array_equal(turned[3:29, 7:149], whole[7:149, 3:29].T)
  assert turned[...].ctypes.data % 64 == 0  # JAX takes it as it is
  part = family_names.Part(start=5, block=10, stride=20, blocks=7)
  some = StoredWeight(tensor, is_transposed=True, part=part)
  rows = [5 + o // 10 * 20 + o % 10 for o in range(70)]
  np.testing.assert_array_equal(some[2:9, 15:66], whole[rows[15:66], 2:9].T)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_large_stacks_are_sent_layer_by_layer(file, sizes, monkeypatch):
  monkeypatch.setattr(mesh_lib, "LARGE_BYTES", 3 * WHOLE.nbytes - 1)
  tensors, opened = file
  mesh = mesh_lib.make_mesh(
    mesh_lib.Config(**dict(zip(mesh_lib.AXES, sizes, strict=True)))
  )
  stack = StackedWeight(
    [Spy(opened[name], is_transposed=False) for name in sorted(tensors)]
  )
  monkeypatch.setattr(StackedWeight, "__getitem__", None)  # nobody may
  tree = {"params": {"layers": {"mlp": {"up_proj": {"kernel": stack}}}}}
  shardings = rules.sharding_tree(mesh, tree)
  found = jax.tree.leaves(mesh_lib.place(tree, shardings))[0]
  assert found.sharding == jax.tree.leaves(shardings)[0]
  expected = [tensors[name].astype(np.float32) for name in sorted(tensors)]
  np.testing.assert_array_equal(found, np.stack(expected))
