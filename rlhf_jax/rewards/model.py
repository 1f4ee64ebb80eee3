"""Scoring with a trained reward model: rows of tokens in, numbers out.

A reward model's raw scale means nothing (only differences are trained), so
each carries the mean and deviation of its scores on samples of the reference
policy, stored with its checkpoint (METHODS 2.5b; Ziegler et al. 2019). The
KL coefficient has a meaning only relative to that scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.models import roles, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.runs import stages
from rlhf_jax.types import FINISH_EOS, Array, PyTree, Samples


@dataclasses.dataclass(frozen=True)
class Scorer:
  """The static part of a reward model.

  reads_end_token: whether it was trained on rows that end with the end token;
    if not, a sampled end token is not judged.
  """

  role: roles.Role
  reads_end_token: bool


@flax.struct.dataclass
class Weights:
  """The arrays of a reward model.

  variables: merged {"params", "head", "lora"?}.
  mean, std: [] float32, of raw scores on reference samples.
  """

  variables: PyTree
  mean: Array
  std: Array


def load(
  folder: str | Path, base: Base, shelf: stages.Shelf
) -> tuple[Scorer, Weights, dict]:
  """Returns a finished reward stage, ready to score, and its stage.json.

  Args:
    folder: of the stage.
    base: the model underneath.
    shelf: where finished stages are.
  """
  stage = stages.load(folder, stages.REWARD, base, shelf)
  normalisation = stage.info["normalisation"]
  weights = Weights(
    stage.variables,
    shelf.number(normalisation["mean"]),
    shelf.number(normalisation["std"]),
  )
  return Scorer(stage.role, stage.info["reads_end_token"]), weights, stage.info


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


def score(
  scorer: Scorer,
  weights: Weights,
  samples: Samples,
  hidden: Array | None = None,
  rows: roles.Rows | None = None,
  place: Array | None = None,
) -> Array:
  """Returns [N] scores in units of the reference policy's deviation.

  Args:
    scorer: static part.
    weights: arrays.
    samples: rows to judge.
    hidden: the stream that enters scorer.role.entrance, or None.
    rows: what the decoder reads; None for the samples as they are.
    place: where the tokens of the samples stand in packed rows, or None.
  """
  raw = roles.score(
    scorer.role,
    weights.variables,
    roles.Rows.of(samples) if rows is None else rows,
    judged_mask(scorer, samples),
    hidden,
    place,
  )[:, 0]
  return (raw - weights.mean) / weights.std


@functools.lru_cache(maxsize=16)
def make_score(scorer: Scorer) -> Callable[[Weights, Samples], Array]:
  """Returns `score` of whole samples, compiled; the same for equal scorers."""
  return jax.jit(functools.partial(score, scorer))


def fold_normalisation(head: PyTree, mean: float, std: float) -> PyTree:
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
