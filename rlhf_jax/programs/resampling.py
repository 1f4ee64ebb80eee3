"""More prompts until every group of a batch teaches something.

With `resample_rounds` (DAPO, Yu et al. 2025, section 3.2, arXiv:2503.14476)
more prompts are drawn until every group has answers of different scores:

    batch = first prompts
    while a group of the batch teaches nothing, at most resample_rounds times:
      draw a whole batch more; its informative groups take those places

Shapes never change, and every process takes the same decisions, from scores
that all of them hold. The prompts of a round differ from those before, and its
random keys too; the loader's position after the step is what a checkpoint
holds, so a run that goes on draws the same prompts. Places that stay
uninformative after the last round keep groups of equal scores, whose advantages
are 0, and are counted. Informative groups beyond the batch are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.algorithms.policy_gradient import groups, returns
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.rollouts import Judged, Source, samples_of
from rlhf_jax.types import FINISH_LENGTH, Array, PyTree, Rollout


@functools.partial(jax.jit, static_argnames=("group_size", "drops_truncated"))
def _informative(
  rollout: Rollout, *, group_size: int, drops_truncated: bool
) -> tuple[Array, Array]:
  """Returns [P] which groups teach something, and the mean score []."""
  exists = returns.exists(rollout)
  counts = exists
  if drops_truncated:
    counts = exists * (rollout.finish_reason != FINISH_LENGTH)
  found = groups.informative(rollout.score, counts, group_size)
  return found, jnp.mean(rollout.score)


@functools.partial(jax.jit, static_argnames="mesh")
def _put(
  kept: Judged, new: Judged, row: Array, is_new: Array, *, mesh: Any
) -> Judged:
  """Returns `kept` with rows of `new` where is_new [N]; row [N] says which."""

  def one(old: Array, other: Array) -> Array:
    choose = is_new.reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(choose, jnp.take(other, row, axis=0), old)

  return mesh_lib.constrain_rows(mesh, jax.tree.map(one, kept, new))


def places(
  is_good: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which groups of a batch are replaced, and by which new ones.

  Informative new groups take the uninformative places, both in order.

  Args:
    is_good: [P] bool, which groups of the batch are informative.
    found: [P] bool, which of the new ones are.

  Returns:
    is_new [P] bool and source [P] int32, its own number where nothing changes.
  """
  empty, ready = np.flatnonzero(~is_good), np.flatnonzero(found)
  count = min(len(empty), len(ready))
  is_new = np.zeros(len(is_good), bool)
  source = np.arange(len(is_good), dtype=np.int32)
  is_new[empty[:count]] = True
  source[empty[:count]] = ready[:count]
  return is_new, source


def informative_batch(
  source: Source,
  policy: PyTree,
  critic: PyTree,
  key: Array,
  usual: int = 0,
  state: PyTree = None,
  *,
  group_size: int,
  rounds: int,
  drops_truncated: bool,
) -> tuple[Judged, dict[str, float]]:
  """Returns a batch of informative groups, as far as `rounds` batches give.

  Metrics:
    group/accepted_share: informative groups over groups drawn. Down is bad:
      samples are thrown away, and easy and hard prompts leave the training.
    group/rounds: batches of prompts drawn. Up is bad: time.
    group/unfilled_share: groups of the batch that still teach nothing. Above 0
      is bad: raise resample_rounds or change the prompts.
    group/drawn_score: mean score of all that was drawn; rollout/score_mean is
      that of the batch. Falling is bad.

  Args:
    source: of judged samples.
    policy, critic: see Source.batch.
    key: random key of the step; the first round uses it as it is.
    usual: rows of the batch before, see packing.plan.
    state: of what combines several judges, see Source.answer.
    group_size: answers to a prompt.
    rounds: batches of prompts at most; 1 takes the first as it is.
    drops_truncated: answers without an end leave the loss (shaping.missing_eos
      is "mask"), so they do not make a group informative.
  """
  drawn, accepted, scores = 0, 0, []
  batch, is_good = None, None
  for number in range(rounds):
    step_key = key if number == 0 else jax.random.fold_in(key, number)
    several = {} if state is None else {"state": state}
    new = source.batch(policy, critic, step_key, usual, **several)
    state = new.combination
    found, score = distributed.fetch(
      _informative(
        new.rollout, group_size=group_size, drops_truncated=drops_truncated
      )
    )
    drawn += len(found)
    accepted += int(np.sum(found))
    scores.append(float(score))
    if batch is None:
      batch, is_good = new, found
    else:
      is_new, origin = places(is_good, found)
      first = np.repeat(origin, group_size) * group_size
      row = first + np.tile(np.arange(group_size), len(origin))
      batch = _put(
        batch.replace(layout=None, combination=None),
        new.replace(layout=None, combination=None),
        row.astype(np.int32),
        np.repeat(is_new, group_size),
        mesh=source.mesh,
      )
      is_good = is_good | is_new
    if is_good.all():
      break
  if len(scores) > 1:
    layout = source.layout(samples_of(batch.rollout), usual)
    batch = batch.replace(layout=layout)
    if state is not None:  # all of the batch on one scale
      batch = source.again(batch, state)
  return batch, {
    "group/accepted_share": accepted / drawn,
    "group/rounds": float(len(scores)),
    "group/unfilled_share": float(np.mean(~is_good)),
    "group/drawn_score": float(np.mean(scores)),
  }


def drawer(
  source: Source, rounds: int, group_size: int | None, drops_truncated: bool
) -> Callable[..., tuple[Judged, dict[str, float]]]:
  """Returns (policy, critic, key, usual, state) -> a batch and metrics.

  Args:
    source: of judged samples.
    rounds: batches of prompts at most; 1 does not resample.
    group_size: answers to a prompt that are compared.
    drops_truncated: see `informative_batch`.
  """
  if rounds == 1:
    return lambda *arguments: (source.batch(*arguments), {})
  return functools.partial(
    informative_batch,
    source,
    group_size=group_size,
    rounds=rounds,
    drops_truncated=drops_truncated,
  )
