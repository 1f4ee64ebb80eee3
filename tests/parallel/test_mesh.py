"""Meshes of eight simulated devices, and batches on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import TokenBatch

SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 2, 1), (2, 2, 2), (1, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_axis_types(shape):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape))
  assert mesh.axis_names == ("data", "fsdp", "tensor")
  assert tuple(mesh.shape.values()) == shape
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert {d.id for d in mesh.devices.flat} == set(range(8))


def test_minus_one_fills():
  def fill(**sizes):
    return dict(mesh_lib.make_mesh(mesh_lib.Config(**sizes)).shape)

  assert fill() == {"data": 8, "fsdp": 1, "tensor": 1}
  assert fill(fsdp=2, tensor=2) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert fill(data=2, fsdp=-1) == {"data": 2, "fsdp": 4, "tensor": 1}
  one = mesh_lib.make_mesh(mesh_lib.Config(1, 1, 1), jax.devices()[5:6])
  assert one.size == 1 and one.devices.flat[0].id == 5


def test_the_first_so_many_devices():
  two = mesh_lib.make_mesh(mesh_lib.Config(devices=2))
  assert dict(two.shape) == {"data": 2, "fsdp": 1, "tensor": 1}
  assert [d.id for d in two.devices.flat] == [0, 1]
  with pytest.raises(ValueError, match="mesh.devices=9: there are 8"):
    mesh_lib.make_mesh(mesh_lib.Config(devices=9))


def test_errors_show_the_arithmetic():
  with pytest.raises(
    ValueError, match="data=3 x fsdp=2 x tensor=1 = 6 but 8 devices"
  ):
    mesh_lib.make_mesh(mesh_lib.Config(data=3, fsdp=2))
  with pytest.raises(ValueError, match="fsdp=3 x tensor=1 = 3 but 8 devices"):
    mesh_lib.make_mesh(mesh_lib.Config(fsdp=3))
  with pytest.raises(ValueError, match="= 4 but 8 devices"):
    mesh_lib.make_mesh(mesh_lib.Config(2, 2, 1))
  with pytest.raises(ValueError, match="= 16 but 8 devices"):
    mesh_lib.make_mesh(mesh_lib.Config(-1, 4, 4))
  with pytest.raises(ValueError, match="at most one"):
    mesh_lib.Config(data=-1, fsdp=-1)
  for size in (0, -2):
    with pytest.raises(ValueError, match=f"mesh.tensor={size}"):
      mesh_lib.Config(tensor=size)


def test_shard_batch_splits_rows_and_keeps_values():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(2, 2, 2))
  tokens = np.arange(12 * 5, dtype=np.int32).reshape(12, 5)
  batch = TokenBatch(
    tokens=tokens,
    valid_mask=np.ones((12, 5), np.float32),
    loss_mask=np.zeros((12, 5), np.float32),
  )
  sharded = mesh_lib.shard_batch(mesh, batch)
  assert sharded.segment_ids is None
  assert sharded.tokens.sharding == mesh_lib.batch_sharding(mesh)
  assert {s.data.shape for s in sharded.tokens.addressable_shards} == {(3, 5)}
  np.testing.assert_array_equal(sharded.tokens, tokens)
  scalar = mesh_lib.shard_batch(mesh, {"x": np.float32(2.5)})["x"]
  assert scalar.sharding == mesh_lib.replicated(mesh) and float(scalar) == 2.5


def test_shard_batch_refuses_rows_that_do_not_divide():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(2, 2, 2))
  with pytest.raises(
    ValueError, match="= 6, not a multiple of data=2 x fsdp=2"
  ):
    mesh_lib.shard_batch(mesh, np.zeros((6, 3)))


def test_trap_12_masked_mean_is_global_on_every_mesh():
  x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  mask = (np.arange(16 * 3).reshape(16, 3) % 7 < 2).astype(np.float32)
  expected = x[mask > 0].mean()
  mean = jax.jit(lambda a, m: jnp.sum(a * m) / jnp.sum(m))
  for shape in ((8, 1, 1), (2, 2, 2)):
    mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape))
    found = mean(*mesh_lib.shard_batch(mesh, (x, mask)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
