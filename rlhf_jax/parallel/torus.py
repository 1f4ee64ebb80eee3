"""Weights gathered along one dimension of a TPU's torus after the other.

Chips of a TPU slice form a torus, and "fsdp" may run through several of its
dimensions. The TPU compiler (libtpu 0.0.42) has no all-gather for all of v5p's
three: it writes the weight as a sum of shards that are padded with zeros, and
the gradient as a sum of which each chip keeps its part; both send twice as
much. Of two dimensions of a large slice it has no reduce-scatter. So both go
in stages, each within a line or a small plane of chips:

  y = x W     W gathered, smallest stage first; x, y: rows over the devices
  dx = dy W'  W gathered again
  dW = x' dy  scattered, largest stage first, then summed over "data"

A stage holds contiguous parts of the one before, so the order of a weight's
parts does not depend on the stages. On one dimension, a small plane, or
anything but a TPU there are no stages, and the compiler does all of it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from rlhf_jax.types import Array

AXIS = "fsdp"
ROWS = ("data", AXIS)
TENSOR = "tensor"
PLANE = 16  # chips of a plane that the compiler gathers and scatters at once

Stages = tuple[int, ...]  # sizes, the first of the largest stride
_STAGES = jax.make_user_context(())


def using(mesh: Any) -> Any:
  """Returns the context in which `stages` are those of a mesh."""
  return _STAGES(stages_of(mesh))


def stages() -> Stages:
  """Returns the stages of the current mesh, () where there is but one."""
  return _STAGES.value


def stages_of(mesh: Any) -> Stages:
  """Returns the stages of a mesh, () unless it is one of a TPU's.

  Args:
    mesh: with the axes of parallel/mesh.py; an abstract one has no devices.
  """
  if not isinstance(mesh, jax.sharding.Mesh) or AXIS not in mesh.axis_names:
    return ()
  found = mesh.devices
  place = [0] * found.ndim
  place[mesh.axis_names.index(AXIS)] = slice(None)
  line = list(found[tuple(place)])
  if getattr(line[0], "platform", "") != "tpu":
    return ()
  core = [(getattr(d, "core_on_chip", 0) or 0) for d in line]
  return split([(*d.coords, c) for d, c in zip(line, core, strict=True)])


def split(coordinates: list[tuple[int, ...]]) -> Stages:
  """Returns the stages of devices in the order of the axis.

  Dimensions next to each other are one stage as long as it has at most PLANE
  devices. () where one stage is enough, or the order is not that of a torus,
  the last dimension fastest.

  Args:
    coordinates: of each device.
  """
  places, sizes = np.asarray(coordinates), []
  while len(places) > 1:
    moves = (places != places[0]).any(axis=1).nonzero()[0]
    dimension = (places[moves[0]] != places[0]).nonzero()[0]
    others = np.delete(places, dimension, axis=1)
    size = len(places)
    if (others != others[0]).any():
      size = int((others != others[0]).any(axis=1).argmax())
    if len(dimension) != 1 or len(places) % size:
      return ()
    lines = places.reshape(-1, size, places.shape[1])
    if (np.delete(lines - lines[:, :1], dimension, axis=2) != 0).any():
      return ()
    sizes.insert(0, size)
    places = lines[:, 0]
  merged: list[int] = []
  for size in sizes:
    if merged and merged[-1] * size <= PLANE:
      merged[-1] *= size
    else:
      merged.append(size)
  return tuple(merged) if len(merged) > 1 else ()


def groups(sizes: Stages, stage: int) -> list[list[int]]:
  """Returns the places along the axis that one stage joins."""
  places = np.arange(int(np.prod(sizes))).reshape(sizes)
  return np.moveaxis(places, stage, -1).reshape(-1, sizes[stage]).tolist()


def _gathered(weight: Array, dimension: int, sizes: Stages) -> Array:
  for stage in reversed(range(len(sizes))):
    weight = jax.lax.all_gather(
      weight,
      AXIS,
      axis=dimension,
      tiled=True,
      axis_index_groups=groups(sizes, stage),
    )
  return weight


def _scattered(gradient: Array, sizes: Stages) -> Array:
  """Returns this device's part of the sum, along the first dimension.

  Along the last one a part may be narrower than a register, and the compiler
  sums all of it.
  """
  for stage in range(len(sizes)):
    gradient = jax.lax.psum_scatter(
      gradient,
      AXIS,
      scatter_dimension=0,
      tiled=True,
      axis_index_groups=groups(sizes, stage),
    )
  return jax.lax.psum(gradient, "data")


def gather(weight: Array, owned: PartitionSpec, sizes: Stages) -> Array:
  """Returns a weight, inside jit, whole along "fsdp"; it has no gradient.

  Args:
    weight: split as `owned`.
    owned: "fsdp" in one of its dimensions.
    sizes: the stages.
  """
  dimension = tuple(owned).index(AXIS)
  whole = PartitionSpec(*(None if a == AXIS else a for a in owned))
  run = functools.partial(_gathered, dimension=dimension, sizes=sizes)
  return jax.shard_map(run, in_specs=owned, out_specs=whole, check_vma=False)(
    weight
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(
  x: Array, weight: Array, owned: tuple[str | None, ...], sizes: Stages
) -> Array:
  """Returns x W, inside jit, the weight gathered by stages.

  Args:
    x: [rows, in], rows over "data" and "fsdp".
    weight: [in, out], split as `owned`.
    owned: "fsdp" in one of the two, "tensor" or None in the other.
    sizes: the stages.
  """

  def run(x: Array, weight: Array) -> Array:
    y = jnp.matmul(x, _gathered(weight, owned.index(AXIS), sizes))
    return jax.lax.psum(y, TENSOR) if owned[0] == TENSOR else y

  read, written = _streams(owned)
  return jax.shard_map(
    run,
    in_specs=(read, PartitionSpec(*owned)),
    out_specs=written,
    check_vma=False,
  )(x, weight)


def _streams(owned: tuple[str | None, ...]) -> tuple[PartitionSpec, ...]:
  """Returns how x and y are split."""
  return tuple(
    PartitionSpec(ROWS, TENSOR if axis == TENSOR else None) for axis in owned
  )


def _forward(
  x: Array, weight: Array, owned: tuple[str | None, ...], sizes: Stages
) -> tuple[Array, tuple[Array, Array]]:
  return matmul(x, weight, owned, sizes), (x, weight)


def _backward(
  owned: tuple[str | None, ...],
  sizes: Stages,
  kept: tuple[Array, Array],
  gradient: Array,
) -> tuple[Array, Array]:
  dimension = owned.index(AXIS)

  def run(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
    dx = jnp.matmul(dy, _gathered(weight, dimension, sizes).T)
    dx = jax.lax.psum(dx, TENSOR) if owned[1] == TENSOR else dx
    if dimension == 0:
      return dx, _scattered(jnp.matmul(x.T, dy), sizes)
    return dx, _scattered(jnp.matmul(dy.T, x), sizes).T

  read, written = _streams(owned)
  split_ = PartitionSpec(*owned)
  return jax.shard_map(
    run,
    in_specs=(read, split_, written),
    out_specs=(read, split_),
    check_vma=False,
  )(*kept, gradient)


matmul.defvjp(_forward, _backward)
