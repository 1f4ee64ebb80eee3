"""Whether a program fits into what is free of a CPU's memory.

A device says when its memory is used up; a system that runs short of memory
kills the process without a word. So a run on CPUs counts before it compiles:
what the largest program takes beside what is loaded (work.py), against what the
system and the control group have left.
"""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from rlhf_jax.schema import UserError

_GIB = 2**30
_MEMORY = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


def free_bytes() -> float:
  """Returns the bytes that this process may still take; inf if unknown."""
  free = float("inf")
  if _MEMORY.is_file():
    lines = _MEMORY.read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" in sizes:
      free = 1024.0 * float(sizes["MemAvailable"].split()[0])
  if _LIMIT.is_file() and _USED.is_file():
    limit = _LIMIT.read_text().strip()
    if limit != "max":
      free = min(free, float(limit) - float(_USED.read_text()))
  return free


def check(
  phase: str, mesh: Mesh, sizes: dict[str, float], *, is_recomputed: bool
) -> None:
  """Checks that each program of a phase fits, where it runs on CPUs.

  Args:
    phase: its name.
    mesh: where it runs.
    sizes: program -> bytes that it takes of a device while it runs.
    is_recomputed: whether model.remat is set already.

  Raises:
    UserError: one does not fit; with what to change.
  """
  devices = mesh.local_devices
  if devices[0].platform != "cpu":
    return
  free = free_bytes()
  sizes = {name: size * len(devices) for name, size in sizes.items()}
  sizes = {name: size for name, size in sizes.items() if size > free}
  if not sizes:
    return
  found = ", ".join(f"{name} {x / _GIB:.1f} GiB" for name, x in sizes.items())
  less = "Take smaller batches or shorter rows"
  if any("update" in name for name in sizes):
    more = "" if is_recomputed else "Set model.remat=True, "
    less = f"{more}raise microbatches, {less.lower()}"
  raise UserError(
    f"{phase}: about to take {found} beside what is loaded, and "
    f"{free / _GIB:.1f} GiB of memory are free: the system would kill this "
    f"run. {less[0].upper()}{less[1:]}."
  )
