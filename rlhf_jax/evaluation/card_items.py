"""What a report card is made of: items that people judged, and their pairs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Pair = tuple[int, int, float]  # first, second, probability that it wins


@dataclasses.dataclass(frozen=True)
class Item:
  """Answers to one prompt, and what people said of them.

  where: FILE:LINE.
  prompt: as it is shown.
  answers: [K] texts.
  pairs: (i, j, probability that i is better) of all that are ordered or tie.
  ranks: [K] 0 the best, NaN for none; () for pairs and choices.
  right: [K] whether an answer is among the best; () where nobody said.
  objectives: name -> pairs by that objective.
  fields: of the record.
  """

  where: str
  prompt: str
  answers: Sequence[str]
  pairs: Sequence[Pair]
  ranks: Sequence[float] = ()
  right: Sequence[bool] = ()
  objectives: Mapping[str, Sequence[Pair]] = dataclasses.field(
    default_factory=dict
  )
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def ends(self) -> tuple[int, int] | None:
    """Returns the best and the worst answer, None where nothing is decided."""
    won: Counter = Counter()
    for i, j, label in self.pairs:
      if label != 0.5:
        better, worse = (i, j) if label > 0.5 else (j, i)
        won[better] += 1
        won[worse] -= 1
    if not won:
      return None
    ordered = sorted(won, key=lambda n: (-won[n], n))
    return ordered[0], ordered[-1]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of answers in arrays.

  scores, lengths: [P, 2].
  labels: [P] probability that the first is better.
  item: [P] number of the item.
  """

  scores: np.ndarray
  lengths: np.ndarray
  labels: np.ndarray
  item: np.ndarray

  @property
  def difference(self) -> np.ndarray:
    """Scores of the first minus those of the second [P]."""
    return self.scores[:, 0] - self.scores[:, 1]

  @property
  def longer(self) -> np.ndarray:
    """Lengths of the first minus those of the second [P]."""
    return self.lengths[:, 0] - self.lengths[:, 1]

  def take(self, which: np.ndarray) -> Pairs:
    """Returns some of the pairs. which: [P] bool."""
    return Pairs(
      *(getattr(self, field.name)[which] for field in dataclasses.fields(self))
    )


def pairs_of(
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  lengths: Sequence[np.ndarray],
  get: Callable[[Item], Sequence[Pair]] = lambda item: item.pairs,
) -> Pairs:
  """Returns the pairs of all items.

  Args:
    items: [N].
    scores, lengths: of each item, [K].
    get: its pairs.
  """
  rows = [
    (*scores[n][[i, j]], *lengths[n][[i, j]], label, n)
    for n, item in enumerate(items)
    for i, j, label in get(item)
  ]
  table = np.asarray(rows, np.float64).reshape(-1, 6)
  return Pairs(
    table[:, :2], table[:, 2:4], table[:, 4], table[:, 5].astype(int)
  )


def mistakes(
  items: Sequence[Item], scores: Sequence[np.ndarray], count: int
) -> list[tuple[int, int, int, float]]:
  """Returns (item, preferred by people, by the model, by how much), the worst.

  One of each item at most.

  Args:
    items, scores: of `measure`.
    count: at most.
  """
  found = []
  for n, item in enumerate(items):
    wrong = []
    for i, j, label in item.pairs:
      better, worse = (i, j) if label > 0.5 else (j, i)
      gap = float(scores[n][worse] - scores[n][better])
      if label != 0.5 and gap > 0:
        wrong.append((n, better, worse, gap))
    if wrong:
      found.append(max(wrong, key=lambda x: x[3]))
  return sorted(found, key=lambda x: -x[3])[:count]
