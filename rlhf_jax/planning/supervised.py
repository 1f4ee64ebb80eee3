"""SFT and reward models as phases: one update, and what goes before it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from rlhf_jax import generate, optimizer
from rlhf_jax.algorithms import reward as reward_algorithm
from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.models import heads, roles
from rlhf_jax.pipelines import (
  build,
  features,
  reward,
  sft,
  stages,
  supervised,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  optimizer_section,
  section,
)
from rlhf_jax.planning import abstract
from rlhf_jax.planning.programs import (
  Devices,
  Phase,
  Program,
  is_read_whole,
  role_of,
  row_length,
  sampling,
  total_steps,
)
from rlhf_jax.planning.work import Passes


def make_transform(config: Any, prefix: str, schedule: Schedule) -> Any:
  """Returns the optimizer of a stage's section `optimizer`."""
  name = f"{prefix}optimizer"
  settings = optimizer_section(config.optimizer, name, total_steps(schedule))
  return optimizer.make_optimizer(settings)


def sft_stage(
  config: Any, base: build.Base, mesh: abstract.AnyMesh, prefix: str
) -> stages.Stage:
  """Returns the finished SFT stage of a configuration."""
  role = role_of(base, config, prefix)
  if role.trainable == "head":
    raise ConfigError(
      f"config.{prefix}trainable.mode='head': a policy has no head. Set 'full' "
      "or 'lora'."
    )
  return abstract.stage(base, role, mesh)


def sft_phase(config: Any, devices: Devices, prefix: str = "") -> Phase:
  """Returns the phase of an SFT configuration."""
  mesh = abstract.make_mesh(config, devices, prefix)
  base = abstract.base(
    section(Model, config.model, f"{prefix}model"), mesh, devices
  )
  data = section(Data, config.data, f"{prefix}data")
  loss = section(sft_algorithm.Config, config.loss, f"{prefix}loss")
  schedule = section(Schedule, config.schedule, f"{prefix}schedule")
  tx = make_transform(config, prefix, schedule)
  stage = sft_stage(config, base, mesh, prefix)
  role = stage.role
  params, frozen = roles.split(role, stage.variables)
  state = abstract.state(
    mesh, functools.partial(supervised.initial_state, optimizer_=tx), params
  )
  rows, length = schedule.batch_size, row_length(data)
  abstract.check_rows(
    mesh, rows, f"config.{prefix}schedule.batch_size", loss.microbatches
  )
  batch = abstract.token_batch(mesh, rows, length, data.pack)
  update = Program(
    name="update",
    function=sft.make_update(role, loss, tx, length),
    arguments=lambda flow: ((state, frozen, batch, abstract.key(mesh)), {}),
    rows=rows,
    work=Passes(mesh).training(
      role,
      abstract.bytes_of(state.params),
      rows,
      length,
      length,
      parts=loss.microbatches,
    ),
    donates=0,
  )
  programs = [update]
  if config.samples:
    programs += sampling(
      mesh,
      role,
      state.params,
      frozen,
      section(generate.Config, config.generate, f"{prefix}generate"),
      section(Data, config.sample_prompts, f"{prefix}sample_prompts"),
      config.samples,
    )
  return Phase(
    name="sft",
    mesh=mesh,
    model=base.config,
    trained=state.params,
    frozen=(base.params, frozen),
    optimizer=state.opt_state,
    programs=tuple(programs),
    step=("update",),
    is_read_whole=is_read_whole(base),
  )


def reward_stage(
  config: Any,
  base: build.Base,
  mesh: abstract.AnyMesh,
  prefix: str,
  start: Any = None,
) -> stages.Stage:
  """Returns the finished reward stage of a configuration.

  Args:
    config: of the reward model.
    base: the model underneath.
    mesh: where.
    prefix: of the stage, for messages.
    start: configuration of the SFT stage it starts from; None for one that is
      finished (init_from), or the base.
  """
  role = role_of(
    base,
    config,
    prefix,
    stop_layer=config.stop_layer if config.stop_layer else None,
    head=section(heads.Config, config.head, f"{prefix}head"),
  )
  whole = None
  if start is not None:
    whole = abstract.merged(sft_stage(start, base, mesh, "sft."))
  elif config.init_from:
    plain = roles.Role(dataclasses.replace(base.config, lora_rank=0))
    whole = abstract.stage(base, plain, mesh).variables["params"]
  return abstract.stage(base, role, mesh, whole)


def reward_phase(
  config: Any,
  devices: Devices,
  prefix: str = "",
  start: Any = None,
  name: str = "reward",
) -> Phase:
  """Returns the phase of a reward configuration; see `reward_stage`."""
  mesh = abstract.make_mesh(config, devices, prefix)
  base = abstract.base(
    section(Model, config.model, f"{prefix}model"), mesh, devices
  )
  loss = section(reward_algorithm.Config, config.loss, f"{prefix}loss")
  schedule = section(Schedule, config.schedule, f"{prefix}schedule")
  length = row_length(section(Data, config.data, f"{prefix}data"))
  tx = make_transform(config, prefix, schedule)
  stage = reward_stage(config, base, mesh, prefix, start)
  role, rows = stage.role, schedule.batch_size
  abstract.check_rows(
    mesh, rows, f"config.{prefix}schedule.batch_size", loss.microbatches
  )
  params, frozen = roles.split(role, stage.variables)
  state = abstract.state(
    mesh, functools.partial(supervised.initial_state, optimizer_=tx), params
  )
  is_head = role.trainable == "head"
  width = abstract.feature_width(role) if is_head else 0
  batch = abstract.preference_batch(mesh, rows, length, width)
  used = {} if is_head else frozen
  update = Program(
    name="update",
    function=reward.make_update(role, loss, tx),
    arguments=lambda flow: ((state, used, batch, abstract.key(mesh)), {}),
    rows=rows,
    work=Passes(mesh).training(
      role,
      abstract.bytes_of(state.params),
      2 * rows,
      length,
      0,
      parts=loss.microbatches,
      is_lower_known=is_head,
    ),
    donates=0,
  )
  before = [_features(mesh, stage, length)] if is_head else []
  # The weights it starts from stay beside the ones that train.
  is_own = start is not None or bool(config.init_from)
  return Phase(
    name=name,
    mesh=mesh,
    model=base.config,
    trained=state.params,
    frozen=(base.params, stage.variables if is_own else frozen),
    optimizer=state.opt_state,
    programs=(*before, update),
    step=("update",),
    is_read_whole=is_read_whole(base),
  )


def _features(
  mesh: abstract.AnyMesh, stage: stages.Stage, length: int
) -> Program:
  """Returns the pass over rows whose trunk is frozen, done once for all."""
  rows = features.FEATURE_ROWS
  text = abstract.token_batch(mesh, rows, length, False)
  return Program(
    name="features",
    function=features.make_features(stage.role.model, stage.role),
    arguments=lambda flow: (
      (stage.variables["params"], text.tokens, text.valid_mask),
      {},
    ),
    rows=rows,
    work=Passes(mesh).forward([stage.role], rows, length, 0),
  )
