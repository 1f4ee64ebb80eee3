"""Shared test set-up: CPU, eight simulated devices, strict broadcasting.

Compilers hardly optimise: most of the time of small tests is compiling. The
proofs, which train for long, turn that off again (tests/proofs/conftest.py).
"""

import importlib.metadata
import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = ["--xla_force_host_platform_device_count=8"]
_MINOR = int(importlib.metadata.version("jaxlib").split(".")[1])
if _MINOR < 11:  # compiles in two thirds of the time; unknown to later ones
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
  if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

import jax  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)
jax.config.update("jax_disable_most_optimizations", True)

# Their PPO runs take longer than their tests: one worker has all of them.
SHARE_RUNS = tuple(
  f"tests/pipelines/test_{name}.py"
  for name in (
    "any_step",
    "closing",
    "further_policy",
    "old_runs",
    "pipeline_policy",
    "pipeline_resume",
    "pipeline_sharded",
  )
)


class Scheduling(LoadFileScheduling):
  """Whole files to a worker, and those that share runs to the same one."""

  def _split_scope(self, nodeid):
    file = super()._split_scope(nodeid)
    return "finished runs" if file in SHARE_RUNS else file


@pytest.fixture(autouse=True, scope="session")
def nothing_is_kept():
  """lab.load keeps programs by itself; tests say where, if anywhere."""
  from rlhf_jax.data import caches

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(caches, "keep_by_default", lambda: None)
    yield


@pytest.fixture
def terminal():
  """SIGHUP counts here and in children, also where nohup made it ignored."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


def pytest_xdist_make_scheduler(config, log):
  return Scheduling(config, log)
