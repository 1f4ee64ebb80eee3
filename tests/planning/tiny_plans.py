"""Configurations of a tiny model, and how plans of them are read."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from rlhf_jax.models import shapes
from rlhf_jax.pipelines import defaults
from rlhf_jax.planning import topology

ROOT = Path(__file__).parents[2]
TINY = dataclasses.replace(
  shapes.SHAPES["llama3_8b"],
  vocab_size=64,
  width=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  mlp_width=48,
  max_length=64,
)
LAYER = 32 * 8 * 2 * (4 + 2) + 3 * 32 * 48 + 2 * 32
PARAMETERS = 2 * LAYER + 2 * 64 * 32 + 32
LAYER_FACTORS = 2 * (64 + 2 * 48 + 64 + 3 * 80)  # of rank 2
EIGHT = topology.parse("cpu:8")


def sft_config(**mesh):
  config = defaults.sft()
  config.model.update(source="shape:tiny", scan_layers=True, remat=True)
  config.data.max_length = 24
  config.schedule.update(batch_size=16, steps=3)
  config.optimizer.schedule = "constant"
  config.mesh.update(data=1, fsdp=-1, **mesh)
  return config


def policy_config(mode):
  config = defaults.policy()
  rank = 2 * (mode == "lora")
  config.model.update(source="shape:tiny", scan_layers=True, lora_rank=rank)
  config.trainable.mode = config.value.mode = mode
  config.prompts.max_length = 24
  config.generate.max_new_tokens = 8
  config.schedule.update(batch_size=16, steps=3)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  return config


def line_of(found, name):
  return next(line for line in found.lines if line.program == name)


def close(found, expected):
  assert found == pytest.approx(expected, rel=0.15)


def load(name, *arguments):
  spec = importlib.util.spec_from_file_location("recipe", ROOT / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)
