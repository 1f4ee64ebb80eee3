"""Scoring with a trained reward model: rows of tokens in, numbers out.

A reward model's raw scale means nothing (only differences are trained), so
each carries the mean and deviation of its scores on samples of the reference
policy, stored with its checkpoint (METHODS 2.5b; Ziegler et al. 2019). The
KL coefficient has a meaning only relative to that scale. Members of an ensemble
each have their own, and are combined afterwards (METHODS 2.6).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms import ensemble, process
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.data import steps
from rlhf_jax.models import members, outputs, roles, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.rows import Rows
from rlhf_jax.runs import stage_file, stages
from rlhf_jax.types import FINISH_EOS, Array, PyTree, Samples

ALONE = Combination()  # of one model there is nothing to combine


@dataclasses.dataclass(frozen=True)
class Scorer:
  """The static part of a reward model.

  reads_end_token: whether it was trained on rows that end with the end token;
    if not, a sampled end token is not judged.
  combination: of the scores of its members, where it has several.
  score_of_steps: of a process reward model, which of process.SCORES; "" for one
    that reads an answer at its end.
  objectives: names of its outputs, () of one objective.
  """

  role: roles.Role
  reads_end_token: bool
  combination: Combination = ALONE
  score_of_steps: str = ""
  objectives: tuple[str, ...] = ()


@flax.struct.dataclass
class Weights:
  """The arrays of a reward model.

  variables: merged {"params", "head", "lora"?}.
  mean, std: [] or, of several outputs, [M] float32, of raw scores on reference
    samples.
  deviation: [] mean deviation over members on these, None of one model.
  delimiter: of a process reward model, the table of process.step_ends.
  """

  variables: PyTree
  mean: Array
  std: Array
  deviation: Array | None = None
  delimiter: Array | None = None


def load(
  folder: str | Path,
  base: Base,
  shelf: stages.Shelf,
  combination: Combination = ALONE,
) -> tuple[Scorer, Weights, dict]:
  """Returns a finished reward stage, ready to score, and its stage.json.

  Args:
    folder: of the stage.
    base: the model underneath.
    shelf: where finished stages are.
    combination: of members, if it has some.
  """
  stage = stages.load(folder, stages.REWARD, base, shelf)
  info, several = stage.info, stage.role.members > 1
  outputs, judged = stage_file.outputs(info), info.get("process")
  found = {
    name: shelf.number(
      [x[name] for x in outputs] if several else outputs[0][name]
    )
    for name in ("mean", "std")
  }
  deviation = info["normalisation"].get("deviation") if several else None
  weights = Weights(
    stage.variables,
    **found,
    deviation=None if deviation is None else shelf.number(deviation),
    delimiter=None
    if judged is None
    else delimiter_table(judged["delimiter"], base, shelf),
  )
  how = "" if judged is None else judged["score"]
  scorer = Scorer(
    stage.role,
    info["reads_end_token"],
    combination,
    how,
    tuple(info.get("objectives", ())),
  )
  return scorer, weights, info


def delimiter_table(delimiter: str, base: Base, shelf: stages.Shelf) -> PyTree:
  """Returns the table by which a process reward model finds steps.

  Args:
    delimiter: between steps.
    base: whose tokenizer and vocabulary.
    shelf: of a run, or of a plan, which has no tokenizer.
  """
  rows = base.config.vocab_size
  if not hasattr(base.tokenizer, "pieces") and shelf.is_planned:
    shape = (len(delimiter.encode()) + 1, rows)
    return shelf.compute(lambda: jnp.zeros(shape, jnp.int32))
  return jnp.asarray(steps.table(delimiter, base.tokenizer, rows))


def judged_mask(scorer: Scorer, samples: Samples) -> Array:
  """Returns [N, L]: the tokens that the reward model reads."""
  if scorer.reads_end_token:
    return samples.valid_mask
  length = samples.tokens.shape[1]
  last = ops.last_index(samples.response_mask)[:, None]
  is_end = (jnp.arange(length)[None, :] == last) & (
    samples.finish_reason == FINISH_EOS
  )[:, None]
  return jnp.where(is_end, 0.0, samples.valid_mask)


def judged_rows(
  scorer: Scorer, samples: Samples
) -> list[dict[str, np.ndarray]]:
  """Returns a token row of each sample, of what the reward model reads."""
  mask = np.asarray(judged_mask(scorer, samples)) > 0
  return [
    {"tokens": tokens[kept], "loss_mask": np.ones(kept.sum(), np.float32)}
    for tokens, kept in zip(np.asarray(samples.tokens), mask, strict=True)
  ]


def member_scores(
  scorer: Scorer,
  weights: Weights,
  samples: Samples,
  hidden: Array | None = None,
  rows: Rows | None = None,
  place: Array | None = None,
) -> Array:
  """Returns [N, M] scores of members, each in its own reference deviations.

  Args:
    scorer: static part.
    weights: arrays.
    samples: rows to judge.
    hidden: the stream that enters scorer.role.entrance, or None.
    rows: what the decoder reads; None for the samples as they are.
    place: where the tokens of the samples stand in packed rows, or None.
  """
  if scorer.score_of_steps:
    read = _prefix_scores(scorer, weights, samples, hidden, rows, place)
    read, mask = read[..., 0], _step_ends(scorer, weights, samples)
    raw = process.answer_score(read, mask, scorer.score_of_steps)
    return normalised(scorer, weights, raw[:, None])
  raw = outputs.score(
    scorer.role,
    weights.variables,
    Rows.of(samples) if rows is None else rows,
    judged_mask(scorer, samples),
    hidden,
    place,
  )
  return normalised(scorer, weights, raw)


def normalised(scorer: Scorer, weights: Weights, raw: Array) -> Array:
  """Returns [N, M] normalised of raw [N, M K]: the first output of each."""
  first = raw[:, :: scorer.role.head.outputs]
  mean, std = (jnp.reshape(x, (1, -1)) for x in (weights.mean, weights.std))
  return (first - mean) / std


def score(
  scorer: Scorer, weights: Weights, samples: Samples, *further: Any
) -> Array:
  """Returns [N] scores in units of the reference policy's deviation.

  Those of members are combined as scorer.combination says; see
  `member_scores` for the arguments.
  """
  found = member_scores(scorer, weights, samples, *further)
  return ensemble.combined(found, scorer.combination)


def prefixes(
  scorer: Scorer,
  weights: Weights,
  samples: Samples,
  hidden: Array | None = None,
  rows: Rows | None = None,
  place: Array | None = None,
) -> dict[str, Array]:
  """Returns the Rollout's fields of beginnings of answers.

  A reward model values the prompt and each prefix of the answer, a process
  reward model each step that has ended, by its probability; both in units of
  the score. What members say of a beginning is combined as of an answer.

  Args:
    scorer, weights, samples, hidden, rows, place: see `member_scores`.
  """
  read = _prefix_scores(scorer, weights, samples, hidden, rows, place)
  if scorer.score_of_steps:
    mask = _step_ends(scorer, weights, samples)
    read = jax.nn.sigmoid(read)
  else:  # from the last token of the prompt on, which values the prompt
    after = jnp.pad(samples.response_mask[:, 1:], ((0, 0), (0, 1)))
    within = jnp.maximum(samples.response_mask, after)
    mask = judged_mask(scorer, samples) * within
  mean, std = (
    jnp.reshape(x, (1,) * (read.ndim - 1) + (-1,))
    for x in (weights.mean, weights.std)
  )
  each = (read - mean) / std
  values = ensemble.combined(each, scorer.combination)
  return {
    "prefix_values": jnp.where(mask > 0, values, 0.0),
    "prefix_mask": mask,
  }


def _prefix_scores(
  scorer: Scorer,
  weights: Weights,
  samples: Samples,
  hidden: Array | None,
  rows: Rows | None,
  place: Array | None,
) -> Array:
  """Returns [N, L, M] raw scores of all prefixes by each member."""
  rows = Rows.of(samples) if rows is None else rows
  read = outputs.prefix_scores(scorer.role, weights.variables, rows, hidden)
  read = read[..., :: scorer.role.head.outputs]
  if place is None:
    return read
  flat = read.reshape(-1, read.shape[-1])
  return jnp.take(flat, place, axis=0, mode="fill", fill_value=0)


def _step_ends(scorer: Scorer, weights: Weights, samples: Samples) -> Array:
  """Returns [N, L], 1 where a step of the answer ends."""
  answer = judged_mask(scorer, samples) * samples.response_mask
  return process.step_ends(samples.tokens, answer, weights.delimiter)


@functools.lru_cache(maxsize=16)
def make_score(scorer: Scorer) -> Callable[[Weights, Samples], Array]:
  """Returns `score` of whole samples, compiled; the same for equal scorers."""
  return jax.jit(functools.partial(score, scorer))


@functools.lru_cache(maxsize=16)
def make_member_scores(scorer: Scorer) -> Callable[[Weights, Samples], Array]:
  """Returns `member_scores` of whole samples, compiled."""
  return jax.jit(functools.partial(member_scores, scorer))


def of_member(
  scorer: Scorer,
  weights: Weights,
  number: int,
  compute: Callable[..., PyTree],
) -> tuple[Scorer, Weights]:
  """Returns one member of an ensemble as a reward model of its own.

  Args:
    scorer, weights: of the ensemble.
    number: of the member, from 0.
    compute: (make, *arrays) -> make(*arrays), World.compute.
  """
  role = scorer.role
  stacked, shared = members.parted(
    weights.variables, own_factors=role.own_factors
  )
  taken, mean, std = compute(
    lambda *trees: jax.tree.map(lambda x: x[number], trees),
    stacked,
    weights.mean,
    weights.std,
  )
  variables = shared | taken
  alone = dataclasses.replace(
    scorer, role=role.alone, combination=ALONE, objectives=()
  )
  return alone, Weights(variables, mean, std)


def fold_normalisation(head: PyTree, mean: Array, std: Array) -> PyTree:
  """Returns head parameters whose output is (score - mean) / std.

  Used to start a critic in the units of the normalised reward.
  """
  flat = trees.flatten(head)
  folded = {
    path: leaf / std
    for path, leaf in flat.items()
    if path.startswith(("output/", "residual/"))
  }
  folded["output/bias"] = (flat["output/bias"] - mean) / std
  return trees.unflatten(flat | folded)


def mean_head(head: PyTree, mean: Array, std: Array) -> PyTree:
  """Returns the linear head whose output is the mean of normalised members.

  Args:
    head: stacked parameters of M linear heads.
    mean, std: [M].
  """
  folded = jax.vmap(fold_normalisation)(head, mean, std)
  return jax.tree.map(lambda x: jnp.mean(x, axis=0), folded)
