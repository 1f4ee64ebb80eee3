"""How XLA compiles a training step where its defaults do not suit."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh

_ORDERS = (  # the same wish, as versions of jaxlib spell it
  {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
  {"xla_cpu_enable_concurrency_optimized_scheduler": False},
)


def for_training(mesh: Any = None) -> dict[str, Any] | None:
  """Returns `compiler_options` of jax.jit for a training step.

  XLA orders a program for the CPU so that much of it may run at once, and then
  holds a third more of a backward pass than it must. A step of all layers is no
  faster for it, since each of its products fills all cores.

  Args:
    mesh: where the step runs, or is planned; None for where JAX computes by
      default.

  Returns:
    None where the compiler's defaults suit, which is anywhere but on a CPU.
  """
  if isinstance(mesh, AbstractMesh):
    return None
  platform = jax.default_backend()
  if mesh is not None:
    platform = mesh.devices.flat[0].platform
  return _least_memory() if platform == "cpu" else None


@functools.cache
def _least_memory() -> dict[str, Any] | None:
  """Returns the options that this jaxlib has a name for."""
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    nothing = jax.jit(lambda: 0).lower()
  for options in _ORDERS:
    try:
      nothing.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      if "No such compile option" not in str(error):
        raise
    else:
      return options
  return None
