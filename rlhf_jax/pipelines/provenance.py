"""What a run was made with: command, versions, seeds, data, machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax

import rlhf_jax
from rlhf_jax.data.dataset import Data
from rlhf_jax.programs.pipeline import Job

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "tokenizers",
)
SHOWN = ("jax", "jaxlib", "flax")


def command() -> list[str]:
  """Returns the command of this process, as it is typed."""
  return [
    os.path.basename(sys.executable),
    "-m",
    "rlhf_jax.main",
    *sys.argv[1:],
  ]


def is_smoke() -> bool:
  """Says whether this process runs a short trial, see smoke.py."""
  return "--smoke" in sys.argv


def packages() -> dict[str, str]:
  """Returns package -> version."""
  return {name: metadata.version(name) for name in PACKAGES}


def hardware() -> str:
  """Returns devices, processor, memory and system in a line."""
  devices = jax.devices()
  kinds = " / ".join(sorted({device.device_kind for device in devices}))
  platform_name = devices[0].platform
  kinds += "" if kinds == platform_name else f" ({platform_name})"
  parts = [f"{len(devices)} x {kinds}"]
  name = _first_value("/proc/cpuinfo", "model name")
  cores = os.cpu_count()
  parts.append(f"{cores} CPU cores{f' ({name})' if name else ''}")
  kib = _first_value("/proc/meminfo", "MemTotal").partition(" ")[0]
  if kib.isdigit():
    parts.append(f"{int(kib) / 2**20:.0f} GiB of memory")
  parts.append(f"{platform.system()} {platform.machine()}")
  return ", ".join(parts)


def _first_value(path: str, name: str) -> str:
  """Returns what follows "name:" in a file of /proc; "" where there is none."""
  try:
    lines = Path(path).read_text().splitlines()
  except OSError:  # not Linux
    return ""
  found = (line for line in lines if line.partition(":")[0].strip() == name)
  return next(found, "").partition(":")[2].strip()


def describe_data(data: Data) -> str:
  """Returns a Data section in words: "A of asset:x, 'Review:' + 3 tokens"."""
  parts = [f"{data.split} of {data.source}" if data.split else data.source]
  if data.limit:
    parts.append(f"first {data.limit} records")
  if data.prefix_tokens:
    parts.append(f"{data.prompt!r} and the first {data.prefix_tokens} tokens")
  return ", ".join(parts)


def facts(jobs: Mapping[str, Job], seed: int) -> list[tuple[str, str]]:
  """Returns (name, value) of what a report says of its run.

  Args:
    jobs: its stages by name.
    seed: of the run.
  """
  prompts, training = {}, {}
  for name, job in jobs.items():
    settings = job.settings
    for field, into in (("prompts", prompts), ("data", training)):
      data = getattr(settings, field, None)
      if isinstance(data, Data) and data.source:
        into[name] = describe_data(data)
  seeds = ", ".join(f"{name} {job.settings.seed}" for name, job in jobs.items())
  versions = packages()
  return [
    *((f"data, {name}", text) for name, text in training.items()),
    *((f"prompts, {name}", text) for name, text in prompts.items()),
    ("seeds", f"{seed} ({seeds})"),
    ("command", shlex.join(command())),
    (
      "versions",
      f"rlhf_jax {rlhf_jax.__version__}, "
      + ", ".join(f"{name} {versions[name]}" for name in SHOWN)
      + f", Python {platform.python_version()}",
    ),
    ("hardware", hardware()),
  ]
