"""x W whose gradient in W suits the CPU.

XLA's product on a CPU that contracts the rows of both sides, x^T dy, walks
through x in strides: slower than the same product of a transposed copy, most
so where dy is narrow (LoRA's factors) or wide (unembeddings). The barrier keeps
the compiler from undoing the copy. Other platforms get the plain product.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array

NARROW = 4  # times as wide an x as dy: the product is computed as (dy^T x)^T


@jax.custom_vjp
def product(x: Array, weight: Array) -> Array:
  """Returns x W, [M, out].

  Args:
    x: [M, in].
    weight: [in, out], of the same dtype.
  """
  return jnp.matmul(x, weight)


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
  return jnp.matmul(x, weight), (x, weight)


def _backward(kept: tuple[Array, Array], slopes: Array) -> tuple[Array, Array]:
  x, weight = kept
  return jnp.matmul(slopes, weight.T), rows_contracted(x, slopes)


product.defvjp(_forward, _backward)


def rows_contracted(x: Array, slopes: Array, dtype: str | None = None) -> Array:
  """Returns x^T dy, [..., in, out]: the gradient of `product` in its weight.

  Args:
    x: [..., M, in].
    slopes: dy, [..., M, out].
    dtype: of the sums and of the result; None for that of the factors.
  """
  return jax.lax.platform_dependent(
    x,
    slopes,
    cpu=functools.partial(_of_a_copy, dtype=dtype),
    default=functools.partial(_plain, dtype=dtype),
  )


def _turned(x: Array) -> Array:
  return jnp.swapaxes(x, -1, -2)


def _plain(x: Array, slopes: Array, dtype: str | None) -> Array:
  return jnp.matmul(_turned(x), slopes, preferred_element_type=dtype)


def _of_a_copy(x: Array, slopes: Array, dtype: str | None) -> Array:
  """Returns x^T dy by way of a transposed copy."""
  keep = jax.lax.optimization_barrier
  if slopes.shape[-1] * NARROW <= x.shape[-1]:
    return _turned(keep(_plain(slopes, x, dtype)))
  copy = keep(_turned(x))
  return jnp.matmul(copy, slopes, preferred_element_type=dtype)
