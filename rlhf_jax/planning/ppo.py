"""Policy optimisation as a phase: merge, prefill, decode, judge, update.

Methods without a critic and verifiers in place of a reward model included.

Left out: the greedy answers of ReMax (another decode of as many prompts).
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from rlhf_jax.algorithms.policy_gradient.packing import Packing
from rlhf_jax.models import trees
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import build, check_policy, policy_step, stages
from rlhf_jax.pipelines.config import Model, section
from rlhf_jax.planning import abstract, origins
from rlhf_jax.planning.programs import (
  Devices,
  Flow,
  Phase,
  Program,
  is_read_whole,
  row_length,
  sampling,
  total_steps,
)
from rlhf_jax.planning.work import Passes, Work
from rlhf_jax.types import PyTree


def actors_of(
  base: build.Base,
  mesh: abstract.AnyMesh,
  start: stages.Stage,
  models: dict[str, stages.Stage],
  temperature: float,
  targets: int,
  value: actors_lib.Value | None,
) -> actors_lib.Actors:
  """Returns the actors of abstract stages.

  Args:
    base: the model underneath.
    mesh: where.
    start: the policy's.
    models: reward models by name.
    temperature: of sampling.
    targets: response tokens of a row at most.
    value: settings of the critic; None without one.
  """
  scorers = {
    name: abstract.scorer(model, mesh) for name, model in models.items()
  }
  critic = None
  if value is not None and "reward" in models:
    role = actors_lib.critic_role(value, scorers["reward"][0], base.config)
    critic = abstract.critic(models["reward"], role, mesh)
  elif value is not None:
    role = actors_lib.own_critic_role(value, base)
    critic = abstract.stage(base, role, mesh)
  return actors_lib.assemble(base, start, critic, scorers, temperature, targets)


def policy_phase(
  config: Any, devices: Devices, prefix: str = "", before: Any = None
) -> Phase:
  """Returns the phase of a policy configuration.

  Args:
    config: of the policy stage.
    devices: see programs.Devices.
    prefix: of the stage, for messages.
    before: the rlhf configuration it is part of, or None.
  """
  mesh = abstract.make_mesh(config, devices, prefix)
  base = abstract.base(
    section(Model, config.model, f"{prefix}model"), mesh, devices
  )
  settings = policy_step.read_settings(config)
  actors_lib.check_sampling(settings.generate, mesh.size)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  check_policy.check_minibatches(
    settings.update, settings.packing, _shape(settings)[0], ways, prefix
  )
  has_critic = settings.method.has_critic
  start, models, notes = origins.stages_of(
    config,
    base,
    mesh,
    prefix,
    before,
    settings.value.mode if has_critic else "",
  )
  actors = actors_of(
    base,
    mesh,
    start,
    models,
    settings.generate.temperature,
    policy_step.row_targets(settings),
    settings.value if has_critic else None,
  )
  total = settings.value.pretrain_steps + total_steps(settings.schedule)
  transforms = policy_step.make_transforms(config, settings, total)
  arrays = abstract.state(
    mesh,
    functools.partial(
      policy_step.initial_arrays,
      transforms=transforms,
      beta=settings.shaping.kl_coefficient,
      has_pretraining=settings.value.pretrain_steps > 0,
    ),
    actors.params,
  )
  state = arrays["train"]
  made = policy_step.make_programs(
    settings, actors.plan, actors.frozen, base, transforms, mesh
  )
  programs = sampling(
    mesh,
    actors.plan.policy,
    state.params["policy"],
    actors.frozen["policy"],
    settings.generate,
    settings.prompts,
    settings.schedule.batch_size,
  )
  programs += _judging(settings, mesh, actors, arrays, made)
  programs += _updates(config, settings, mesh, actors, arrays, made)
  critic = arrays.get("critic")
  return Phase(
    name="policy",
    mesh=mesh,
    model=base.config,
    trained=(state.params, None if critic is None else critic.params),
    frozen=(base.params, actors.weights, actors.frozen),
    optimizer=(state.opt_state, None if critic is None else critic.opt_state),
    programs=tuple(programs),
    step=tuple(p.name for p in programs if p.name != "value update"),
    is_read_whole=is_read_whole(base),
    notes=notes,
  )


def _shape(settings: policy_step.Settings) -> tuple[int, int, int]:
  """Returns rows, tokens of a row and response tokens of a row."""
  rows = settings.schedule.batch_size * settings.generate.num_samples
  return rows, settings.prompts.max_length, settings.generate.max_new_tokens


def _packed(
  settings: policy_step.Settings, mesh: abstract.AnyMesh
) -> tuple[Packing | None, int, int]:
  """Returns the layout of packed rows, how many there are, and their length.

  At worst every sample has its full length.
  """
  rows, length, new = _shape(settings)
  packed = settings.packing
  if not packed.row_tokens:
    return None, rows, length
  in_a_row = min(packed.row_tokens // length, packed.targets // new)
  count = -(-rows // max(in_a_row, 1))
  count = -(-count // packed.row_multiple) * packed.row_multiple
  make = functools.partial(abstract.spread, mesh, dtype=jnp.int32)
  layout = Packing(
    cell=make((count, packed.row_tokens)),
    place=make((rows, length)),
    segment_ids=make((count, packed.row_tokens)),
    positions=make((count, packed.row_tokens)),
  )
  return layout, count, packed.row_tokens


def _judging(
  settings: policy_step.Settings,
  mesh: abstract.AnyMesh,
  actors: actors_lib.Actors,
  arrays: PyTree,
  made: policy_step.Programs,
) -> list[Program]:
  """Returns the programs between sampling and learning."""
  rows, length, new = _shape(settings)
  layout, _, _ = _packed(settings, mesh)
  value: PyTree = {}
  if actors.plan.value is not None:
    value = trees.merge(arrays["train"].params["value"], actors.frozen["value"])

  def judged(flow: Flow) -> tuple[tuple, dict]:
    samples = abstract.samples_of(flow["decoded"], mesh, rows)
    return (actors.weights, value, samples, layout), {}

  def recomputed(flow: Flow) -> tuple[tuple, dict]:
    rollout, _ = flow["judged"]
    return (arrays["train"].params, actors.frozen, rollout), {}

  def prepared(flow: Flow) -> tuple[tuple, dict]:
    rollout, _ = flow.get("recomputed", flow["judged"])
    return (rollout, arrays["moments"], arrays["beta"], layout), {}

  passes = Passes(mesh)
  judge = Program(
    name="judge",
    function=made.judge,
    arguments=judged,
    rows=rows,
    work=passes.judge(actors.plan, rows, length, new),
    result="judged",
  )
  again = Program(
    name="recompute",
    function=made.recompute,
    arguments=recomputed,
    rows=rows,
    work=passes.policy_and_value(actors.plan, rows, length, new),
    result="recomputed",
  )
  prepare = Program(
    name="prepare",
    function=made.prepare,
    arguments=prepared,
    rows=rows,
    work=Work(),
    result="prepared",
  )
  return [judge, *([again] if made.recompute is not None else []), prepare]


def _updates(
  config: Any,
  settings: policy_step.Settings,
  mesh: abstract.AnyMesh,
  actors: actors_lib.Actors,
  arrays: PyTree,
  made: policy_step.Programs,
) -> list[Program]:
  """Returns the update, and that of the critic alone where there is one."""
  plan, state, epochs = actors.plan, arrays["train"], settings.update
  _, rows, width = _packed(settings, mesh)
  passes, key = Passes(mesh), abstract.key(mesh)

  def work(name: str, role: Any) -> Work:
    return passes.training(
      role,
      abstract.bytes_of(state.params[name]),
      rows,
      width,
      plan.row_targets,
      parts=epochs.minibatches * epochs.microbatches,
      steps=epochs.minibatches,
      repeats=epochs.epochs,
      is_lower_known=name in plan.shared,
    )

  value_work = Work() if plan.value is None else work("value", plan.value)
  total, extra = work("policy", plan.policy) + value_work, ()
  if settings.algorithm.ptx_coefficient > 0.0:
    length, count = row_length(settings.ptx), config.ptx_batch_size
    extra = (abstract.token_batch(mesh, count, length, False),)
    text = passes.training(
      plan.policy,
      abstract.bytes_of(state.params["policy"]),
      count,
      length,
      length,
      parts=epochs.minibatches * epochs.microbatches,
      repeats=epochs.epochs,
    )
    total += text
  update = Program(
    name="update",
    function=made.update,
    arguments=lambda flow: (
      (state, actors.frozen, flow["prepared"][0], key, *extra),
      {},
    ),
    rows=rows,
    work=total,
    donates=0,
  )
  if "critic" not in arrays:
    return [update]
  alone = Program(
    name="value update",
    function=made.value_update,
    arguments=lambda flow: (
      (
        arrays["critic"],
        actors.frozen["value"],
        flow["prepared"][0],
        key,
      ),
      {},
    ),
    rows=rows,
    work=value_work,
    donates=0,
  )
  return [update, alone]
