"""The data of an experiment, read once before a model is loaded.

Files that are not there, and records that are broken, with file and line.

Left out: TFDS sources and assets that must be fetched; the stages say what is
wrong with them when they read them.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.data import formats, sources
from rlhf_jax.pipelines import pretrained
from rlhf_jax.pipelines.config import ConfigError, Data


def check_data(config: Any, found: dict, prefix: str) -> None:
  """Checks the sources of a stage and reads its files once.

  Args:
    config: of the stage.
    found: its sections as dataclasses.
    prefix: of the stage, for messages.

  Raises:
    ConfigError, DataError, AssetError: value, rule and remedy.
  """
  for key, data in _used_data(config, found):
    check_source(data.source, f"{prefix}{key}")
    if not data.source.startswith(("asset:", sources.TFDS_PREFIX)):
      status = os.stat(os.path.expanduser(data.source))
      _check_records(data.source, data.format, status.st_mtime_ns)


def _used_data(config: Any, found: dict) -> Iterator[tuple[str, Data]]:
  """Yields the Data sections that the stage will read."""
  first = "data" if "data" in found else "prompts"
  yield first, found[first]
  for key in ("validation", "heldout"):
    if key in found and found[key].source:
      yield key, found[key]
  if "sample_prompts" in found and config.samples:
    yield "sample_prompts", found["sample_prompts"]
  if "ptx" in found and found["algorithm"].ptx_coefficient > 0.0:
    yield "ptx", found["ptx"]


def check_source(source: str, name: str) -> None:
  """Raises an error unless the source of a Data section can be there.

  Args:
    source: asset:NAME, tfds:NAME:SPLIT or a path.
    name: of the section, for the message.
  """
  field = f"config.{name}.source"
  if not source:
    raise ConfigError(
      f"{field} is empty: name a file (--{field}=my.jsonl), tfds:NAME:SPLIT "
      "or asset:NAME."
    )
  if source.startswith("asset:"):
    pretrained.check_asset(source, field)
  elif not source.startswith(sources.TFDS_PREFIX):
    path = Path(source).expanduser()
    if not path.is_file():
      is_folder = "is a folder, not a file" if path.is_dir() else "no such file"
      near = {
        other.name.partition(".")[0]: other.name
        for other in path.parent.glob("*.jsonl*")
      }
      stem = path.name.partition(".")[0]
      alike = difflib.get_close_matches(stem, near, 1)
      hint = f" Did you mean {near[alike[0]]!r}?" if alike else ""
      raise ConfigError(
        f"{field}={source!r}: {is_folder}.{hint} Give the path of a .jsonl or "
        ".jsonl.gz file."
      )


@functools.lru_cache(maxsize=64)
def _check_records(source: str, format: str, changed: int) -> None:
  """Reads a file once, so that a broken line is found before a model loads."""
  del changed
  formats.load_and_count(source, format)
