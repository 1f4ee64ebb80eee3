"""Log-probabilities of the reference, which rows of comparisons carry."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from rlhf_jax.data import dataset, layout
from rlhf_jax.models import roles
from rlhf_jax.programs import abstract, language_model, shared_rows
from rlhf_jax.programs.program import Phase, Program
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.runs import reference, stages
from rlhf_jax.types import Array, PyTree, TokenBatch


def make(role: roles.Role) -> Callable[..., Array]:
  """Returns the compiled (params, frozen, TokenBatch) -> log-probs [B, L].

  Its static argument `targets` is how many targets a row has at most.

  Args:
    role: of the policy before training.
  """

  def forward(params: PyTree, frozen: PyTree, batch: TokenBatch, targets: int):
    return language_model.logprobs(
      params, frozen, batch, role=role, targets=targets
    )[0]

  return jax.jit(forward, static_argnames="targets")


def program(
  settings: Any, world: World, fixed: stages.Stage, shape: layout.Shape
) -> Program:
  """Returns what computes them, as a program.

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    fixed: the reference.
    shape: of the rows, a candidate each.
  """
  rows, steps = settings.schedule.batch_size, settings.schedule.steps
  return Program(
    name="reference",
    function=make(fixed.role),
    arguments=lambda flow: (
      (
        *fixed.parts,
        abstract.token_batch(world.mesh, rows, shape.length, True),
      ),
      {"targets": shape.targets},
    ),
    rows=rows,
    work=lambda: Passes(world.mesh).forward(
      [fixed.role], rows, shape.length, shape.targets
    ),
    # Each pair once; as many as the steps read at most.
    calls=2 * steps if steps else None,
  )


def add(
  settings: Any,
  phase: Phase,
  stage: stages.Stage,
  parts: dict[str, dataset.Comparisons],
) -> str:
  """Gives all rows their reference log-probabilities; returns their digest.

  Args:
    settings: method and batch size.
    phase: with a program "reference".
    stage: the reference.
    parts: name -> comparisons, whose rows are changed.
  """
  if not settings.has_reference:
    return ""
  rows = {name: part.rows for name, part in parts.items()}
  folder = settings.reference if settings.reference else settings.init_from
  shape, size = shared_rows.whole(
    [row for part in rows.values() for row in part],
    settings.schedule.batch_size,
    phase.world.ways,
    prompts=settings.data.share_prompts,
    attention=stage.role.model.attention,
  )
  return reference.load_or_compute(
    phase.world.workdir,
    reference.ingredients(phase.base, folder, rows),
    rows,
    functools.partial(
      reference.compute,
      functools.partial(phase["reference"], *stage.parts),
      shape=shape,
      batch_size=size,
      pad_id=phase.base.tokenizer.pad_id,
      mesh=phase.mesh,
    ),
  )
