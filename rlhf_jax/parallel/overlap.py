"""Compiler options by which a TPU computes while weights are on their way.

Without them the compiler (libtpu 0.0.42) leaves every all-gather of a step
synchronous; with them those that have a matrix product to hide behind run
beside it ("async collective fusion"). `plan` counts both. They are the ones
that MaxText publishes for v5e and v5p. Tried and left out, since nothing
changed in the compiled programs: the options for asynchronous
reduce-scatters, and for all-gathers over three dimensions of the torus.

libtpu reads them once, when JAX first looks for a device. An option that
LIBTPU_INIT_ARGS has already stays as it is; RLHF_JAX_TPU_OVERLAP=off adds none.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from rlhf_jax.schema import UserError

SWITCH = "RLHF_JAX_TPU_OVERLAP"
READ_BY_LIBTPU = "LIBTPU_INIT_ARGS"
OPTIONS = (
  "--xla_enable_async_all_gather=true",
  "--xla_tpu_enable_async_collective_fusion=true",
  "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
  "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
  "--xla_tpu_overlap_compute_collective_tc=true",
)


def set_options(environment: MutableMapping[str, str] = os.environ) -> None:
  """Adds the options to what libtpu will read; call it before JAX does.

  Raises:
    UserError: the switch is neither on nor off.
  """
  switch = environment.get(SWITCH, "on")
  if switch not in ("on", "off"):
    raise UserError(f"{SWITCH}={switch!r}: write on or off, or unset it.")
  if switch == "off":
    return
  given = environment.get(READ_BY_LIBTPU, "")
  names = {option.partition("=")[0] for option in given.split()}
  more = [o for o in OPTIONS if o.partition("=")[0] not in names]
  environment[READ_BY_LIBTPU] = " ".join([*given.split(), *more])
