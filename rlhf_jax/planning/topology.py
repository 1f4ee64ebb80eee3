"""TPU generations and slices: what a chip has, and its devices to compile for.

Figures are those of Google's documentation (cloud.google.com/tpu/docs/v4,
v5e, v5p, v6e, tpu7x), read in November 2026. They are peaks: nothing runs at
them, and nothing here has been measured on a TPU.

  hbm          GiB a chip (v5p's is documented as 95)
  usable       of it, GiB that a program may have: what the compiler names when
               it refuses one (libtpu 0.0.42; of v4, two cores together)
  flops        bf16 FLOP/s a chip
  bandwidth    bytes/s of HBM a chip
  ici          bytes/s a chip can SEND: half of the published bidirectional
               figure over all its links. A collective along one mesh axis may
               reach only some of the links, so times from it are lower bounds.
  host         GiB of DRAM of one host, and the chips it serves

`cpu:N` compiles for N simulated CPU devices; its figures are made up, small,
and only there so that the planner can be tried anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax

from rlhf_jax.parallel import overlap
from rlhf_jax.schema import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip of a generation; see the module docstring for units."""

  generation: str
  hbm: float
  usable: float
  flops: float
  bandwidth: float
  ici: float
  host: float
  chips_per_host: int
  dimensions: int  # of the torus: 2 or 3
  devices_per_chip: int = 1  # JAX devices
  names_cores: bool = False  # Cloud's slice names count cores, not chips


CHIPS = {
  chip.generation: chip
  for chip in (
    Chip("v4", 32, 30.5, 275e12, 1.2e12, 300e9, 400, 4, 3, 1, True),
    Chip("v5e", 16, 15.75, 197e12, 0.82e12, 200e9, 512, 8, 2),
    Chip("v5p", 96, 95.74, 459e12, 2.765e12, 600e9, 417, 4, 3, 1, True),
    Chip("v6e", 32, 31.25, 918e12, 1.638e12, 400e9, 1536, 8, 2),
    Chip("tpu7x", 192, 189.5, 2307e12, 7.38e12, 600e9, 894, 4, 3, 2),
    Chip("cpu", 1, 1, 1e11, 1e10, 1e9, 16, 8, 1),
  )
}


class TopologyError(UserError):
  """A topology that cannot be planned for."""


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: a generation and its chips along each dimension."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """Returns the name that `parse` reads, "v5e:8x8"."""
    return f"{self.chip.generation}:{'x'.join(map(str, self.shape))}"

  @property
  def chips(self) -> int:
    """Returns how many chips the slice has."""
    return math.prod(self.shape)

  @property
  def devices(self) -> int:
    """Returns how many JAX devices the slice has."""
    return self.chips * self.chip.devices_per_chip

  @property
  def cloud_name(self) -> str:
    """Returns Cloud's name of the slice, "v5p-128" for 64 chips of v5p."""
    count = self.chips * (2 if self.chip.names_cores else 1)
    return f"{self.chip.generation}-{count}"

  @property
  def device_bytes(self) -> int:
    """Returns the HBM bytes that one JAX device may use."""
    return int(self.chip.usable * GIB / self.chip.devices_per_chip)


def parse(name: str) -> Topology:
  """Returns the slice of a name such as "v5e:8x8", "v5p:4x4x4" or "cpu:8".

  Raises:
    TopologyError: not such a name.
  """
  generation, _, sizes = name.partition(":")
  if generation not in CHIPS:
    raise TopologyError(
      f"--topology={name}: no such generation. Known: {', '.join(CHIPS)}; "
      "write for example v5e:8x8 or v5p:4x4x4."
    )
  chip = CHIPS[generation]
  example = "x".join(["4"] * chip.dimensions)
  if not re.fullmatch(r"\d+(x\d+)*", sizes):
    raise TopologyError(
      f"--topology={name}: {sizes!r} are no sizes. Write for example "
      f"{generation}:{example}."
    )
  shape = tuple(int(size) for size in sizes.split("x"))
  if len(shape) != chip.dimensions or min(shape) < 1:
    raise TopologyError(
      f"--topology={name}: a slice of {generation} has {chip.dimensions} "
      f"sizes, each >= 1. Write for example {generation}:{example}."
    )
  return Topology(chip, shape)


def has_compiler(topology: Topology) -> bool:
  """Says whether programs for this slice can be compiled on this machine."""
  if topology.chip.generation == "cpu":
    return True
  return importlib.util.find_spec("libtpu") is not None


def compile_devices(topology: Topology) -> list[Any]:
  """Returns devices of the slice to compile for; no TPU is touched.

  Raises:
    TopologyError: the machine has not enough simulated CPU devices, or the
      compiler does not know the slice.
  """
  if topology.chip.generation == "cpu":
    devices = jax.devices("cpu")
    if len(devices) < topology.devices:
      raise TopologyError(
        f"--topology={topology.name}: this process simulates {len(devices)} "
        "CPU devices. Set XLA_FLAGS=--xla_force_host_platform_device_count="
        f"{topology.devices}."
      )
    return devices[: topology.devices]
  from jax.experimental import topologies

  overlap.set_options()
  # libtpu takes a host to have 2 x 2 chips unless it is told otherwise.
  bounds = {"chips_per_host_bounds": [1, 1, 1]} if topology.chips == 1 else {}
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=topology.name, **bounds
    )
  except Exception as error:  # whatever the plugin raises
    raise TopologyError(
      f"--topology={topology.name}: libtpu does not describe it "
      f"({str(error).splitlines()[0]}). Use a slice that exists, or "
      "--analytic."
    ) from error
  if len(found.devices) != topology.devices:
    raise TopologyError(
      f"--topology={topology.name}: libtpu describes {len(found.devices)} "
      f"devices, a run has {topology.devices}. Use --analytic."
    )
  return list(found.devices)
