"""THE sharding table: path of an array -> how its dimensions are split.

A rule is a pattern for the END of the path and the mesh axes of the LAST
dimensions (aligned at the right), so one table serves the parameters, the
same stacked by a layer scan (one more leading axis), Adam's moments (their
paths end the same way), LoRA factors, quantised kernels and the KV cache.

Split as in Megatron (Shoeybi et al. 2019, arXiv:1909.08053): "tensor" on the
output of q, k, v, gate and up and on the input of o and down, so a block needs
two all-reduces; "fsdp" on the other, model-width, dimension.

Left out: sequence sharding; small arrays (norms, scalar heads) are replicated.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.parallel import torus
from rlhf_jax.parallel.mesh import BATCH_AXES, constrain, row_ways
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree

COLUMN = "(attention/[qkv]_proj|mlp/(gate|up)_proj)"  # tensor on the output
ROW = "(attention/o_proj|mlp/down_proj)"  # tensor on the input

# In OPTIONAL dimensions a size that does not divide is replicated, with a
# warning: few key heads (one, in multi-query attention) and vocabularies of
# odd size would otherwise forbid tensor parallelism. Elsewhere it is an error.
# FEW is the same without a warning: scales of blocks, a 32nd of the values.
OPTIONAL = "?"
FEW = "??"
SCALES = "(scales|offsets)"  # of models/quantised.py, beside its values

RULES: tuple[tuple[str, tuple], ...] = (
  # [V, D]; the positions' table is [max_length, D]
  ("position_embedding/embedding", (None, "fsdp")),
  ("embedding/embedding(/values)?", ("tensor?", "fsdp")),
  (f"embedding/embedding/{SCALES}", ("tensor??", "fsdp??")),
  # [D, V]
  ("lm_head/kernel(/values)?", ("fsdp", "tensor?")),
  (f"lm_head/kernel/{SCALES}", ("fsdp??", "tensor??")),
  # [D, heads * head_dim] and [D, F]
  ("attention/[kv]_proj/kernel(/values)?", ("fsdp", "tensor?")),
  (f"attention/[kv]_proj/kernel/{SCALES}", ("fsdp??", "tensor??")),
  ("attention/[kv]_proj/bias", ("tensor?",)),
  ("attention/[kv]_proj/lora_b", (None, "tensor?")),
  (f"{COLUMN}/kernel(/values)?", ("fsdp", "tensor")),
  (f"{COLUMN}/kernel/{SCALES}", ("fsdp??", "tensor")),
  (f"{COLUMN}/bias", ("tensor",)),
  (f"{COLUMN}/lora_a", ("fsdp", None)),  # [D, r]
  (f"{COLUMN}/lora_b", (None, "tensor")),  # [r, out]
  # [heads * head_dim, D] and [F, D]
  (f"{ROW}/kernel(/values)?", ("tensor", "fsdp")),
  (f"{ROW}/kernel/{SCALES}", ("tensor??", "fsdp")),
  (f"{ROW}/bias", (None,)),
  (f"{ROW}/lora_a", ("tensor", None)),  # [in, r]
  (f"{ROW}/lora_b", (None, "fsdp")),  # [r, D]
  # [D]
  ("(attention|mlp|final)_(post_)?norm/(scale|bias)", (None,)),
  ("attention/[qk]_norm/(scale|bias)", (None,)),
  # scalar heads: [F, units], [F, K], [K]
  (r"\w*head/(output|hidden|residual)/kernel", (None, None)),
  (r"\w*head/(output|hidden|residual)/bias", (None,)),
  # [K] of several judges, the state of a combination
  ("combination/moments/(count|mean|m2)", (None,)),
  # KV cache [B, heads, S, d], by layer or stacked
  ("(key|value)", (BATCH_AXES, "tensor?", None, None)),
  ("(key|value)_scale", (BATCH_AXES, "tensor?", None)),  # of int8
)
_COMPILED = tuple((re.compile(f"(^|.*/){p}$"), axes) for p, axes in RULES)
# Factors that are merged into few bits stand below their kernel.
_BELOW = re.compile(r"/kernel/factors/\d+/")


# Scales of the blocks of 8-bit moments (moments.py) lie as the parameter does,
# where an axis that is so much shorter divides.
_SCALES = re.compile(r"(^|.*/)\w+_scales/")


def _axes_for(path: str, shape: tuple[int, ...]) -> tuple:
  """Returns the rule's entry for each dimension, marks included."""
  if not shape:
    return ()
  path = _BELOW.sub("/", path)
  for pattern, axes in _COMPILED:
    if pattern.match(path):
      if len(axes) > len(shape):
        raise UserError(
          f"{path} has shape {shape}, but its rule {axes} in "
          f"rlhf_jax/parallel/rules.py needs {len(axes)} dimensions."
        )
      return (None,) * (len(shape) - len(axes)) + axes
  raise UserError(
    f"{path}, shape {shape}, matches no sharding rule. Add a line to RULES in "
    "rlhf_jax/parallel/rules.py."
  )


def sharding_tree(mesh: Mesh, tree: PyTree) -> PyTree:
  """Returns the tree with a NamedSharding for every leaf.

  Args:
    mesh: from make_mesh.
    tree: arrays or abstract arrays (jax.eval_shape).

  Raises:
    ValueError: no rule for a path, or a dimension that does not divide.
  """

  def one(path: tuple, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    axes = _axes_for(name, tuple(leaf.shape))
    if _SCALES.match(name):
      return NamedSharding(mesh, PartitionSpec(*_dividing(mesh, leaf, axes)))
    entries = [
      _checked(mesh, name, dimension, size, entry)
      for dimension, (size, entry) in enumerate(
        zip(leaf.shape, axes, strict=True)
      )
    ]
    return NamedSharding(mesh, PartitionSpec(*entries))

  return jax.tree_util.tree_map_with_path(one, tree)


def _dividing(mesh: Mesh, leaf: Any, axes: tuple) -> list:
  """Returns the entries of a rule whose dimensions divide, None for others."""
  names = [_unmarked(entry)[0] for entry in axes]
  return [
    name if name is not None and size % mesh.shape[name] == 0 else None
    for size, name in zip(leaf.shape, names, strict=True)
  ]


def gather(path: str, weight: Array, *, is_table: bool = False) -> Array:
  """Returns a weight, inside jit, as it is used: whole along "fsdp".

  Left to itself the compiler may keep a weight split and sum activations over
  all devices instead, which sends more the more devices there are. The
  gradient is summed straight into the parts that the devices own. There is a
  `current` mesh of several devices (mesh.is_split): on one, nobody asks.

  Args:
    path: names joined by "/", as in the table.
    weight: the array, cast to the dtype it is used in.
    is_table: rows of it are looked up. On meshes of several axes the compiler
      cannot bring their gradients into the owned parts by an all-to-all.
  """
  mesh = jax.sharding.get_abstract_mesh()
  owned = _owned(path, weight)
  whole = [None if name == "fsdp" else name for name in owned]
  keeps_whole = is_table and mesh.size != mesh.shape["fsdp"]
  return _gather(
    weight,
    PartitionSpec(*owned),
    PartitionSpec(*whole),
    PartitionSpec(*(whole if keeps_whole else owned)),
  )


def matmul(path: str, x: Array, weight: Array, rows: int) -> Array:
  """Returns x W, inside jit, the weight gathered for it as by `gather`.

  On slices where "fsdp" runs through several dimensions of the torus both the
  gathering and the gradient's sum go by stages (torus.py).

  Args:
    path: names joined by "/", as in the table.
    x: [M, in], M a multiple of `rows`.
    weight: [in, out], cast to the dtype it is used in.
    rows: of the batch, what the mesh splits.
  """
  stages, owned = torus.stages(), tuple(_owned(path, weight))
  if not stages or "fsdp" not in owned or rows % row_ways():
    return jnp.matmul(x, gather(path, weight))
  return torus.matmul(x, weight, owned, stages)


def _owned(path: str, weight: Array) -> list[str | None]:
  """Returns the mesh axis that splits each dimension of a weight."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = _axes_for(path, tuple(weight.shape))
  names = [_unmarked(entry)[0] for entry in axes]
  return [
    name if name is not None and size % mesh.shape[name] == 0 else None
    for size, name in zip(weight.shape, names, strict=True)
  ]


def gather_tree(tree: PyTree, dtype: str) -> PyTree:
  """Returns weights, inside jit, as a loop of single tokens uses them.

  What "fsdp" splits is cast and made whole once, before the loop; left to
  itself the compiler gathers every weight for every token. Matrices of few
  bits are made whole as they are.

  Args:
    tree: parameters, no LoRA factors.
    dtype: compute dtype.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape["fsdp"] == 1:
    return tree

  def one(path: tuple, leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if "fsdp" not in _owned(name, leaf):
      return leaf
    is_wide = not name.endswith(("/values", "/scales", "/offsets"))
    return gather(name, leaf.astype(dtype) if is_wide else leaf)

  return jax.tree_util.tree_map_with_path(one, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(
  weight: Array,
  owned: PartitionSpec,
  whole: PartitionSpec,
  summed: PartitionSpec,
) -> Array:
  """Returns the weight split as `whole`, its gradient split as `summed`."""
  del summed
  if torus.stages() and "fsdp" in owned:
    return torus.gather(weight, owned, torus.stages())
  return constrain(weight, whole)


def _gather_forward(
  weight: Array,
  owned: PartitionSpec,
  whole: PartitionSpec,
  summed: PartitionSpec,
) -> tuple[Array, None]:
  return _gather(weight, owned, whole, summed), None


def _gather_backward(
  owned: PartitionSpec,
  whole: PartitionSpec,
  summed: PartitionSpec,
  _: None,
  gradient: Array,
) -> tuple[Array]:
  del owned, whole
  return (constrain(gradient, summed),)


_gather.defvjp(_gather_forward, _gather_backward)


def init_sharded(mesh: Mesh, init: Callable[..., PyTree], *args) -> PyTree:
  """Returns init(*args), each array made where it lives.

  With jax_threefry_partitionable, set by default, the random bits do not
  depend on the mesh.
  """
  shardings = sharding_tree(mesh, jax.eval_shape(init, *args))
  return jax.jit(init, out_shardings=shardings)(*args)


def _unmarked(entry: Any) -> tuple[Any, str]:
  """Returns the mesh axis or axes of a table entry, and its mark or ""."""
  for mark in (FEW, OPTIONAL):
    if isinstance(entry, str) and entry.endswith(mark):
      return entry.removesuffix(mark), mark
  return entry, ""


def _checked(mesh: Mesh, path: str, dimension: int, size: int, entry: Any):
  """Returns the entry if `size` divides over it; None if it may be whole."""
  entry, mark = _unmarked(entry)
  if entry is None:
    return None
  names = (entry,) if isinstance(entry, str) else entry
  ways = 1
  for name in names:
    ways *= mesh.shape[name]
  if size % ways == 0:
    return entry
  if mark == FEW:
    return None
  arithmetic = " x ".join(f"{name}={mesh.shape[name]}" for name in names)
  problem = (
    f"{path}: dimension {dimension} of size {size} is not a multiple of "
    f"{arithmetic} ({size} / {ways} = {size / ways:g})"
  )
  if not mark:
    raise UserError(f"{problem}. Choose a mesh whose axes divide it.")
  warnings.warn(f"{problem}; it is replicated instead.", stacklevel=4)
  return None
