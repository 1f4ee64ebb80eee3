"""Encoded comparisons and rankings -> rows and which of them are compared.

A ranking of K answers gives pairs, or one row of K candidates:

  pairs  each answer against each that is ranked below it, at most K (K - 1) / 2
  ends   the best against the worst
  whole  all K together, for a loss over rankings
  refuse more than two answers stop the run, so that nobody decides it unasked
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rlhf_jax.data.rankings import Judgement
from rlhf_jax.schema import FieldError

EQUAL, TIED = "pairs of equal answers", "pairs of answers that tie"
UNDECIDED = "rankings in which no answer is better than another"


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Rows that people compared: pairs, or more answers to one prompt.

  rows: token rows {"tokens", "loss_mask"}, each distinct one once.
  pairs: [P, K] int32 indices into rows; the first is the preferred one. -1
    where there are fewer than K answers.
  labels: [P] float32, probability that the first is better than the second.
  groups: [P, G] int32, what a held-out set must not share with the training
    set: the whole prompt, whatever of it fits into a row (G = 1), or both rated
    sentences of a pair (G = 2).
  dropped: reason -> count, of what was left out or cut.
  ceiling: accuracy of the mean human rating against the single raters of
    these pairs, or None when records carry no ratings.
  ranks: [P, K] float32, 0 is the best, NaN for none; or None: of pairs the
    labels say it.
  targets: [P, K] float32, the scores that people gave, NaN for none; or None.
  strengths: [P] how strong each preference is: one of parsers.STRENGTHS, a
    number, or None for none; or None.
  margins: [P] float32, nats by which the first of two should win, or None.
  weights: [P] float32, what each counts in a loss, or None for 1.
  judgements: what each record says, for what is not read to be named.
  values: [P] object, texts: the value of data.by, or None.
  members: [P] int32, and row_members: [U] int, of which of several objectives
    each comparison and each row is; None of one.
  keys: number in groups -> what it is of, or None.
  """

  rows: list[dict[str, np.ndarray]]
  pairs: np.ndarray
  labels: np.ndarray
  groups: np.ndarray
  dropped: Counter
  ceiling: float | None
  ranks: np.ndarray | None = None
  targets: np.ndarray | None = None
  strengths: np.ndarray | None = None
  margins: np.ndarray | None = None
  weights: np.ndarray | None = None
  judgements: tuple[Judgement, ...] = ()
  values: np.ndarray | None = None
  members: np.ndarray | None = None
  row_members: np.ndarray | None = None
  keys: Mapping[int, str] | None = None

  def take(self, which: np.ndarray) -> Comparisons:
    """Returns some of the comparisons, of the same rows.

    Args:
      which: [P] bool, or numbers.
    """
    names = ("pairs", "labels", "groups", "ranks", "targets")
    further = ("strengths", "margins", "weights", "values", "members")
    found = {name: getattr(self, name) for name in (*names, *further)}
    return dataclasses.replace(
      self, **{k: x if x is None else x[which] for k, x in found.items()}
    )


def flipped(
  data: Comparisons, share: float, seed: int
) -> tuple[Comparisons, int]:
  """Returns comparisons of which a share has the wrong label, and how many.

  The answers of a pair change places, and the scores that people gave stay: who
  mistakes one answer for the other gives it the other's score too. Ties (the
  label 0.5) have no wrong side, and stay.

  Args:
    data: pairs, or judged answers, whose label is turned round.
    share: of those that are no ties, in [0, 1].
    seed: of which they are.

  Raises:
    FieldError: rankings that stay whole.
  """
  width = data.pairs.shape[1]
  if data.ranks is not None or width > 2:
    raise FieldError(
      f"flips={share:g} with rankings='whole': one of several answers is in no "
      "wrong place by itself. Set rankings='pairs', or flips=0."
    )
  decided = np.flatnonzero(data.labels != 0.5)
  number = round(share * len(decided))
  which = np.random.default_rng(seed).permutation(decided)[:number]
  if width == 1:
    labels = data.labels.copy()
    labels[which] = 1.0 - labels[which]
    return dataclasses.replace(data, labels=labels), number
  found = {}
  for name in ("pairs", "groups"):
    value = getattr(data, name)
    if value.shape[1] == 2:
      found[name] = value.copy()
      found[name][which] = value[which, ::-1]
  return dataclasses.replace(data, **found), number


def of_encoded_pairs(
  encoded: Sequence[dict],
  strengths: Sequence[str | float | None],
  scores: Sequence[tuple[float, float] | None],
  judgements: Sequence[Judgement],
  dropped: Counter,
) -> Comparisons:
  """Returns comparisons of what encode.encode_comparison made.

  Args:
    encoded: at least one.
    strengths, scores, judgements: of each of them.
    dropped: reason -> count of what was left out.
  """
  rows, groups, numbers = [], {}, []
  for example in encoded:
    rows += [example["chosen"], example["rejected"]]
    numbers.append(groups.setdefault(example["key"], len(groups)))
  none = (np.nan, np.nan)
  targets = np.asarray([none if x is None else x for x in scores], np.float32)
  return Comparisons(
    rows=rows,
    pairs=np.arange(len(rows), dtype=np.int32).reshape(-1, 2),
    labels=np.asarray([e["label"] for e in encoded], np.float32),
    groups=np.asarray(numbers, np.int32)[:, None],
    dropped=dropped,
    ceiling=None,
    targets=None if np.isnan(targets).all() else targets,
    strengths=_strengths(strengths),
    weights=_weights([e.get("weight", 1.0) for e in encoded]),
    judgements=tuple(judgements),
    keys=_turned(groups),
  )


def _turned(groups: Mapping[str, int]) -> dict[int, str]:
  return {number: key for key, number in groups.items()}


def _strengths(found: Sequence[str | float | None]) -> np.ndarray | None:
  if all(strength is None for strength in found):
    return None
  return np.asarray(found, object)


def _weights(found: Sequence[float]) -> np.ndarray | None:
  """Returns weights, None where all are 1."""
  weights = np.asarray(found, np.float32)
  return None if np.all(weights == 1) else weights


def of_encoded_rankings(
  encoded: Sequence[dict],
  how: str,
  ties: str,
  dropped: Counter,
  answers: int = 0,
) -> Comparisons:
  """Returns comparisons of what rankings.encode_one made.

  Args:
    encoded: at least one.
    how: of section.RANKINGS.
    ties: "drop", or "soft": answers that tie are a pair of label 1/2.
    dropped: reason -> count; what is left out here is added.
    answers: of a whole ranking at most; 0: as many as the longest has.

  Raises:
    FieldError: a ranking of more answers than `how` and `answers` allow.
  """
  if how == "refuse":
    _check_two(encoded)
  firsts = np.cumsum([0, *(len(e["answers"]) for e in encoded)])
  found: list[tuple[int, Sequence[int], float]] = []
  for n, example in enumerate(encoded):
    if how == "whole":
      found.append(_whole(n, example))
    else:
      is_ends = how == "ends"
      found += [(n, *pair) for pair in _pairs(example, is_ends, ties, dropped)]
  width = max([2, answers, *(len(members) for _, members, _ in found)])
  if answers and width > answers:
    raise FieldError(
      f"data.answers={answers}: the longest ranking has {width}. Set it to "
      f"{width}, or 0."
    )
  shape = (len(found), width)
  pairs, ranks = (
    np.full(shape, -1, np.int32),
    np.full(shape, np.nan, np.float32),
  )
  targets = np.full(shape, np.nan, np.float32)
  for place, (n, members, _) in enumerate(found):
    chosen = list(members)
    pairs[place, : len(chosen)] = firsts[n] + np.asarray(chosen)
    ranks[place, : len(chosen)] = encoded[n]["ranks"][chosen]
    targets[place, : len(chosen)] = encoded[n]["targets"][chosen]
  groups: dict[str, int] = {}
  keys = [groups.setdefault(e["key"], len(groups)) for e in encoded]
  numbers = np.asarray([keys[n] for n, _, _ in found], np.int32)
  strengths = _strengths([encoded[n]["strength"] for n, _, _ in found])
  return Comparisons(
    rows=[row for example in encoded for row in example["answers"]],
    pairs=pairs,
    labels=np.asarray([label for _, _, label in found], np.float32),
    groups=numbers[:, None],
    dropped=dropped,
    ceiling=None,
    ranks=ranks if how == "whole" else None,
    targets=None if np.isnan(targets).all() else targets,
    strengths=strengths,
    weights=_weights([encoded[n].get("weight", 1.0) for n, _, _ in found]),
    judgements=tuple(e["judgement"] for e in encoded),
    keys=_turned(groups),
  )


def _check_two(encoded: Sequence[dict]) -> None:
  """Raises FieldError for a ranking of more than two answers."""
  many = [e for e in encoded if len(e["answers"]) > 2]
  if many:
    most = max(len(e["answers"]) for e in many)
    raise FieldError(
      f"data.rankings='refuse': {len(many)} of {len(encoded)} rankings have "
      f"more than two answers (up to {most}), and nobody said how they are "
      "read. Set data.rankings to 'pairs' (each answer against each below it), "
      "'ends' (the best against the worst), or 'whole' for a reward model "
      "whose loss reads rankings."
    )


def _whole(number: int, example: dict) -> tuple[int, list[int], float]:
  """Returns all answers of a ranking, the best first, and its label."""
  ranks = example["ranks"]
  members = [int(i) for i in np.argsort(ranks, kind="stable")]  # NaN is last
  is_tie = len(members) > 1 and not ranks[members[0]] < ranks[members[1]]
  return number, members, _label(example, members[0], is_tie)


def _label(example: dict, better: int, is_tie: bool) -> float:
  """Returns the probability that the better of two answers is better."""
  label = example.get("label")
  if label is None:
    return 0.5 if is_tie else 1.0
  return label if better == 0 else 1.0 - label


def _pairs(
  example: dict, is_ends: bool, ties: str, dropped: Counter
) -> Iterator[tuple[tuple[int, int], float]]:
  """Yields ((better, worse), label) of a ranking, and counts what is none."""
  ranks, answers = example["ranks"], example["answers"]
  ranked = [int(n) for n in np.argsort(ranks, kind="stable")]
  ranked = [n for n in ranked if not np.isnan(ranks[n])]
  chosen = list(itertools.combinations(ranked, 2))
  if is_ends:
    chosen = [(ranked[0], ranked[-1])] if len(ranked) > 1 else []
  if not chosen:
    dropped[UNDECIDED] += 1
  for first, second in chosen:
    is_tie = ranks[first] == ranks[second]
    if np.array_equal(answers[first]["tokens"], answers[second]["tokens"]):
      dropped[EQUAL] += 1
    elif is_tie and ties == "drop":
      dropped[TIED] += 1
    else:
      yield (first, second), _label(example, first, is_tie)


def as_pairs(data: Comparisons) -> Comparisons:
  """Returns comparisons of two answers each: all decided pairs of rankings.

  Args:
    data: of pairs already, which stay as they are, or of K candidates.
  """
  if data.ranks is None:
    return data
  better = data.ranks[:, :, None] < data.ranks[:, None, :]  # NaN is neither
  place, first, second = np.nonzero(better)
  found = data.take(place)
  return dataclasses.replace(
    found,
    pairs=np.stack([data.pairs[place, first], data.pairs[place, second]], 1),
    labels=np.ones(len(place), np.float32),
    ranks=None,
    targets=None
    if data.targets is None
    else np.stack([data.targets[place, first], data.targets[place, second]], 1),
  )
