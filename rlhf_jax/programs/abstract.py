"""Batches without data, and the bytes of arrays.

Every leaf is a jax.ShapeDtypeStruct with the sharding that the sharding table,
or the split of rows over the mesh, gives it. world.py has models and stages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import slots
from rlhf_jax.algorithms.policy_gradient.packing import Packing
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.programs.world import AnyMesh
from rlhf_jax.types import (
  PreferenceBatch,
  PromptBatch,
  PyTree,
  Samples,
  TokenBatch,
)


def spread(mesh: AnyMesh, shape: tuple[int, ...], dtype: Any) -> Any:
  """Returns an abstract array of rows, split over the mesh if they divide."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  is_split = len(shape) > 0 and shape[0] % ways == 0
  sharding = (
    mesh_lib.batch_sharding(mesh) if is_split else mesh_lib.replicated(mesh)
  )
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def key(mesh: AnyMesh) -> Any:
  """Returns an abstract random key, on all devices."""
  shape = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(
    shape.shape, shape.dtype, sharding=mesh_lib.replicated(mesh)
  )


def guessed(mesh: AnyMesh, shapes: PyTree, rows: int) -> PyTree:
  """Returns a program's results, placed as the compiler will probably do.

  Caches by the sharding table, everything else with `rows` rows by row.

  Args:
    mesh: where.
    shapes: from jax.eval_shape.
    rows: rows of the batch.
  """

  def one(path: tuple, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    is_cache = name.endswith(("key", "value")) and len(leaf.shape) >= 4
    if is_cache or name.endswith(("/key_scale", "/value_scale")):
      sharding = rules.sharding_tree(mesh, {name.split("/")[-1]: leaf})
      return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=next(iter(sharding.values()))
      )
    if leaf.shape and leaf.shape[0] == rows:
      return spread(mesh, leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=mesh_lib.replicated(mesh)
    )

  return jax.tree_util.tree_map_with_path(one, shapes)


def number(mesh: AnyMesh, dtype: Any) -> Any:
  """Returns an abstract scalar, on all devices."""
  return jax.ShapeDtypeStruct((), dtype, sharding=mesh_lib.replicated(mesh))


def keys(mesh: AnyMesh, rows: int) -> Any:
  """Returns abstract random keys, one a row."""
  shapes = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  return spread(mesh, shapes.shape, shapes.dtype)


def samples_of(state: slots.State, mesh: AnyMesh, rows: int) -> Samples:
  """Returns the samples of a finished decode.

  Args:
    state: what decode returned, possibly a part of all rows.
    mesh: where.
    rows: of all parts together.
  """
  shape = (rows, state.answers.tokens.shape[1])

  def row(dtype: Any) -> jax.ShapeDtypeStruct:
    return spread(mesh, shape, dtype)

  return Samples(
    tokens=row(jnp.int32),
    valid_mask=row(jnp.float32),
    response_mask=row(jnp.float32),
    behaviour_logprobs=row(jnp.float32),
    finish_reason=spread(mesh, (rows,), jnp.int32),
  )


def with_slots(state: slots.State, size: int) -> slots.State:
  """Returns a batch in flight whose cache has so many slots."""
  take = functools.partial(cache_lib.take_slots, slots=jnp.arange(size))
  cache = jax.tree.map(
    lambda old, new: jax.ShapeDtypeStruct(
      new.shape, new.dtype, sharding=old.sharding
    ),
    state.cache,
    jax.eval_shape(take, state.cache),
  )
  return state.replace(cache=cache)


def streams_of(state: slots.State, mesh: AnyMesh, rows: int) -> dict[int, Any]:
  """Returns the streams that a finished decode kept; see `samples_of`."""
  return {
    layer: spread(mesh, (rows, *x.shape[1:]), x.dtype)
    for layer, x in state.answers.streams.items()
  }


def token_batch(
  mesh: AnyMesh, rows: int, length: int, is_packed: bool
) -> TokenBatch:
  """Returns an abstract batch of rows of text."""

  def row(dtype: Any) -> jax.ShapeDtypeStruct:
    return spread(mesh, (rows, length), dtype)

  return TokenBatch(
    tokens=row(jnp.int32),
    valid_mask=row(jnp.float32),
    loss_mask=row(jnp.float32),
    segment_ids=row(jnp.int32) if is_packed else None,
    positions=row(jnp.int32) if is_packed else None,
  )


def prompt_batch(mesh: AnyMesh, rows: int, length: int) -> PromptBatch:
  """Returns an abstract batch of prompts."""
  return PromptBatch(
    tokens=spread(mesh, (rows, length), jnp.int32),
    valid_mask=spread(mesh, (rows, length), jnp.float32),
    index=spread(mesh, (rows,), jnp.int32),
  )


def preference_batch(
  mesh: AnyMesh,
  rows: int,
  length: int,
  features: int,
  *,
  has_reference: bool = False,
  candidates: int = 2,
  said: Mapping[str, int] = MappingProxyType({}),
  members: int = 1,
) -> PreferenceBatch:
  """Returns an abstract batch of comparisons.

  Args:
    mesh: where.
    rows: comparisons.
    length: tokens of a row.
    features: width of the precomputed features, 0 where the trunk trains.
    has_reference: whether log-probabilities of a reference are there.
    candidates: K.
    said: what else is there: "rank", "margin" and "target", and how many
      dimensions each has.
    members: of an ensemble; 1 of one model.
  """
  length = 1 if features else length
  shape = (rows, candidates, length)
  further = {
    name: spread(mesh, (rows, candidates, 2)[:dimensions], jnp.float32)
    for name, dimensions in said.items()
  }
  return PreferenceBatch(
    tokens=spread(mesh, shape, jnp.int32),
    valid_mask=spread(mesh, shape, jnp.float32),
    loss_mask=spread(mesh, shape, jnp.float32),
    label=spread(mesh, (rows,), jnp.float32),
    weight=spread(mesh, (rows,), jnp.float32),
    features=spread(mesh, (*shape[:2], features), jnp.float32)
    if features
    else None,
    reference_logprobs=spread(mesh, shape, jnp.float32)
    if has_reference
    else None,
    member_weight=spread(mesh, (rows, members), jnp.float32)
    if members > 1
    else None,
    **further,
  )


def feature_width(role: roles.Role) -> int:
  """Returns F, the width of the features that a scalar head reads."""
  return role.model.width * (2 if role.head.pooling == "mean_last" else 1)


def bytes_of(*trees_: PyTree) -> int:
  """Returns the bytes of all distinct leaves on one device."""
  distinct = {id(leaf): leaf for leaf in jax.tree.leaves(trees_)}
  return sum(_leaf_bytes(leaf) for leaf in distinct.values())


def bytes_handed(*trees_: PyTree) -> int:
  """Returns the bytes of all leaves; those that occur twice count twice.

  So the compiler counts arguments: it does not know that two are one array.
  """
  return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(trees_))


def _leaf_bytes(leaf: Any) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * _itemsize(leaf.dtype)


def _itemsize(dtype: Any) -> int:
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return 8  # two 32-bit words of a threefry key
  return jnp.dtype(dtype).itemsize


def packed_layout(
  mesh: AnyMesh,
  samples: tuple[int, int],
  packed: tuple[int, int],
  *,
  has_branches: bool = False,
) -> Packing:
  """Returns an abstract layout of samples in packed rows.

  Args:
    mesh: where.
    samples: [N, L].
    packed: rows and tokens of a row.
    has_branches: whether samples share tokens.
  """
  return Packing(
    cell=spread(mesh, packed, jnp.int32),
    place=spread(mesh, samples, jnp.int32),
    segment_ids=spread(mesh, packed, jnp.int32),
    positions=spread(mesh, packed, jnp.int32),
    branch_ids=spread(mesh, packed, jnp.int32) if has_branches else None,
  )
