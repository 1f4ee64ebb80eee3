"""What sampling and policy-gradient training add to check.py.

Settings of one section against those of another, before a model is loaded.
"""

from __future__ import annotations

from typing import Any

import jax

from rlhf_jax import generate
from rlhf_jax.algorithms.policy_gradient import epochs, packing
from rlhf_jax.pipelines import actors, methods, verify
from rlhf_jax.pipelines.config import ConfigError, Data

DEVICES = "the {} devices along mesh.data x mesh.fsdp"


def check_method(config: Any, found: dict, prefix: str) -> Any:
  """Returns the settings of the policy-gradient method, checked."""
  update, samples = found["epochs"], found["generate"].num_samples
  method = methods.read(config.algorithm, samples, prefix)
  methods.check(
    method,
    num_samples=samples,
    kl_coefficient=found["shaping"].kl_coefficient,
    steps_per_rollout=update.epochs * update.minibatches,
    pretrain_steps=found["value"].pretrain_steps,
    prefix=prefix,
  )
  methods.check_importance(found["importance"], found["model"].dtype, prefix)
  verify.read(config.verifier, prefix)
  return method.config


def check_minibatches(
  update: epochs.Config,
  packed: packing.Config,
  answers: int,
  ways: int,
  prefix: str,
) -> None:
  """Checks that each microbatch of a rollout divides among the devices.

  Args:
    update: section `epochs`.
    packed: section `packing`.
    answers: of a rollout.
    ways: devices that split a batch.
    prefix: of the stage, for messages.
  """
  rows, what = answers, "schedule.batch_size x generate.num_samples"
  if packed.row_tokens:
    rows, what = packed.row_multiple, "packing.row_multiple"
  parts = update.minibatches * update.microbatches
  if rows % (parts * ways):
    split = f" x {DEVICES.format(ways)}" if ways > 1 else ""
    raise ConfigError(
      f"config.{prefix}epochs: minibatches={update.minibatches} x "
      f"microbatches={update.microbatches}{split} = {parts * ways} must divide "
      f"{what} = {rows}. Change one of them."
    )


def check_batches(config: Any, found: dict, ways: int, prefix: str) -> None:
  """Checks minibatches, the KL controller's horizon and the ptx text.

  Args:
    config: of the stage.
    found: its sections as dataclasses.
    ways: devices that split a batch.
    prefix: of the stage, for messages.
  """
  shape, update = found["shaping"], found["epochs"]
  answers = found["schedule"].batch_size * found["generate"].num_samples
  check_minibatches(update, found["packing"], answers, ways, prefix)
  least = answers * shape.kl_clip
  if shape.kl_controller == "adaptive" and shape.kl_horizon <= least:
    raise ConfigError(
      f"config.{prefix}shaping.kl_horizon={shape.kl_horizon:g}: must be more "
      f"than kl_clip x {answers} answers a step = {least:g}, or the "
      "coefficient could turn negative. Raise it."
    )
  parts = update.minibatches * update.microbatches
  rows = config.ptx_batch_size
  if found["algorithm"].ptx_coefficient > 0.0 and rows % (parts * ways):
    raise ConfigError(
      f"config.{prefix}ptx_batch_size={rows}: must be a multiple of "
      f"epochs.minibatches x epochs.microbatches = {parts}, times "
      f"{DEVICES.format(ways)}."
    )


def check_sampling(
  prompts: int, settings: generate.Config, prefix: str, field: str
) -> None:
  """Checks that samples divide into portions that are decoded together.

  Args:
    prompts: of one batch.
    settings: of sampling.
    prefix: of the stage, for messages.
    field: that gives the number of prompts, for the message.
  """
  rows, size = prompts * settings.num_samples, settings.batch_size
  if size is not None and (size < 1 or rows % size):
    raise ConfigError(
      f"config.{prefix}generate.batch_size={size}: must divide {field} x "
      f"num_samples = {rows}. Set None for all rows at once."
    )


def check_source_of_samples(
  found: dict, mesh: jax.sharding.Mesh, prefix: str
) -> None:
  """Checks how a pipeline of sampled.py samples.

  Args:
    found: its sections as dataclasses.
    mesh: where it runs.
    prefix: of the stage, for messages.
  """
  section, field = found["schedule"], "schedule.batch_size"
  if "rounds" in found:
    section, field = found["rounds"], "rounds.batch_size"
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if section.batch_size % ways:
    raise ConfigError(
      f"config.{prefix}{field}={section.batch_size}: not a multiple of {ways}, "
      "the devices along mesh.data x mesh.fsdp. Change one of them."
    )
  actors.check_sampling(found["generate"], mesh.size)
  check_sampling(section.batch_size, found["generate"], prefix, field)


def check_room(data: Data, settings: generate.Config, name: str) -> None:
  """Checks that rows have room for a prompt beside the answer."""
  if data.max_length <= settings.max_new_tokens:
    raise ConfigError(
      f"config.{name}.max_length={data.max_length}: leaves no room for a "
      f"prompt beside generate.max_new_tokens={settings.max_new_tokens}. Raise "
      "max_length or lower max_new_tokens."
    )
