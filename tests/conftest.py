"""Shared test set-up: CPU, eight simulated devices, strict broadcasting.

Compilers hardly optimise: most of the time of small tests is compiling. The
proofs, which train for long, turn that off again (tests/proofs/conftest.py).
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}"

import jax  # noqa: E402  (after the environment is set)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)
jax.config.update("jax_disable_most_optimizations", True)
