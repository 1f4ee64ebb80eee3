"""Learners from lists of texts: SFT, preferences, reward models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import schema
from rlhf_jax.algorithms import reward
from rlhf_jax.algorithms.preference import registry
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.data import lists
from rlhf_jax.notebook.learner import (
  Learner,
  check_optimizer,
  check_parts,
  metrics_of,
)
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import features, language_model, pairs
from rlhf_jax.schema import Method
from rlhf_jax.types import Array, PreferenceBatch, TokenBatch, TrainState

WHOLE = preference.Config()  # no microbatches


@dataclasses.dataclass(frozen=True, eq=False)
class FromTexts(Learner):
  """Learns from lists of texts: SFT, preferences, reward models.

  collate: (items, tokenizer, context, length=) -> a batch (data/lists.py).
  complete: batch -> the same with what else the update reads.
  update: compiled, (state, frozen, batch, key) -> (state, metrics).
  length: tokens of a row; None for the longest of each batch.
  parts: microbatches.
  """

  collate: Callable[..., TokenBatch | PreferenceBatch]
  complete: Callable[[Any], Any]
  update: Callable[..., tuple[TrainState, dict[str, Array]]]
  length: int | None
  parts: int

  def __call__(self, model: Any, items: Any) -> tuple[Any, dict[str, float]]:
    """Returns the model after one optimizer step on all items, and metrics.

    Args:
      model: what trains.
      items: list; see the table above and data/lists.py.

    Raises:
      UserError: an item that does not fit or teaches nothing, by its place.
    """
    self.check(model)
    base, mesh = model.base, model.mesh
    batch = self.collate(
      items, base.tokenizer, base.config.max_length, length=self.length
    )
    check_parts(len(batch.tokens), self.parts, "microbatches")
    with mesh_lib.current(mesh):
      batch = self.complete(mesh_lib.spread_batch(mesh, batch))
      state = self.carried(model)
      if state is None:
        state = self.first_state(model.params)
      state = state.replace(params=model.params)
      state, row = self.update(state, model.frozen, batch, self.key(model))
    return self.after(model, state.params, state), metrics_of(row, state)


def from_conversations(
  policy: Any,
  method: Method,
  optimizer: Any,
  *,
  length: int | None = None,
  seed: int = 0,
  donates: bool = False,
) -> FromTexts:
  """Returns the learner of SFT.

  Args:
    policy: before training.
    method: algorithms.sft with its Config.
    optimizer: optax transformation.
    length: tokens of a row; None for the longest of each batch, rounded up to
      8, so that another length compiles again.
    seed: of each step's key.
    donates: see from_scores.
  """
  optimizer = check_optimizer(optimizer)
  update = language_model.make_update(
    policy.role, method.config, optimizer, None, donates=donates
  )
  return FromTexts(
    policy,
    method,
    optimizer,
    seed,
    donates,
    lists.conversations,
    _as_it_is,
    update,
    length,
    method.config.microbatches,
  )


def _as_it_is(batch: Any) -> Any:
  return batch


def from_pairs(
  policy: Any,
  method: Method,
  optimizer: Any,
  *,
  length: int | None = None,
  accumulation: preference.Config = WHOLE,
  seed: int = 0,
  donates: bool = False,
) -> FromTexts:
  """Returns the learner of DPO and its relatives.

  Args:
    policy: before training; the reference.
    method: with its Config.
    optimizer: optax transformation.
    length: see from_conversations.
    accumulation: microbatches.
    seed, donates: see from_scores.
  """
  is_unpaired = registry.is_unpaired(method.module)
  collate = lists.judged_answers if is_unpaired else lists.pairs
  logprobs = jax.jit(functools.partial(pairs.apply, role=policy.role))

  def complete(batch: PreferenceBatch) -> PreferenceBatch:
    with schema.as_field():
      registry.check_labels(method.module, np.asarray(batch.label))
    if registry.is_reference_free(method.module):
      return batch
    found = logprobs(policy.params, policy.frozen, batch)
    return batch.replace(reference_logprobs=found)

  optimizer = check_optimizer(optimizer)
  update = pairs.make_update(
    policy.role, method, accumulation, optimizer, None, donates=donates
  )
  return FromTexts(
    policy,
    method,
    optimizer,
    seed,
    donates,
    collate,
    complete,
    update,
    length,
    accumulation.microbatches,
  )


def from_comparisons(
  model: Any,
  method: Method,
  optimizer: Any,
  *,
  length: int | None = None,
  seed: int = 0,
  donates: bool = False,
) -> FromTexts:
  """Returns the learner of a reward model.

  Args:
    model: a RewardModel before training.
    method: algorithms.reward with its Config.
    optimizer: optax transformation.
    length: see from_conversations.
    seed, donates: see from_scores.
  """

  def complete(batch: PreferenceBatch) -> PreferenceBatch:
    with schema.as_field():
      reward.check_labels(np.asarray(batch.label), method.config)
    members = model.role.members
    if members > 1:
      ones = jnp.ones((len(batch.label), members))
      return batch.replace(member_weight=ones)
    return batch

  optimizer = check_optimizer(optimizer)
  update = features.make_update(
    model.role, method.config, optimizer, donates=donates
  )
  return FromTexts(
    model,
    method,
    optimizer,
    seed,
    donates,
    functools.partial(lists.pairs, end_token=model.reads_end_token),
    complete,
    update,
    length,
    method.config.microbatches,
  )
