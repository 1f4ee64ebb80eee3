"""x W and its gradients, against the compiler's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import products


@pytest.mark.parametrize("width, out", [(8, 32), (32, 8), (64, 4)])
def test_value_and_gradients_are_those_of_the_plain_product(width, out):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (16, width))
  weight = jax.random.normal(keys[1], (width, out))
  slopes = jax.random.normal(keys[2], (16, out))

  def both(function):
    y, backward = jax.vjp(function, x, weight)
    return y, *backward(slopes)

  ours = jax.jit(lambda: both(products.product))()
  plain = jax.jit(lambda: both(jnp.matmul))()
  for a, b in zip(ours, plain, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_a_batch_sums_each_of_its_rows_alone_and_in_the_dtype_asked_for():
  x = jnp.arange(12, dtype=jnp.bfloat16).reshape(2, 3, 2)
  slopes = jnp.ones((2, 3, 1), jnp.bfloat16)
  found = products.rows_contracted(x, slopes, dtype="float32")
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found[..., 0], [[6.0, 9.0], [24.0, 27.0]])


@pytest.mark.parametrize("platform, copies", [("cpu", 1), ("tpu", 0)])
def test_only_a_cpu_gets_the_copy(platform, copies):
  x, slopes = jnp.ones((16, 8)), jnp.ones((16, 8))
  traced = jax.jit(products.rows_contracted).trace(x, slopes)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count("optimization_barrier") == copies
