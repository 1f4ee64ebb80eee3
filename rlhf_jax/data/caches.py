"""Where files that were fetched, and what was compiled, are kept."""

from __future__ import annotations

import os
from pathlib import Path


def directory() -> Path:
  """Returns $RLHF_JAX_CACHE, or ~/.cache/rlhf_jax where that is not set."""
  folder = os.environ.get("RLHF_JAX_CACHE", "")
  if not folder:
    return Path.home() / ".cache" / "rlhf_jax"
  return Path(folder).expanduser()
