"""Reward models that read text: opened on a run's prompts, and as programs.

scorers.py says which of them do.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.programs import abstract
from rlhf_jax.programs.program import Program
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import reader as reader_lib
from rlhf_jax.rewards.reader import Reader, Readers
from rlhf_jax.types import PyTree


def open_readers(
  readers: tuple[Reader, ...],
  prompts: Data,
  sampler: Sampler,
  mesh: Any,
) -> Readers | None:
  """Returns what scores samples by their text, None without readers.

  Args:
    readers: reward models.
    prompts: the section of the prompts.
    sampler: of the policy.
    mesh: where everything is.

  Raises:
    UserError: a prompt that a reader cannot be asked.
  """
  if not readers:
    return None
  tokenizer = sampler.base.tokenizer
  found, _ = dataset.records(prompts, tokenizer)
  ids, _ = dataset.prompts(prompts, tokenizer, prompts.max_length)
  return reader_lib.readers_of(
    readers,
    found,
    [tokenizer.decode(row) for row in ids],
    tokenizer,
    sampler.end["eos_ids"],
    mesh,
    chat=prompts.chat,
  )


def programs(
  readers: tuple[Reader, ...],
  world: World,
  rows: int,
  length: int,
  label: str = "",
  calls: float | None = None,
) -> list[Program]:
  """Returns the passes of readers, as if their tokens were as many.

  Args:
    readers: reward models.
    world: where they are.
    rows: answers at a time.
    length: tokens of a prompt and its answer, in those of the policy.
    label: before the names of programs.
    calls: how often so many answers are judged in a run.
  """
  found = []
  size = reader_lib.rows_of_pass(rows, world.ways)
  for reader in readers:
    width = next(
      (w for w in reader_lib.widths(reader.most) if w >= length), reader.most
    )
    found.append(_program(reader, world, size, width, label, rows, calls))
  return found


def _program(
  reader: Reader,
  world: World,
  size: int,
  width: int,
  label: str,
  rows: int,
  calls: float | None,
) -> Program:
  def arguments(flow: dict[str, PyTree]) -> tuple[tuple, dict]:
    del flow
    batch = abstract.token_batch(world.mesh, size, width, False)
    return (reader.weights, batch), {}

  return Program(
    name=f"{label}{reader.name} by text",
    function=reader_lib.make_score(reader.scorer),
    arguments=arguments,
    rows=size,
    work=lambda: Passes(world.mesh).forward(
      [reader.scorer.role], size, width, 0
    ),
    calls=None if calls is None else calls * -(-rows // size),
  )
