"""Ensembles where answers are scored: one reward run, or several as one.

The members of a run, and those of several runs that are named together, give
[N, M] scores, each in units of its own reference deviation. One combination
makes a score of them (algorithms/ensemble.py), and what they disagree on is
watched: members that were taught the same disagree where nobody taught them, so
a deviation that grows against that on the reference's samples says that the
policy leaves the support of the comparisons (Coste et al. 2023,
arXiv:2310.02743; METHODS 2.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.rewards.model import Scorer, Weights
from rlhf_jax.runs import stage_file
from rlhf_jax.types import Array

COMPONENT = "component/"  # of logged scores, as in texts.py


@dataclasses.dataclass(frozen=True)
class Group:
  """Several reward runs as one ensemble.

  parts: their scorers.
  """

  parts: tuple[Scorer, ...]
  combination: Combination


@dataclasses.dataclass(frozen=True)
class GroupWeights:
  """The arrays of a Group.

  deviation: [] of all members on the reference's samples, None where unknown.
  """

  parts: tuple[Weights, ...]
  deviation: Array | None = None


@dataclasses.dataclass(frozen=True)
class Joined:
  """A judge whose members several scorers give.

  name: of the judge. parts: names of the scorers.
  """

  name: str
  parts: tuple[str, ...]
  combination: Combination


Judges = Mapping[str, tuple[Scorer | Group, Weights | GroupWeights]]


def part_name(name: str, number: int) -> str:
  """Returns what a scorer of a group is called."""
  return f"{name}/{number}"


def flat(judges: Judges) -> dict[str, tuple[Scorer, Weights]]:
  """Returns every scorer by its name, those of a group by `part_name`."""
  found = {}
  for name, (scorer, weights) in judges.items():
    if isinstance(scorer, Group):
      pairs = zip(scorer.parts, weights.parts, strict=True)
      found |= {part_name(name, i): pair for i, pair in enumerate(pairs)}
    else:
      found[name] = (scorer, weights)
  return found


def joined(judges: Judges) -> tuple[Joined, ...]:
  """Returns which scorers make one judge together."""
  return tuple(
    Joined(
      name,
      tuple(part_name(name, i) for i in range(len(scorer.parts))),
      scorer.combination,
    )
    for name, (scorer, _) in judges.items()
    if isinstance(scorer, Group)
  )


def deviations(judges: Judges) -> dict[str, Array]:
  """Returns the reference deviation [] of each judge that knows one."""
  found = {name: weights.deviation for name, (_, weights) in judges.items()}
  return {name: x for name, x in found.items() if x is not None}


def scored(
  name: str,
  members: Array,
  combination: Combination,
  reference: Array | None = None,
) -> dict[str, Array]:
  """Returns the score [N] by name, and of an ensemble what is watched.

  Logged as reward/component/...:
    reward/component/NAME_deviation: of the members' scores of one answer, in
      units of the reference's deviation. Up is bad: nobody taught them.
    reward/component/NAME_deviation_ratio: that over the deviation on the
      reference's samples. Far above 1 is bad: the policy left the support.
    reward/component/NAME_agreement: Spearman's correlation of two members over
      the batch, the mean over pairs. Down is bad.

  Args:
    name: of the judge.
    members: [N, M], normalised.
    combination: of them.
    reference: [] deviation on the reference's samples, None if unknown.
  """
  found = {name: ensemble.combined(members, combination)}
  if members.shape[1] == 1:
    return found
  deviation = ensemble.deviation(members)
  found[f"{COMPONENT}{name}_deviation"] = deviation
  if reference is not None:
    found[f"{COMPONENT}{name}_deviation_ratio"] = deviation / reference
  agreement = ensemble.agreement(jnp.asarray(members))
  found[f"{COMPONENT}{name}_agreement"] = jnp.full(len(members), agreement)
  return found


def by_objective(
  name: str, scores: Array, combination: Combination, objectives: Sequence[str]
) -> dict[str, Array]:
  """Returns the score [N] by name, and that of each objective.

  Logged as reward/component/...:
    reward/component/NAME_OBJECTIVE: of an output of several, in deviations of
      the reference. Down is bad.

  Args:
    name: of the judge.
    scores: [N, M], normalised.
    combination: of them.
    objectives: [M] names.
  """
  found = {name: ensemble.combined(scores, combination)}
  columns = zip(objectives, scores.T, strict=True)
  return found | {f"{COMPONENT}{name}_{k}": x for k, x in columns}


def scores_of(
  scorers: Sequence[tuple[str, Scorer]],
  members: Mapping[str, Array],
  groups: Sequence[Joined],
  reference: Mapping[str, Array],
) -> dict[str, Array]:
  """Returns `scored` of every judge.

  Args:
    scorers: by name, those of groups too.
    members: name of a scorer -> [N, M].
    groups: which of them make one judge.
    reference: see `deviations`.
  """
  inside = {part for group in groups for part in group.parts}
  found: dict[str, Array] = {}
  for name, scorer in scorers:
    if name not in inside:
      how = _combination(scorer, members[name])
      if scorer.objectives:
        found |= by_objective(name, members[name], how, scorer.objectives)
      else:
        found |= scored(name, members[name], how, reference.get(name))
  for group in groups:
    together = jnp.concatenate([members[x] for x in group.parts], axis=1)
    known = reference.get(group.name)
    found |= scored(group.name, together, group.combination, known)
  return found


def _combination(scorer: Scorer, members: Array) -> Combination:
  return scorer.combination if members.shape[1] > 1 else Combination()


def reference_deviation(infos: Sequence[Mapping[str, Any]]) -> float | None:
  """Returns the mean deviation of all members on the reference's samples.

  None where the runs were normalised on other samples, or do not have the
  scores of them.

  Args:
    infos: stage.json of each run.
  """
  known = [info.get("normalisation", {}) for info in infos]
  if len(infos) == 1:
    return known[0].get("deviation")
  digests = {x.get("sha256") for x in known}
  if len(digests) != 1 or None in digests:
    return None
  if not all("scores" in x for x in known):
    return None
  columns = []
  for info, normalisation in zip(infos, known, strict=True):
    raw = np.asarray(normalisation["scores"], np.float64)
    for out, column in zip(stage_file.outputs(info), raw.T, strict=True):
      columns.append((column - out["mean"]) / out["std"])
  return float(np.mean(np.std(np.stack(columns, axis=1), axis=1)))
