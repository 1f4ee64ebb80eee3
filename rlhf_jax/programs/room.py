"""Whether a program fits into what is free of a CPU's memory.

A device says when its memory is used up; a system that runs short of memory
kills the process without a word. So a run on CPUs counts before it compiles:
what each program takes beside what is loaded (work.py), against what the system
and the control group have left. It is a warning and no refusal: rows are
counted as long as they may be, and one by one where a run lays several into
one.
"""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

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


def warning(mesh: Mesh, sizes: dict[str, float], *, is_recomputed: bool) -> str:
  """Returns which programs may not fit and what to change; "" where all do.

  Args:
    mesh: where they run; off a CPU nothing is said.
    sizes: program -> bytes that it takes of a device while it runs, at most.
    is_recomputed: whether model.remat is set already.
  """
  devices = mesh.local_devices
  if devices[0].platform != "cpu":
    return ""
  free = free_bytes()
  sizes = {name: size * len(devices) for name, size in sizes.items()}
  sizes = {name: size for name, size in sizes.items() if size > free}
  if not sizes:
    return ""
  found = ", ".join(f"{name} {x / _GIB:.1f} GiB" for name, x in sizes.items())
  less = "take smaller batches or shorter rows"
  if any("update" in name for name in sizes):
    more = "" if is_recomputed else "set model.remat=True, "
    less = (
      f"{more}raise microbatches (loss., epochs. or accumulation.microbatches: "
      f"`python -m rlhf_jax.explain --only=microbatches`), {less}"
    )
  return (
    f"at most {found} beside what is loaded (with every row as long as may be, "
    f"and no two in one), and {free / _GIB:.1f} GiB of memory are free: the "
    f"system may kill this run. If so: {less}."
  )
