"""Low-rank adaptation on parameter trees (Hu et al. 2021, arXiv:2106.09685).

The factors are a tree beside the frozen base: W' = W + s A B. Training applies
them inside the block (no gradient of the full matrix is formed); the sampler
merges them once, because it reads the weights many times between updates. A
matrix of few bits cannot hold the sum: there the factors stay beside it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax.models import quantised, trees
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array


def merge(params: dict, lora: dict, scale: float) -> dict:
  """Returns a parameter tree with s A B added to every adapted kernel.

  Call it outside of jit, which would copy all that is passed on.

  Args:
    params: the base tree; leaves without factors are passed on, not copied.
    lora: the factor tree, possibly empty.
    scale: s, config.lora_scale.
  """
  if not lora:
    return params
  made = trees.flatten(kept_beside(params, lora, scale))
  wide = adapted(params, lora)
  if wide:
    made |= trees.flatten(merged_kernels(wide, lora, scale=scale))
  return trees.unflatten(trees.flatten(params) | made)


def beside(params: dict, lora: dict) -> dict:
  """Returns a parameter tree with factors beside their kernels, unmerged.

  A layer that finds them there computes x W + s x A B; nothing is copied.
  """
  return trees.unflatten(trees.flatten(params) | trees.flatten(lora))


def adapted(params: dict, lora: dict) -> dict:
  """Returns the kernels that have factors and can hold their product."""
  return trees.unflatten(
    {
      path: kernel
      for path, kernel in _with_factors(params, lora).items()
      if not isinstance(kernel, quantised.Quantised)
    }
  )


def kept_beside(params: dict, lora: dict, scale: float) -> dict:
  """Returns the kernels of few bits, their factors beside them."""
  factors, found = trees.flatten(lora), {}
  for path, kernel in _with_factors(params, lora).items():
    if isinstance(kernel, quantised.Quantised):
      stem = path.removesuffix("kernel")
      a, b = factors[f"{stem}lora_a"], factors[f"{stem}lora_b"]
      found[path] = kernel.with_factors(a, b, scale)
  return trees.unflatten(found)


def _with_factors(params: dict, lora: dict) -> dict:
  """Returns {path: kernel} of those that have factors."""
  flat = trees.flatten(params)
  stems = [path.rpartition("/")[0] for path in trees.flatten(lora)]
  return {f"{stem}/kernel": flat[f"{stem}/kernel"] for stem in stems}


@functools.partial(jax.jit, static_argnames="scale")
def merged_kernels(kernels: dict, lora: dict, *, scale: float) -> dict:
  """Returns kernels with s A B added; see `adapted` and `merge`."""
  flat = trees.flatten(kernels)
  factors = trees.flatten(lora)
  for path, a in factors.items():
    if not path.endswith("/lora_a"):
      continue
    stem = path.removesuffix("/lora_a")
    b = factors[f"{stem}/lora_b"]
    kernel = f"{stem}/kernel"
    wide = flat[kernel] + scale * jnp.matmul(
      a, b, precision=jax.lax.Precision.HIGHEST
    )
    flat[kernel] = wide.astype(flat[kernel].dtype)
  return trees.unflatten(flat)


def scale_of(alpha: float, rank: int, is_rank_stabilised: bool) -> float:
  """Returns s of W + s A B.

  alpha / r as in Hu et al. 2021, or alpha / sqrt(r), with which the size of
  what is learned does not fall as the rank grows (rsLoRA, Kalajdzievski 2023,
  arXiv:2312.03732).
  """
  return alpha / (rank**0.5 if is_rank_stabilised else rank)


def chosen(factors: dict, targets: tuple[str, ...], stop: int) -> dict:
  """Returns the part of a factor tree that a role has.

  Args:
    factors: of all linear maps from the first layer up.
    targets: Config.lora_targets.
    stop: layers from it on are left out.
  """
  kept = {}
  for path, leaf in trees.flatten(factors).items():
    layer, _, kind = path.rpartition("/")[0].partition("/")
    number = layer.removeprefix("layer_")  # "layers": all, scanned
    is_in = not number.isdigit() or int(number) < stop
    if is_in and (
      not targets or kind in targets or f"{layer}/{kind}" in targets
    ):
      kept[path] = leaf
  if not kept:
    raise UserError(
      f"lora_targets={','.join(targets)}: none of these maps is in the layers "
      f"that train ({', '.join(factors)}; stop_layer={stop}). Change the "
      "layers or the targets."
    )
  return trees.unflatten(kept)


def init(abstract_lora: dict, key: Array) -> dict:
  """Returns fresh factors: A ~ N(0, 1 / fan-in), B = 0, so W' = W.

  Args:
    abstract_lora: factor tree of shapes, from jax.eval_shape of
      transformer.init.
    key: random key.
  """
  flat = trees.flatten(abstract_lora)
  fresh = {}
  for i, (path, leaf) in enumerate(sorted(flat.items())):
    if path.endswith("/lora_b"):
      fresh[path] = jnp.zeros(leaf.shape, leaf.dtype)
    else:
      draw = jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
      fresh[path] = (draw * leaf.shape[-2] ** -0.5).astype(leaf.dtype)
  return trees.unflatten(fresh)
