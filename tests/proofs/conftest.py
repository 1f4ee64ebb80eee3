"""Proofs train for thousands of steps: optimised programs pay."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def optimised():
  jax.config.update("jax_disable_most_optimizations", False)
  jax.clear_caches()
  yield
  jax.config.update("jax_disable_most_optimizations", True)
  jax.clear_caches()  # resumed runs are compared bit for bit
