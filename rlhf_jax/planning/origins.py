"""What a stage starts from: earlier stages of its run, or an assumption."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax.models import heads
from rlhf_jax.pipelines import build, stages
from rlhf_jax.planning import abstract
from rlhf_jax.planning.programs import role_of
from rlhf_jax.planning.supervised import reward_stage, sft_stage

Origins = tuple[stages.Stage, dict[str, stages.Stage], tuple[str, ...]]


def start_of(
  config: Any,
  base: build.Base,
  mesh: abstract.AnyMesh,
  prefix: str,
  before: Any,
) -> stages.Stage:
  """Returns the stage that a policy starts from, in the role it trains in.

  Args:
    config: of the stage.
    base: the model underneath.
    mesh: where.
    prefix: of the stage, for messages.
    before: the rlhf configuration it is part of, or None.
  """
  role = role_of(base, config, prefix)
  if before is None:
    return abstract.stage(base, role, mesh)
  start = sft_stage(before.sft, base, mesh, "sft.")
  if start.role == role:
    return start
  return abstract.stage(base, role, mesh, abstract.merged(start))


def stages_of(
  config: Any,
  base: build.Base,
  mesh: abstract.AnyMesh,
  prefix: str,
  before: Any,
  mode: str = "",
) -> Origins:
  """Returns the policy's start, reward models by name, and what was assumed.

  Args:
    config, base, mesh, prefix, before: see `start_of`.
    mode: what trained in reward models that are assumed; "" for what trains in
      the policy.
  """
  if before is None:
    return _assumed(config, base, mesh, prefix, mode)
  models = {}
  for name in ("reward", "gold"):
    sft = before.sft if before[name].init_from else None
    models[name] = reward_stage(before[name], base, mesh, f"{name}.", sft)
  return start_of(config, base, mesh, prefix, before), models, ()


def _assumed(
  config: Any, base: build.Base, mesh: abstract.AnyMesh, prefix: str, mode: str
) -> Origins:
  """Returns what a run of this stage alone would be given."""
  role = role_of(base, config, prefix)
  fields = "trainable.mode, value.mode" if mode else "trainable.mode"
  mode = mode if mode else role.trainable
  guess = dataclasses.replace(role, trainable=mode, head=heads.Config())
  names = [] if config.verifier.name else ["reward"]
  models = {
    name: abstract.stage(base, guess, mesh)
    for name in (*names, *config.monitors)
  }
  judges = (
    f"reward models trained as {mode!r} ({fields})"
    if models
    else "no reward model (verifier.name)"
  )
  note = f"assumed: an SFT start trained as {role.trainable!r} and {judges}"
  return abstract.stage(base, role, mesh), models, (note,)
