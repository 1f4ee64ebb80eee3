"""Where files that were fetched, and what was compiled, are kept."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def directory() -> Path:
  """Returns $RLHF_JAX_CACHE, or ~/.cache/rlhf_jax where that is not set."""
  folder = os.environ.get("RLHF_JAX_CACHE", "")
  if not folder:
    return Path.home() / ".cache" / "rlhf_jax"
  return Path(folder).expanduser()


def keep_compiled() -> Path:
  """Keeps compiled programs for the next process; returns their folder.

  That is directory()/xla, unless jax_compilation_cache_dir (in the
  environment JAX_COMPILATION_CACHE_DIR) is set: then all is left as it is.

  Raises:
    OSError: the folder cannot be made.
  """
  import jax

  given = jax.config.jax_compilation_cache_dir
  if given:
    return Path(given)
  folder = directory() / "xla"
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  return folder


def keep_by_default() -> None:
  """Keeps compiled programs where nobody set anything up, as `lab` does.

  Where the folder cannot be made it says so and goes on.
  JAX_ENABLE_COMPILATION_CACHE=0 in the environment keeps none.
  """
  import jax

  if not jax.config.jax_enable_compilation_cache:
    return
  try:
    keep_compiled()
  except OSError as error:
    warnings.warn(
      f"compiled programs are not kept for the next time: {error}. Set "
      "RLHF_JAX_CACHE to a folder that can be written.",
      stacklevel=3,
    )
