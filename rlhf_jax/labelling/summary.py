"""Everything that judgements say of their annotators, as one tree of numbers.

What a page, a table and a gate of a run read (docs/agreement.md has the names).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.win_rate import proportion
from rlhf_jax.labelling import agreement, annotators, judgements, remarks
from rlhf_jax.labelling.judgements import GOLD, OVERALL, Judgement, Votes
from rlhf_jax.schema import UserError

_THEIRS = "annotator_fields"  # of the labelling page
MOST_IN_MATRIX = 12  # annotators of a table of all against all


def summarise(
  found: Sequence[Judgement],
  *,
  gold: Sequence[Judgement] = (),
  by: Sequence[str] = (),
  people: Mapping[str, Mapping[str, Any]] | None = None,
  model: str = annotators.MODELS[0],
  left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Returns the numbers of judgements; see docs/agreement.md.

  Args:
    found: judgements of all sources; those of gold items that name no annotator
      say what is right.
    gold: further judgements that are right.
    by: fields of records or of `people`, by which annotators are grouped.
    people: annotator -> fields.
    model: of annotators.MODELS.
    left_out: reason -> records.

  Raises:
    UserError: nobody judged anything, or a field that no record has.
  """
  keys = [x for x in found if x.annotator == GOLD] + list(gold)
  given = [x for x in found if x.annotator != GOLD]
  if not given:
    raise UserError(
      "0 judgements by annotators: nothing to compare. Give records with a "
      "field 'annotator'."
    )
  names = judgements.objectives(given)
  votes = {name: judgements.votes(given, name) for name in names}
  first = names[0]
  truth = _truth(votes[first], keys, first)
  skill = _skill(votes[first], model)
  rows = _annotators(given, votes[first], truth, skill)
  facts = {
    "judgements": len(given),
    "annotators": len(rows),
    "gold": int(np.sum(~np.isnan(truth))),
    "left_out": dict(left_out or {}),
    "equal_answers": judgements.equal_answers(given),
    "both_bad": float(np.mean([x.is_bad for x in given])),
    "objectives": {name: _objective(votes[name]) for name in names},
    "ratings": {
      name: _ratings(judgements.ratings(given, name))
      for name in judgements.scored_objectives(given)
    },
    "position": positions(given),
    "model": model,
    "by_annotator": rows,
    "matrix": _matrix(votes[first]),
    "groups": {
      field: _groups(given, votes[first], field, people or {}) for field in by
    },
  }
  facts["warnings"] = remarks.warnings(facts, given)
  return facts


def _skill(votes: Votes, model: str) -> np.ndarray | None:
  """Returns the skills [R], None where no two annotators meet."""
  if not np.any(annotators.shared_votes(votes)):
    return None
  return annotators.skills(votes, model)


def _objective(votes: Votes) -> dict[str, Any]:
  """Returns the agreement on one objective."""
  table, prompts = votes.table, votes.prompts
  strong = votes.strong_table
  shared = int(np.sum((~np.isnan(table)).sum(axis=0) >= 2))
  cohen = [
    agreement.cohen_kappa(table[i], table[j])
    for i in range(len(table))
    for j in range(i + 1, len(table))
  ]
  bad, total = _triads(votes)
  same = [a == b for a, b in votes.repeats]
  return {
    "units": len(votes.units),
    "votes": len(votes.value),
    "shared_units": shared,
    "raw": agreement.resampled(agreement.raw_agreement, table, prompts),
    "alpha": agreement.resampled(agreement.krippendorff_alpha, table, prompts),
    "alpha_ordinal": agreement.krippendorff_alpha(table, "ordinal"),
    "alpha_strength": agreement.krippendorff_alpha(strong, "ordinal"),
    "fleiss": agreement.fleiss_kappa(table),
    "cohen": agreement.mean_of(cohen),
    "ties": proportion((votes.value == 0).astype(np.float64)),
    "itself": proportion(np.asarray(same, np.float64)),
    "triads": total,
    "intransitive": bad / total if total else math.nan,
  }


def _triads(votes: Votes) -> tuple[int, int]:
  """Returns (intransitive, all) triads of single annotators.

  Those of one ranking cannot be intransitive, and are not counted.
  """
  edges: dict[tuple, dict] = defaultdict(dict)
  sources: dict[tuple, set] = defaultdict(set)
  for unit, who, value, number in zip(
    votes.unit, votes.annotator, votes.value, votes.judgement, strict=True
  ):
    prompt, a, b = votes.units[unit]
    edges[who, prompt][a, b] = int(value)
    sources[who, prompt].add(int(number))
  found = [
    agreement.triads(those)
    for key, those in edges.items()
    if len(sources[key]) > 1 and len(those) > 2
  ]
  return sum(bad for bad, _ in found), sum(total for _, total in found)


def _ratings(table: np.ndarray) -> dict[str, Any]:
  return {
    "units": int(np.sum((~np.isnan(table)).sum(axis=0) >= 2)),
    "alpha_interval": agreement.krippendorff_alpha(table, "interval"),
    "alpha_ordinal": agreement.krippendorff_alpha(table, "ordinal"),
  }


def _first_is_best(judgement: Judgement) -> bool | None:
  """Returns whether the one best answer stood first; None for no such thing."""
  order = judgement.orders.get(OVERALL, ())
  if not order or not judgement.shown:
    return None
  lost = {j if vote > 0 else i for i, j, vote in order if vote}
  tied = {x for i, j, vote in order if not vote for x in (i, j)}
  best = set(range(len(judgement.answers))) - lost
  if len(best) != 1 or best <= tied:
    return None
  return judgement.shown[0] in best


def _hits(given: Sequence[Judgement]) -> dict[int, list[bool]]:
  """Returns K -> whether the best of K answers stood first, of each."""
  hits: dict[int, list[bool]] = defaultdict(list)
  for judgement in given:
    hit = _first_is_best(judgement)
    if hit is not None:
      hits[len(judgement.answers)].append(hit)
  return hits


def positions(given: Sequence[Judgement]) -> dict[int, agreement.Position]:
  """Returns K -> how often the first of K answers is called the best."""
  return {
    count: agreement.position_bias(hits, count)
    for count, hits in sorted(_hits(given).items())
  }


def _truth(
  votes: Votes, keys: Sequence[Judgement], objective: str
) -> np.ndarray:
  """Returns [U] the vote that is known to be right, NaN where none is."""
  known = judgements.votes(keys, objective)
  right = {
    known.units[u]: v for u, v in zip(known.unit, known.value, strict=True)
  }
  return np.asarray([right.get(unit, np.nan) for unit in votes.units], float)


def _annotators(
  given: Sequence[Judgement],
  votes: Votes,
  truth: np.ndarray,
  skill: np.ndarray | None,
) -> list[dict[str, Any]]:
  """Returns a row of numbers for each annotator, most judgements first."""
  by_name: dict[str, list[Judgement]] = defaultdict(list)
  for judgement in given:
    by_name[judgement.annotator].append(judgement)
  table, shared = votes.table, annotators.shared_votes(votes)
  weight = np.full(len(votes.annotators), np.nan)
  if skill is not None and np.any(skill[shared >= annotators.MIN_SHARED] > 0):
    weight, _ = annotators.weights(votes, skill)
  places = {name: i for i, name in enumerate(votes.annotators)}
  rows = []
  for name, own in sorted(by_name.items(), key=lambda x: (-len(x[1]), x[0])):
    row: dict[str, Any] = {"name": name, "judgements": len(own)}
    seconds = [x.seconds for x in own if not math.isnan(x.seconds)]
    row["seconds"] = float(np.median(seconds)) if seconds else math.nan
    hits = np.asarray(_hits(own).get(2, ()), np.float64)
    row["first"] = proportion(hits)
    row["first_p"] = agreement.binomial_p(int(hits.sum()), hits.size)
    i = places.get(name)
    if i is None:  # judged another objective alone
      nothing = np.zeros(0)
      row |= {"shared": 0, "ties": math.nan, "kappa": math.nan}
      row |= {"majority": proportion(nothing), "gold": proportion(nothing)}
      row |= {"skill": math.nan, "weight": math.nan}
    else:
      votes_of = table[i]
      kappas = [
        agreement.cohen_kappa(votes_of, other)
        for j, other in enumerate(table)
        if j != i
      ]
      row |= {
        "shared": int(shared[i]),
        "ties": float(np.mean(votes_of[~np.isnan(votes_of)] == 0)),
        "kappa": agreement.mean_of(kappas),
        "majority": agreement.agreement_with(
          votes_of, agreement.majority(table, without=i)
        ),
        "gold": agreement.agreement_with(votes_of, truth),
        "skill": math.nan if skill is None else float(skill[i]),
        "weight": float(weight[i]),
      }
    rows.append(row)
  return rows


def _matrix(votes: Votes) -> dict[str, Any]:
  """Returns Cohen's kappa of the annotators with the most votes."""
  counts = np.bincount(votes.annotator, minlength=len(votes.annotators))
  chosen = np.argsort(-counts, kind="stable")[:MOST_IN_MATRIX]
  table = votes.table
  return {
    "names": [votes.annotators[i] for i in chosen],
    "kappa": [
      [
        math.nan if i == j else agreement.cohen_kappa(table[i], table[j])
        for j in chosen
      ]
      for i in chosen
    ],
  }


def _value_of(
  own: Sequence[Judgement], field: str, fields: Mapping[str, Any]
) -> str:
  """Returns what most records of an annotator say of a field."""
  if field in fields:
    return str(fields[field])
  values = [judgements.said(x, field) for x in own]
  said = Counter(str(value) for value in values if value is not None)
  return said.most_common(1)[0][0] if said else "not said"


def _groups(
  given: Sequence[Judgement],
  votes: Votes,
  field: str,
  people: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Returns a row for each value of a field of annotators."""
  by_name: dict[str, list[Judgement]] = defaultdict(list)
  for judgement in given:
    by_name[judgement.annotator].append(judgement)
  known = {x for own in people.values() for x in own}
  for judgement in given:
    known |= {*judgement.fields, *(judgement.fields.get(_THEIRS) or {})}
  if field not in known:
    raise UserError(
      f"--by={field}: no record and no annotator has this field. There are "
      f"{', '.join(sorted(known))}."
    )
  value = {
    name: _value_of(own, field, people.get(name, {}))
    for name, own in by_name.items()
  }
  groups = [value[name] for name in votes.annotators]
  split = agreement.between_groups(votes.table, groups)
  rows = []
  for name, shares in split.items():
    members = [x for x, group in value.items() if group == name]
    rows.append(
      {
        "value": name,
        "annotators": len(members),
        "judgements": sum(len(by_name[x]) for x in members),
        **shares._asdict(),
      }
    )
  return sorted(rows, key=lambda row: -row["judgements"])
