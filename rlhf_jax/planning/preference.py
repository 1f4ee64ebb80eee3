"""Preference optimisation as a phase: reference log-probabilities, update."""

from __future__ import annotations

import functools
from typing import Any

from rlhf_jax.algorithms.preference import registry
from rlhf_jax.models import roles
from rlhf_jax.pipelines import preference, supervised
from rlhf_jax.pipelines.config import Model, section
from rlhf_jax.planning import abstract, origins
from rlhf_jax.planning.programs import (
  Devices,
  Phase,
  Program,
  is_read_whole,
  row_length,
)
from rlhf_jax.planning.supervised import make_transform
from rlhf_jax.planning.work import Passes


def preference_phase(
  config: Any, devices: Devices, prefix: str = "", before: Any = None
) -> Phase:
  """Returns the phase of a preference configuration.

  A row may be all answer: no target is left out of the count.

  Args:
    config: of the pipeline.
    devices: see programs.Devices.
    prefix: of the stage, for messages.
    before: the rlhf configuration it is part of, or None.
  """
  mesh = abstract.make_mesh(config, devices, prefix)
  base = abstract.base(
    section(Model, config.model, f"{prefix}model"), mesh, devices
  )
  settings = preference.read_settings(config)
  tx = make_transform(config, prefix, settings.schedule)
  stage = origins.start_of(config, base, mesh, prefix, before)
  role, length = stage.role, row_length(settings.data)
  params, frozen = roles.split(role, stage.variables)
  state = abstract.state(
    mesh, functools.partial(supervised.initial_state, optimizer_=tx), params
  )
  pairs, parts = settings.schedule.batch_size, settings.update.microbatches
  abstract.check_rows(mesh, pairs, f"config.{prefix}schedule.batch_size", parts)
  is_unpaired = settings.method.name in registry.UNPAIRED
  has_reference = settings.method.name not in registry.REFERENCE_FREE
  batch = abstract.preference_batch(
    mesh, pairs, length, 0, has_reference=has_reference
  )
  passes, programs = Passes(mesh), []
  if has_reference:
    text = abstract.token_batch(mesh, pairs, length, False)
    programs.append(
      Program(
        name="reference",
        function=preference.make_reference(role, length),
        arguments=lambda flow: ((params, frozen, text), {}),
        rows=pairs,
        work=passes.forward([role], pairs, length, length),
      )
    )
  work = passes.training(
    role,
    abstract.bytes_of(state.params),
    pairs if is_unpaired else 2 * pairs,
    length,
    length,
    parts=parts,
  )
  if is_unpaired:  # the mismatched answers, without gradients
    work += passes.forward([role], pairs, length, length)
  update = Program(
    name="update",
    function=preference.make_update(role, settings, tx, length),
    arguments=lambda flow: ((state, frozen, batch, abstract.key(mesh)), {}),
    rows=pairs,
    work=work,
    donates=0,
  )
  notes = (f"assumed: a start trained as {role.trainable!r}",)
  return Phase(
    name="preference",
    mesh=mesh,
    model=base.config,
    trained=state.params,
    # The weights it starts from stay beside the ones that train.
    frozen=(base.params, stage.variables),
    optimizer=state.opt_state,
    programs=(*programs, update),
    step=("update",),
    is_read_whole=is_read_whole(base),
    notes=notes if before is None else (),
  )
