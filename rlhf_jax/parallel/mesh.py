"""The device mesh and the way of host batches onto it.

Axes: "data" splits the batch; "fsdp" splits the batch and the weights, which
are gathered when used; "tensor" splits heads, feed-forward width and
vocabulary. The weights' side of this is rules.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.parallel import overlap, torus
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
LARGE_BYTES = 2**28  # of a stack of layers that is not sent as a whole


@dataclasses.dataclass(frozen=True)
class Config:
  """Devices along each axis; -1, at most once, takes those that are left."""

  data: int = -1  # copies of the weights; each has its share of the batch
  fsdp: int = 1  # ways to split each weight; also splits the batch
  tensor: int = 1  # ways to split heads, feed-forward width, vocabulary
  devices: int = 0  # only the first so many devices; 0 takes all

  def __post_init__(self) -> None:
    if self.devices < 0:
      raise UserError(f"mesh.devices={self.devices}: must be >= 0; 0 is all.")
    sizes = {axis: getattr(self, axis) for axis in AXES}
    for axis, size in sizes.items():
      if size < 1 and size != -1:
        raise UserError(
          f"mesh.{axis}={size}: set >= 1, or -1 for the devices left."
        )
    if list(sizes.values()).count(-1) > 1:
      raise UserError(f"mesh {sizes}: at most one axis may be -1.")


def all_devices() -> list[jax.Device]:
  """Returns the devices that JAX finds.

  Raises:
    UserError: none of the platform that JAX_PLATFORMS names.
  """
  overlap.set_options()
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:
    asked = os.environ.get("JAX_PLATFORMS", "")
    reason = " ".join(str(error).split()) or "none at all"
    raise UserError(
      f"JAX_PLATFORMS={asked!r}: JAX finds no device of this platform "
      f"({reason:.200}). Set it to cpu, unset it, or install JAX for the "
      "accelerator (pip install -e '.[cuda]' or '.[tpu]')."
    ) from error


def make_mesh(config: Config, devices: Sequence | None = None) -> Mesh:
  """Returns a mesh with axes ("data", "fsdp", "tensor").

  Args:
    config: sizes.
    devices: all of them when None; a mesh uses every device it is given, or
      the first config.devices of them.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = all_devices() if devices is None else list(devices)
  if config.devices > len(devices):
    raise UserError(
      f"mesh.devices={config.devices}: there are {len(devices)}. Lower it."
    )
  devices = devices[: config.devices] if config.devices else devices
  sizes = {axis: getattr(config, axis) for axis in AXES}
  given = [size for size in sizes.values() if size != -1]
  product = int(np.prod(given))
  rest, remainder = divmod(len(devices), product)
  is_filled = len(given) < len(sizes)
  if remainder or (not is_filled and rest != 1):
    arithmetic = " x ".join(f"{k}={v}" for k, v in sizes.items() if v != -1)
    raise UserError(
      f"mesh: {arithmetic} = {product} but {len(devices)} devices. Set sizes "
      "whose product is the number of devices; -1 fills one axis."
    )
  shape = tuple(rest if size == -1 else size for size in sizes.values())
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that keeps a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of batches: rows over "data" and "fsdp"."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def host_part(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): which equal part of a batch this process reads.

  Processes whose devices hold the same rows (a tensor axis that spans them)
  have the same index.

  Raises:
    ValueError: a mesh that gives a process rows that are not one part.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  indices = batch_sharding(mesh).addressable_devices_indices_map((ways,))
  mine = sorted({index[0].indices(ways)[0] for index in indices.values()})
  first, size = mine[0], len(mine)
  if mine != list(range(first, first + size)) or ways % size or first % size:
    raise UserError(
      f"mesh {dict(mesh.shape)}: process {jax.process_index()} would hold the "
      f"parts {mine} of {ways} of a batch, which are not one block. Choose "
      "data x fsdp as a multiple or a divisor of the processes."
    )
  return first // size, ways // size


def shard_batch(mesh: Mesh, tree: PyTree) -> PyTree:
  """Returns global arrays of a batch on the host, rows split over the mesh.

  Args:
    mesh: of all processes' devices.
    tree: numpy leaves [rows, ...], this process's part (`host_part`) when
      there are several processes; scalars are replicated.

  Raises:
    ValueError: rows that do not divide among the devices.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  parts = host_part(mesh)[1]

  def put(leaf: np.ndarray) -> Array:
    leaf = np.asarray(leaf)
    if leaf.ndim == 0:
      sharding = replicated(mesh)
    else:
      rows = leaf.shape[0] * parts
      if rows % ways:
        raise UserError(
          f"batch of {leaf.shape[0]} rows x {parts} hosts = {rows}, "
          f"not a multiple of data={mesh.shape['data']} x "
          f"fsdp={mesh.shape['fsdp']} = {ways}. Change the batch size or the "
          "mesh."
        )
      sharding = batch_sharding(mesh)
    if jax.process_count() > 1:
      shape = (rows, *leaf.shape[1:]) if leaf.ndim else ()
      return jax.make_array_from_process_local_data(sharding, leaf, shape)
    return jax.device_put(leaf, sharding)

  return jax.tree.map(put, tree)


def spread_batch(mesh: Mesh, tree: PyTree) -> PyTree:
  """Returns global arrays of a batch that every process holds whole.

  Rows are split over the mesh where they divide among its devices; else every
  device computes all of them, which costs time and changes no number.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]

  def put(leaf: np.ndarray) -> Array:
    leaf = np.asarray(leaf)
    is_split = leaf.ndim > 0 and leaf.shape[0] % ways == 0
    sharding = batch_sharding(mesh) if is_split else replicated(mesh)
    return place(leaf, sharding)

  return jax.tree.map(put, tree)


def constrain_rows(mesh: Mesh, tree: PyTree) -> PyTree:
  """Returns the tree, inside jit, its rows split over the mesh.

  Leaves whose rows do not divide among the devices stay as they are.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if ways == 1:
    return tree

  def one(leaf: Array) -> Array:
    if leaf.ndim == 0 or leaf.shape[0] % ways:
      return leaf
    return jax.lax.with_sharding_constraint(leaf, batch_sharding(mesh))

  return jax.tree.map(one, tree)


@contextlib.contextmanager
def current(mesh: Any) -> Iterator[None]:
  """Makes the context in which models that are traced know the mesh.

  Args:
    mesh: a mesh or an abstract one.
  """
  with (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    torus.using(mesh),
  ):
    yield


def row_ways(mesh: Any = None) -> int:
  """Returns how many parts the rows of a batch have on a mesh.

  Args:
    mesh: None for the `current` one.
  """
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def is_split() -> bool:
  """Says whether there is a `current` mesh, and of several devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def constrain(x: Array, spec: PartitionSpec) -> Array:
  """Returns x, inside jit, split over the `current` mesh as the spec says.

  The mesh is named: jax 0.7.2 reads a bare spec on concrete meshes only.
  """
  sharding = NamedSharding(jax.sharding.get_abstract_mesh(), spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def constrain_stream(x: Array) -> Array:
  """Returns a residual stream, inside jit, its rows split and nothing else.

  Else the compiler splits its width as the weights' and cannot always come
  back without gathering all of it ("involuntary full rematerialization").
  Without a `current` mesh, with rows that do not divide, and for single
  tokens (decoding, where weights are larger than streams), x stays as it is.

  Args:
    x: [B, T, D].
  """
  if not is_split() or x.shape[1] == 1 or x.shape[0] % row_ways():
    return x
  return constrain(x, PartitionSpec(BATCH_AXES))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
  """Returns host arrays, the same on every process, as global arrays.

  Each device is sent its own piece only. Leaves that are not in memory but
  can be read piece by piece, `leaf[index]`, are read so, each piece once, and
  the next leaf when the devices have this one. Large stacks of such `layers`
  are sent layer by layer.
  """

  def put(leaf: Any, sharding: NamedSharding) -> Array:
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
      size = leaf.dtype.itemsize * math.prod(leaf.shape)
      is_split = any(sharding.spec[:1])
      if hasattr(leaf, "layers") and size > LARGE_BYTES and not is_split:
        return _place_layers(leaf.layers, leaf.shape, sharding)
      return jax.block_until_ready(_place_pieces(leaf, sharding))
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    return _place_pieces(np.asarray(leaf), sharding)

  return jax.tree.map(put, tree, shardings)


def _place_pieces(leaf: Any, sharding: NamedSharding) -> Array:
  """Returns the global array of a leaf that is read by `leaf[index]`."""
  pieces: dict[tuple, np.ndarray] = {}

  def read(index: tuple[slice, ...]) -> np.ndarray:
    name = tuple((part.start, part.stop) for part in index)
    if name not in pieces:
      pieces[name] = leaf[index]
    return pieces[name]

  return jax.make_array_from_callback(leaf.shape, sharding, read)


def _place_layers(
  layers: Sequence[Any], shape: tuple[int, ...], sharding: NamedSharding
) -> Array:
  """Returns the global array [layers, ...] of leaves that are read one by one.

  Args:
    layers: of one shape and dtype.
    shape: of all of them.
    sharding: of the whole, which does not split the layers.
  """
  alone = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
  make = functools.partial(jnp.zeros, shape, layers[0].dtype)
  whole = jax.jit(make, out_shardings=sharding)()
  put = jax.jit(
    lambda whole, layer, i: jax.lax.dynamic_update_index_in_dim(
      whole, layer, i, 0
    ),
    donate_argnums=0,
    out_shardings=sharding,
  )
  for i, layer in enumerate(layers):
    whole = jax.block_until_ready(put(whole, _place_pieces(layer, alone), i))
  return whole
