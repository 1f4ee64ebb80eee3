"""Finished tiny stages, shared by all tests of the pipelines.

Each is a folder that one pipeline filled. Compiled programs are kept for these
tests only, because a second run of a stage compiles the same ones; with
JAX_COMPILATION_CACHE_DIR they are kept there, for further sessions.
"""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rlhf_jax import pipelines
from tests.pipelines import tiny_runs


@pytest.fixture(scope="package")
def compile_cache(tmp_path_factory):
  """Keeps compiled programs in a folder; returns it, for subprocesses too."""
  folder = tmp_path_factory.mktemp("cache")
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


@pytest.fixture(scope="package")
def files(compile_cache, tmp_path_factory):
  del compile_cache
  return tiny_runs.make_files(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="package")
def sft_full(files):
  folder = files.root / "sft_full"
  pipelines.run(tiny_runs.sft_config(files, "full"), folder)
  return folder


@pytest.fixture(scope="package")
def sft_lora(files):
  folder = files.root / "sft_lora"
  pipelines.run(tiny_runs.sft_config(files, "lora"), folder)
  return folder


def _reward(files, mode, start, samples):
  folder = files.root / f"reward_{mode}"
  config = tiny_runs.reward_config(files, mode, start, samples)
  pipelines.run(config, folder)
  return folder


@pytest.fixture(scope="package")
def reward_head(files, sft_lora):
  return _reward(files, "head", "", sft_lora / "samples.npz")


@pytest.fixture(scope="package")
def reward_lora(files, sft_lora):
  return _reward(files, "lora", sft_lora, sft_lora / "samples.npz")


@pytest.fixture(scope="package")
def reward_full(files, sft_full):
  return _reward(files, "full", sft_full, sft_full / "samples.npz")


@pytest.fixture(scope="package")
def records():
  """Returns {folder name: Record}, filled by `run_policy`."""
  return {}


@pytest.fixture(scope="package")
def run_policy(records):
  """Returns pipelines.run that also fills a Record."""

  def run(config, folder):
    record = records.setdefault(folder.name, tiny_runs.Record())
    with pytest.MonkeyPatch.context() as patch:
      record.watch(patch)
      return pipelines.run(config, folder)

  return run


@pytest.fixture(scope="package")
def policy_lora(files, sft_lora, reward_head, run_policy):
  """20 rollouts, the first 2 of them for the critic alone."""
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.schedule.steps = 18
  run_policy(config, files.root / "policy_lora")
  return files.root / "policy_lora"


@pytest.fixture(scope="package")
def policy_full(files, sft_full, reward_full, run_policy):
  """4 rollouts, all four roles with weights of their own, and ptx text."""
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  run_policy(config, files.root / "policy_full")
  return files.root / "policy_full"
