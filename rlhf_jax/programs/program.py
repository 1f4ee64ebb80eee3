"""A compiled function and what it is called with; a phase made of several.

A pipeline makes its programs once, for a run and for a plan. A run calls them
with its data. A plan calls `arguments` for abstract ones: what one program
returns is what the next one gets, so shardings follow the compiler's choice, as
in a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rlhf_jax import generate
from rlhf_jax.data import streams
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import roles, transformer
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import room
from rlhf_jax.programs.work import Work
from rlhf_jax.programs.world import AnyMesh, World
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.types import PyTree, TrainState

MANY = 2**31  # stands for a length that only the data can tell
Flow = dict[str, PyTree]  # results of the programs before, by name


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function and one call of it.

  function: jitted.
  arguments: from earlier results to (args, kwargs), abstract.
  rows: rows of its batch.
  work: returns what it computes.
  result: name of its result for later programs, "" when none reads it.
  donates: place of the argument whose buffers the result takes, or None.
  known: returns its abstract result, where that needs no compiling.
  trips: of loops whose length only the data can tell, at most.
  calls: how often in a whole run; None where only the data can tell.
  """

  name: str
  function: Any
  arguments: Callable[[Flow], tuple[tuple, dict]]
  rows: int
  work: Callable[[], Work] = Work
  result: str = ""
  donates: int | None = None
  known: Callable[[], PyTree] | None = None
  trips: int = 1
  calls: float | None = None

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the function."""
    return self.function(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Phase:
  """A stage of training, wired: what is in memory, and what runs.

  world, base: where, and the model underneath.
  arrays: what steps change, by name; {"train": TrainState, ...}.
  frozen: what stays beside them; leaves that are one array in a run are one
    object.
  programs: by name, in the order of a step.
  step: names of those that make one training step; all of them if empty.
  role: of what is trained.
  away: program -> arrays that are on the host while it runs.
  """

  name: str
  world: World
  base: Base
  arrays: dict[str, PyTree]
  frozen: PyTree
  programs: tuple[Program, ...]
  step: tuple[str, ...]
  role: roles.Role | None = None
  away: dict[str, tuple] = dataclasses.field(default_factory=dict)

  def __getitem__(self, name: str) -> Program:
    """Returns a program by its name."""
    return next(p for p in self.programs if p.name == name)

  def __contains__(self, name: str) -> bool:
    """Says whether there is a program of this name."""
    return any(p.name == name for p in self.programs)

  @property
  def mesh(self) -> AnyMesh:
    """Where it runs."""
    return self.world.mesh

  @property
  def model(self) -> transformer.Config:
    """The architecture."""
    return self.base.config

  @property
  def trained(self) -> PyTree:
    """What steps change, but for the optimizer's arrays."""
    return [
      tree.params if isinstance(tree, TrainState) else tree
      for tree in self.arrays.values()
    ]

  @property
  def optimizer(self) -> PyTree:
    """The optimizer's arrays."""
    return [
      tree.opt_state
      for tree in self.arrays.values()
      if isinstance(tree, TrainState)
    ]

  def warn_of_room(self) -> None:
    """Prints a warning where a CPU may lack the memory that it takes."""
    warning = room.warning(
      self.mesh,
      {p.name: p.work().temporaries for p in self.programs},
      is_recomputed=self.model.remat,
    )
    if warning:
      print(f"{self.name}: warning: {warning}")

  @property
  def is_read_whole(self) -> bool:
    """Whether the model's file is read whole (GGUF) or by pieces."""
    source = self.base.source
    return source.startswith("asset:") or source.endswith(".gguf")

  @property
  def flops(self) -> float | None:
    """FLOPs of the whole run, None where only the data tell its length."""
    parts = [(program.calls, program) for program in self.programs]
    if any(calls is None for calls, _ in parts):
      return None
    return sum(calls * program.work().flops for calls, program in parts)


def planned_steps(schedule: Schedule) -> int:
  """Returns the steps of a schedule, MANY where the data decide."""
  return schedule.steps if schedule.steps else MANY


def known_steps(schedule: Schedule) -> float | None:
  """Returns the steps of a schedule, None where the data decide."""
  return schedule.steps if schedule.steps else None


def prompt_width(prompts: Data, sampling: generate.Config, base: Base) -> int:
  """Returns the tokens of a prompt at most, as far as the section says.

  Args:
    prompts: the Data section.
    sampling: how many tokens are left for the answer.
    base: whose tokenizer.
  """
  room = prompts.max_length - sampling.max_new_tokens
  if not prompts.prefix_tokens:
    return room
  before = streams.text_prompt(prompts.prompt, base.tokenizer)
  text = len(before) + prompts.prefix_tokens
  return min(room, text)
