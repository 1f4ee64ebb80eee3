"""Compiled programs kept in a folder while some tests run.

With JAX_COMPILATION_CACHE_DIR they are kept there, for further sessions.
"""

import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def kept(folder):
  """Keeps compiled programs in a folder; yields it, for subprocesses too."""
  settings = {
    "jax_compilation_cache_dir": os.environ.get(
      "JAX_COMPILATION_CACHE_DIR", str(folder / "xla")
    ),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
  }
  before = {name: jax.config.values[name] for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield folder
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
