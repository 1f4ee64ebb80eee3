"""What all learners share: whose model, what travels with it, what is told."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.optimizer import with_narrow_weights
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import supervised
from rlhf_jax.programs.world import World
from rlhf_jax.runs import loop
from rlhf_jax.schema import Method, UserError
from rlhf_jax.types import Array, PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Carried:
  """What a learner hands on with a model, beside its params."""

  learner: Any
  arrays: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
  """What all learners share.

  start: the model it was made with.
  seed: of the order of rows.
  """

  start: Any
  method: Method
  optimizer: Any
  seed: int
  donates: bool

  @property
  def world(self) -> World:
    """Where it runs."""
    return World(self.start.mesh, Path())

  def check(self, model: Any) -> None:
    """Raises UserError for a model that the learner was not made for.

    Its frozen weights must be the same arrays: what is computed of them once,
    and the reference, are those of `start`.
    """
    mine = self.start
    if not hasattr(model, "role"):
      raise UserError(
        f"{type(model).__name__}: learn(model, ...) takes a model that "
        "lab.load, policy.reward_model or another call of learn returned."
      )
    is_same = model.role == mine.role and model.mesh == mine.mesh
    frozen = jax.tree.leaves((model.base.params, model.frozen))
    others = jax.tree.leaves((mine.base.params, mine.frozen))
    if not is_same or any(
      a is not b for a, b in zip(frozen, others, strict=True)
    ):
      raise UserError(
        f"this model trains {_told(model)}, and the learner was made with one "
        f"that trains {_told(mine)}. Make a learner with this model."
      )

  def carried(self, model: Any) -> PyTree | None:
    """Returns what an earlier call left with the model, None at first."""
    if model.carried is None or model.carried.learner is not self:
      return None
    return model.carried.arrays

  def first_state(self, params: PyTree) -> TrainState:
    """Returns the state before the first step; params are copied."""
    mesh = self.start.mesh
    make = functools.partial(
      supervised.initial_state, optimizer_=self.optimizer
    )
    if mesh.size > 1:
      return self.world.state(make, params)
    # One device needs no sharding table, so any optimizer's arrays will do.
    return jax.jit(make, out_shardings=mesh_lib.replicated(mesh))(params)

  def key(self, model: Any) -> Array:
    """Returns the random key of the next step of a model."""
    return jax.random.fold_in(jax.random.key(self.seed), model.steps)

  def after(self, model: Any, params: PyTree, arrays: PyTree) -> Any:
    """Returns the model after one more step."""
    methods, name = model.methods, self.method.name
    count = 1
    if methods and methods[-1][0] == name:
      count, methods = methods[-1][1] + 1, methods[:-1]
    return dataclasses.replace(
      model,
      params=params,
      carried=Carried(self, arrays),
      methods=(*methods, (name, count)),
      origin=dataclasses.replace(model.origin, folder=None),
    )


def _told(model: Any) -> str:
  role = model.role
  head = "" if role.head is None else " and a head"
  return (
    f"{role.trainable!r} from layer {role.first_layer}{head} of "
    f"{model.base.source} on {model.mesh.size} devices"
  )


def placed(mesh: jax.sharding.Mesh, tree: PyTree) -> PyTree:
  return jax.device_put(tree, mesh_lib.replicated(mesh))


def check_parts(rows: int, parts: int, name: str) -> None:
  if rows % parts:
    raise UserError(
      f"{name}={parts}: {rows} rows do not split into so many equal parts. "
      "Change one of them."
    )


def checked_scores(scores: Any, rows: int, name: str) -> np.ndarray:
  """Returns scores as float32 [rows].

  Raises:
    UserError: another number of them, or one that is no finite number.
  """
  try:
    found = np.asarray(scores, np.float32)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{name}: no numbers ({error}). Give one number for each text."
    ) from error
  if found.shape != (rows,):
    raise UserError(
      f"{name} of shape {found.shape} for {rows} samples. Give one number for "
      "each text, in their order."
    )
  bad = np.flatnonzero(~np.isfinite(found))
  if bad.size:
    raise UserError(
      f"{name}[{bad[0]}]={found[bad[0]]}: no finite number. Give each text a "
      "score, 0 for one that has none."
    )
  return found


def metrics_of(row: dict[str, Array], state: TrainState) -> dict[str, float]:
  """Returns metrics as numbers.

  Raises:
    NonFiniteError: the third update in a row that was refused.
  """
  found, refused = jax.device_get((row, state.skipped))
  found = {name: float(x) for name, x in found.items()}
  if refused >= loop.SKIPPED_LIMIT:
    bad = [name for name, x in found.items() if not math.isfinite(x)]
    raise loop.NonFiniteError(
      f"{', '.join(bad[:3]) if bad else 'a gradient'}: not finite, and "
      f"{refused} updates in a row were refused. Go on from an earlier policy "
      "with a lower learning rate, or look at the scores and texts."
    )
  return found


def check_optimizer(optimizer: Any) -> Any:
  """Returns an optax transformation that may train bfloat16 weights too."""
  if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
    raise UserError(
      f"optimizer={optimizer!r:.60}: must be an optax transformation, such as "
      "optax.adam(1e-5)."
    )
  return with_narrow_weights(optimizer)
