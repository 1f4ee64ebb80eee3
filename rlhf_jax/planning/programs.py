"""A compiled function and what it is called with; a phase made of several.

Each function is the one that the pipeline calls, made by the pipeline's own
constructor, with abstract arguments. What one returns is what the next one
gets, so shardings follow the compiler's choice, as in a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rlhf_jax import generate
from rlhf_jax.data.batches import bucket_length
from rlhf_jax.models import roles, transformer
from rlhf_jax.pipelines import build, policy_step
from rlhf_jax.pipelines.config import Data, Schedule, Trainable, section
from rlhf_jax.pipelines.judge import Plan
from rlhf_jax.planning import abstract
from rlhf_jax.planning.work import Passes, Work
from rlhf_jax.types import PyTree

SOME_STEPS = 2**31  # stands for a length that only the data can tell
Devices = int | list[Any]  # how many there are, or those to compile for
Flow = dict[str, PyTree]  # results of the programs before, by name


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function and one call of it.

  function: jitted.
  arguments: from earlier results to (args, kwargs).
  rows: rows of its batch.
  work: what it computes.
  result: name of its result for later programs, "" when none reads it.
  donates: place of the argument whose buffers the result takes, or None.
  known: its abstract result, where that is known without compiling.
  trips: of loops whose length only the data can tell, at most.
  """

  name: str
  function: Any
  arguments: Callable[[Flow], tuple[tuple, dict]]
  rows: int
  work: Work
  result: str = ""
  donates: int | None = None
  known: PyTree = None
  trips: int = 1


@dataclasses.dataclass(frozen=True)
class Phase:
  """A stage of training: what stays in memory, and what runs.

  trained, frozen, optimizer: abstract trees; leaves that are one array in a
    run are one object.
  step: names of the programs that make one training step.
  is_read_whole: each host reads all of the model's file.
  notes: what was assumed.
  """

  name: str
  mesh: abstract.AnyMesh
  model: transformer.Config
  trained: PyTree
  frozen: PyTree
  optimizer: PyTree
  programs: tuple[Program, ...]
  step: tuple[str, ...]
  is_read_whole: bool
  notes: tuple[str, ...] = ()


def total_steps(schedule: Schedule) -> int:
  """Returns the steps of a schedule, many where the data decide."""
  return schedule.steps if schedule.steps else SOME_STEPS


def row_length(data: Data) -> int:
  """Returns the tokens of a padded row at most."""
  return data.max_length if data.pack else bucket_length(data.max_length)


def is_read_whole(base: build.Base) -> bool:
  """Says whether a model's weights are read whole (GGUF) or by pieces."""
  return base.source.startswith("asset:") or base.source.endswith(".gguf")


def role_of(
  base: build.Base, config: Any, prefix: str, **settings: Any
) -> roles.Role:
  """Returns the role of a stage's `trainable` section."""
  trainable = section(Trainable, config.trainable, f"{prefix}trainable")
  return build.make_role(base, trainable, **settings)


def sampling(
  mesh: abstract.AnyMesh,
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  settings: generate.Config,
  prompts: Data,
  count: int,
  label: str = "",
) -> list[Program]:
  """Returns the programs that sample a policy.

  Args:
    mesh: where.
    role: the policy's.
    params: its trained tree, as it is in the train state.
    frozen: the rest of its variables.
    settings: how to sample.
    prompts: their Data section.
    count: prompts at a time.
    label: before the names of programs and results.
  """
  rows = count * settings.num_samples
  if settings.batch_size is not None:
    rows = min(rows, settings.batch_size)
  width, new = (
    prompts.max_length - settings.max_new_tokens,
    (settings.max_new_tokens),
  )
  passes, ids = Passes(mesh), abstract.Ids()
  statics = dict(model=role.model, config=settings, eos_ids=(ids.eos_id,))
  batch = abstract.prompt_batch(mesh, rows, width)
  keys = abstract.keys(mesh, rows)
  weights = abstract.whole_weights(params, frozen)
  found = []
  if role.trainable == "lora":
    plan = Plan(role, role, None, (), frozenset(), 1.0, 1)
    found.append(
      Program(
        name=f"{label}merge",
        function=policy_step.make_merge(plan),
        arguments=lambda flow: ((params, frozen), {}),
        rows=rows,
        work=Work(traffic=2.0 * abstract.bytes_of(weights)),
        known=weights,
      )
    )
  prefill = Program(
    name=f"{label}prefill",
    function=generate.prefill,
    arguments=lambda flow: (
      (weights, batch, keys),
      dict(statics, pad_id=ids.pad_id),
    ),
    rows=rows,
    work=passes.prefill(role.model, rows, width, new),
    result=f"{label}prefilled",
  )
  decode = Program(
    name=f"{label}decode",
    function=generate.decode,
    arguments=lambda flow: (
      (weights, flow[f"{label}prefilled"], abstract.number(mesh, jnp.int32)),
      statics,
    ),
    rows=rows,
    work=passes.decode(role.model, rows, width, new),
    result=f"{label}decoded",
    donates=1,
    trips=new - 1,
  )
  return [*found, prefill, decode]
