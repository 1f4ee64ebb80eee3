"""Models, stages and batches of a configuration, without weights or data.

Every leaf is a jax.ShapeDtypeStruct with the sharding that the sharding table
gives it. Two uses of one array are one object here too, so bytes are counted
once by identity, and what the pipelines decide by identity (which roles share
the frozen trunk) comes out as in a run.

Assumed where a run would look: rows have the length their Data section allows
(text shorter than that pads less and costs less); a stage that is named but
not finished was trained in the mode of the stage that names it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from rlhf_jax import generate
from rlhf_jax.models import roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.pipelines import build, pretrained, stages
from rlhf_jax.pipelines.config import ConfigError, Model, section
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import (
  PreferenceBatch,
  PromptBatch,
  PyTree,
  Samples,
  TokenBatch,
)

AnyMesh = Mesh | AbstractMesh


@dataclasses.dataclass(frozen=True)
class Ids:
  """What the programs need of a tokenizer: which ids is of no consequence."""

  eos_id: int = 2
  pad_id: int = 2


def make_mesh(
  config: Any, devices: int | list[Any], prefix: str = ""
) -> AnyMesh:
  """Returns the mesh of a config's `mesh` section on so many devices.

  Args:
    config: with a section `mesh`.
    devices: a list to compile for, or only how many there are.
    prefix: of the stage, for messages.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices.
  """
  settings = section(mesh_lib.Config, config.mesh, prefix + "mesh")
  if isinstance(devices, list):
    try:
      return mesh_lib.make_mesh(settings, devices)
    except (ValueError, NotImplementedError) as error:  # does not lie on torus
      raise ConfigError(f"config.{prefix}{error}") from error
  count = settings.devices if settings.devices else devices
  sizes = [getattr(settings, axis) for axis in mesh_lib.AXES]
  given = math.prod(size for size in sizes if size != -1)
  rest, remainder = divmod(count, given)
  if count > devices or remainder or (-1 not in sizes and rest != 1):
    raise ConfigError(
      f"config.{prefix}mesh: {dict(zip(mesh_lib.AXES, sizes, strict=True))} "
      f"on {devices} devices. Set sizes whose product is the number of "
      "devices; -1 fills one axis."
    )
  return AbstractMesh(
    tuple(rest if size == -1 else size for size in sizes),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
  )


def check_rows(mesh: AnyMesh, rows: int, what: str, parts: int = 1) -> None:
  """Raises ConfigError unless each of `parts` divides among the devices."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if rows % (ways * parts):
    cut = f"{parts} mini- or microbatches x " if parts > 1 else ""
    raise ConfigError(
      f"{what}: {rows} are not a multiple of {cut}{ways}, the devices along "
      "mesh.data x mesh.fsdp. Change schedule.batch_size or the mesh."
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
    if name.endswith(("key", "value")) and len(leaf.shape) >= 4:
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


def samples_of(state: generate.State, mesh: AnyMesh, rows: int) -> Samples:
  """Returns the samples of a finished decode.

  Args:
    state: what decode returned, possibly a part of all rows.
    mesh: where.
    rows: of all parts together.
  """
  if state.tokens.shape[0] != rows:
    state = jax.tree.map(
      lambda x: spread(mesh, (rows, *x.shape[1:]), x.dtype),
      state.replace(cache=None, step=None),
    )
  reason = jax.ShapeDtypeStruct(
    state.done.shape, jnp.int32, sharding=state.done.sharding
  )
  return Samples(
    tokens=state.tokens,
    valid_mask=state.valid,
    response_mask=state.response,
    behaviour_logprobs=state.logprobs,
    finish_reason=reason,
  )


def state(mesh: AnyMesh, make: Callable[..., PyTree], *args: PyTree) -> PyTree:
  """Returns make(*args), as build.sharded_state would place it."""
  return build.with_shardings(jax.eval_shape(make, *args), mesh)


def base(model: Model, mesh: AnyMesh, devices: int | list[Any]) -> build.Base:
  """Returns the base model of a Model section without its weights.

  Args:
    model: the section.
    mesh: where.
    devices: those to compile for, or only how many there are, of a TPU.
  """
  platform = devices[0].platform if isinstance(devices, list) else "tpu"
  architecture = pretrained.read_architecture(model.source)
  config = pretrained.as_run(architecture, model, platform)
  plain = roles.Role(model=dataclasses.replace(config, lora_rank=0))
  shapes = build.variable_shapes(plain)
  return build.Base(
    config=config,
    params=build.with_shardings(shapes, mesh)["params"],
    tokenizer=Ids(),
    fingerprint="",
    source=model.source,
  )


def stage(
  base: build.Base, role: roles.Role, mesh: AnyMesh, start: PyTree = None
) -> stages.Stage:
  """Returns a stage that trained a role: new leaves for what it trained.

  Args:
    base: the model underneath.
    role: what trained.
    mesh: where.
    start: whole weights it started from; None for the base's.
  """
  shapes = build.with_shardings(build.variable_shapes(role), mesh)
  trained, _ = roles.split(role, shapes)
  params = base.params if start is None else start
  flat = trees.flatten({"params": params}) | trees.flatten(trained)
  return stages.Stage(role, trees.unflatten(flat), {})


def merged(stage: stages.Stage) -> PyTree:
  """Returns the whole weights of a stage, LoRA factors merged."""
  return whole_weights(stage.variables, {})


def whole_weights(params: PyTree, frozen: PyTree) -> PyTree:
  """Returns what roles.sampling_params makes of a role's two trees.

  Kernels with factors are new arrays, the others are passed on.
  """
  variables = trees.merge(params, frozen)
  flat = trees.flatten(variables["params"])
  for path in trees.flatten(variables.get("lora", {})):
    kernel = path.replace("lora_a", "kernel").replace("lora_b", "kernel")
    leaf = flat[kernel]
    flat[kernel] = jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    )
  return trees.unflatten(flat)


def critic(
  stage_: stages.Stage, role: roles.Role, mesh: AnyMesh
) -> stages.Stage:
  """Returns the critic that starts as a reward stage, with its own head."""
  shapes = build.with_shardings(build.variable_shapes(role), mesh)
  variables = dict(stage_.variables) | {"head": shapes["head"]}
  if role.trainable == "lora" and "lora" not in variables:
    variables["lora"] = shapes["lora"]
  return stages.Stage(role, variables, {})


def scorer(
  stage_: stages.Stage, mesh: AnyMesh
) -> tuple[reward_model.Scorer, reward_model.Weights]:
  """Returns a reward stage as it scores samples."""
  return (
    reward_model.Scorer(stage_.role, True),
    reward_model.Weights(
      stage_.variables,
      number(mesh, jnp.float32),
      number(mesh, jnp.float32),
    ),
  )


def token_batch(
  mesh: AnyMesh, rows: int, length: int, is_packed: bool
) -> TokenBatch:
  """Returns an abstract batch of rows of text."""
  row = lambda dtype: spread(mesh, (rows, length), dtype)  # noqa: E731
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
) -> PreferenceBatch:
  """Returns an abstract batch of comparisons.

  Args:
    mesh: where.
    rows: comparisons.
    length: tokens of a row.
    features: width of the precomputed features, 0 where the trunk trains.
    has_reference: whether log-probabilities of a reference are there.
  """
  length = 1 if features else length
  return PreferenceBatch(
    tokens=spread(mesh, (rows, 2, length), jnp.int32),
    valid_mask=spread(mesh, (rows, 2, length), jnp.float32),
    loss_mask=spread(mesh, (rows, 2, length), jnp.float32),
    label=spread(mesh, (rows,), jnp.float32),
    weight=spread(mesh, (rows,), jnp.float32),
    features=spread(mesh, (rows, 2, features), jnp.float32)
    if features
    else None,
    reference_logprobs=spread(mesh, (rows, 2, length), jnp.float32)
    if has_reference
    else None,
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
