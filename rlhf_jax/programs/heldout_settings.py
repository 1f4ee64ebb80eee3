"""How held-out prompts are answered while a policy trains, and what is wrong.

heldout.py answers them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlhf_jax import generate
from rlhf_jax.data import unread
from rlhf_jax.programs import build
from rlhf_jax.programs.world import World
from rlhf_jax.schema import FieldError


@dataclasses.dataclass(frozen=True)
class Config:
  """How held-out prompts are answered while a policy trains."""

  count: int = 64  # prompts that are answered each time, the first of heldout
  num_samples: int = 1  # answers to each of them
  temperature: float | None = None  # of sampling, 0 is greedy; None: as it is
  # in training, and only then a KL can be told

  def __post_init__(self) -> None:
    if self.count < 1 or self.num_samples < 1:
      raise FieldError(
        f"count={self.count}, num_samples={self.num_samples}: must be >= 1."
      )
    if self.temperature is not None and not 0.0 <= self.temperature < math.inf:
      raise FieldError(
        f"temperature={self.temperature}: must be >= 0 and finite, or None for "
        "that of training."
      )
    if self.temperature == 0.0 and self.num_samples > 1:
      raise FieldError(
        f"num_samples={self.num_samples} with temperature=0.0: greedy answers "
        "to one prompt are all the same. Set 1, or a temperature > 0."
      )


def sampling(settings: Any, rows: int) -> generate.Config:
  """Returns how held-out prompts are answered.

  Args:
    settings: of a pipeline that samples.
    rows: prompts at a time.
  """
  how, own = settings.generate, settings.evaluation
  size = how.batch_size
  is_small = size is not None and rows * own.num_samples <= size
  return dataclasses.replace(
    how,
    num_samples=own.num_samples,
    temperature=(
      how.temperature if own.temperature is None else own.temperature
    ),
    batch_size=None if is_small else size,
    refill=None if is_small else how.refill,
  )


def rows_of(settings: Any, ways: int) -> int:
  """Returns how many held-out prompts are answered together.

  As many as in training, or as there are.

  Args:
    settings: of a pipeline that samples.
    ways: parts that rows are split into over a mesh.
  """
  needed = -(-settings.evaluation.count // ways) * ways
  return min(settings.prompts_together, needed)


def check(settings: Any, world: World) -> None:
  """Checks what is measured on held-out prompts, and how.

  Raises:
    FieldError: value, rule and remedy.
  """
  data, every = settings.heldout, settings.schedule.eval_every
  build.check_measured(settings.schedule, data, "heldout")
  if data.source and not every:
    raise FieldError(
      f"heldout.source={data.source!r}: nothing reads it with schedule."
      "eval_every=0. Set eval_every, or heldout.source=''."
    )
  if not every:
    return
  unread.check(data, "heldout", unread.PROMPTS)
  build.check_room(data, settings.generate, "heldout")
  rows = rows_of(settings, world.ways)
  build.check_portions(rows, sampling(settings, rows), "held-out prompts")
