"""Plans count the factors that train, and read those of a PEFT folder."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.models import peft, roles
from rlhf_jax.planning import report
from rlhf_jax.programs import abstract
from tests.planning.tiny_plans import EIGHT, TINY, policy_config, sft_config

pytestmark = pytest.mark.usefixtures("tiny_shape")


def lora_config(**model):
  config = sft_config()
  config.model.update(model)
  config.trainable.mode = "lora"
  config.mesh.update(data=8, fsdp=1)
  return config


def test_chosen_factors_by_hand():
  """q is 32 x 32, v 32 x 16, up 32 x 48, in two layers; rank 2, float32."""
  config = lora_config(lora_rank=2, lora_targets="q_proj,v_proj,up_proj")
  (phase,) = report.phases(config, EIGHT.devices)
  weights = 2 * 2 * ((32 + 32) + (32 + 16) + (32 + 48))
  assert abstract.bytes_of(phase.trained) == 4 * weights
  assert (
    2 * 4 * weights <= abstract.bytes_of(phase.optimizer) < 2.1 * 4 * weights
  )


@pytest.mark.slow
def test_a_reference_without_factors_is_the_base():
  config = policy_config("lora")
  config.model.lora_targets = "q_proj"
  config.init_from = ""
  (phase,) = report.phases(config, EIGHT.devices)
  kernels = {
    id(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      (phase.frozen, phase.trained)
    )
    if "q_proj" in str(path) and "kernel" in str(path)
  }
  assert len(kernels) == 1


def test_a_peft_folder_is_read_when_planning(tmp_path):
  model = dataclasses.replace(TINY, lora_rank=4, lora_targets=("mlp/up_proj",))
  role = roles.Role(model, "lora")
  shapes = jax.eval_shape(
    lambda key: roles.fresh_lora(role, key), jax.random.key(0)
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  peft.write(tmp_path, model, zeros, scale=2.0, base="tiny")
  config = lora_config()
  config.init_from = str(tmp_path)
  (phase,) = report.phases(config, EIGHT.devices)
  assert phase.role.model.lora_targets == ("mlp/up_proj",)
  assert abstract.bytes_of(phase.trained) == 4 * 2 * 4 * (32 + 48)
