"""Weights read piece by piece: the same numbers, and never a whole model."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rlhf_jax import integrity
from rlhf_jax.models.stored import StackedWeight, StoredWeight
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules

WHOLE = np.arange(24 * 16, dtype=np.float32).reshape(24, 16) / 7


@pytest.fixture(params=[np.float32, ml_dtypes.bfloat16])
def file(request, tmp_path):
  path = tmp_path / "model.safetensors"
  tensors = {f"layer.{i}": (WHOLE + i).astype(request.param) for i in range(3)}
  save_file(tensors, path)
  return tensors, safe_open(path, framework="np")


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_piece_is_the_slice_of_the_whole(file, is_transposed):
  tensors, opened = file
  expected = tensors["layer.0"].astype(np.float32)
  expected = expected.T if is_transposed else expected
  weight = StoredWeight(opened, "layer.0", is_transposed=is_transposed)
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
    [StoredWeight(opened, name, is_transposed=True) for name in sorted(tensors)]
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
  weight = Spy(opened, "layer.1", is_transposed=False)
  tree = {"params": {"layer_0": {"mlp": {"up_proj": {"kernel": weight}}}}}
  placed = mesh_lib.place(tree, rules.sharding_tree(mesh, tree))
  expected = jax.tree.map(np.asarray, tree)
  assert Spy.sizes[:-1] == [WHOLE.size // pieces] * pieces
  found = jax.tree.leaves(placed)[0]
  np.testing.assert_array_equal(found, jax.tree.leaves(expected)[0])
  assert integrity.fingerprint_params(placed) == (
    integrity.fingerprint_params(expected)
  )
