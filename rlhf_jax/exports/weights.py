"""Weights that come from the devices one at a time, LoRA factors merged.

A leaf here is read like a numpy array. Nothing is kept: JAX remembers what it
copied to the host as long as an array lives, so a copy of the array is read
that ends with the reading. A host holds one weight, however many there are.
Matrices of few bits are widened, and that is what factors beside them are
added to.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.models import lora, quantised, trees
from rlhf_jax.models.roles import Role
from rlhf_jax.models.stored import Unread
from rlhf_jax.types import Array, PyTree

_copy = jax.jit(jnp.copy)
_widened = jax.jit(quantised.merged)


@functools.partial(jax.jit, static_argnames="layer")
def _of_layer(stack: Array, layer: int) -> Array:
  return stack[layer]


class Fetched(Unread):
  """One weight on the devices, float32 on the host when it is read.

  Every process of the run must read the same weights in the same order.
  """

  def __init__(
    self,
    weight: Array,
    factors: dict[str, Array],
    scale: float,
    layer: int | None = None,
  ) -> None:
    """Keeps references; see `of_role`.

    Args:
      weight: [in, out] or of any shape, of all layers if `layer` is given.
      factors: name -> LoRA factor of it; {} for none.
      scale: s of W + s A B.
      layer: index of the layer in stacks, None for arrays of one layer.
    """
    self._weight, self._factors, self._scale = weight, factors, scale
    self._layer = layer
    self.shape = tuple(weight.shape[layer is not None :])

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece; the whole comes from the devices."""
    return self._read()[index]

  def _read(self) -> np.ndarray:
    def one(leaf: Any) -> Any:
      if self._layer is None:
        return leaf
      return jax.tree.map(lambda x: _of_layer(x, self._layer), leaf)

    fresh = one(self._weight)
    if self._factors:
      factors = {name: one(leaf) for name, leaf in self._factors.items()}
      fresh = lora.merge(
        {"map": {"kernel": fresh}}, {"map": factors}, self._scale
      )["map"]["kernel"]
    elif self._layer is None and not isinstance(fresh, quantised.Quantised):
      fresh = _copy(fresh)
    if isinstance(fresh, quantised.Quantised):
      fresh = _widened(fresh)
    return np.asarray(distributed.fetch(fresh), np.float32)


def of_role(
  role: Role, variables: PyTree, *, is_merged: bool = True
) -> dict[str, Any]:
  """Returns the tree under "params", of layer_0..., that is read when asked.

  Args:
    role: whose; its model says whether layers are stacked.
    variables: {"params", "lora"?}, on devices.
    is_merged: False leaves factors out.
  """
  flat = trees.flatten(variables["params"])
  factors: dict[str, dict[str, Array]] = {}
  if is_merged:
    for path, leaf in trees.flatten(variables.get("lora", {})).items():
      stem, _, name = path.rpartition("/")
      factors.setdefault(f"{stem}/kernel", {})[name] = leaf
  scale = role.model.lora_scale
  found: dict[str, Fetched] = {}
  for path, weight in flat.items():
    own = factors.get(path, {})
    if role.model.scan_layers and path.startswith("layers/"):
      rest = path.removeprefix("layers/")
      for i in range(role.model.n_layers):
        found[f"layer_{i}/{rest}"] = Fetched(weight, own, scale, i)
    else:
      found[path] = Fetched(weight, own, scale)
  return trees.unflatten(found)
