"""Several sources in one: how often each is read in a pass, and in what order.

  weights  shares of a pass: a pass has as many records as all sources have
  repeats  how often each source is read in a pass, such as 2 or 0.5

Of a source that is read 1.5 times, all records come once and half of them, by
`seed`, once more: the same half in each pass, so that a run that goes on has
the same rows. Sources are spread evenly over the pass, so that its first
records are a mixture of the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def numbers(text: str) -> list[float]:
  """Returns the numbers of "3, 0.5".

  Raises:
    ValueError: one is none, or not positive and finite.
  """
  found = [float(part) for part in text.split(",")]
  if not all(0 < number < math.inf for number in found):
    raise ValueError("not all are positive")
  return found


def named(text: str) -> dict[str, float]:
  """Returns the numbers of "en:3, de:0.5" by their names.

  Raises:
    ValueError: one is none, not positive and finite, or without a name; or a
      name stands there twice.
  """
  names = [part.rpartition(":")[0].strip() for part in text.split(",")]
  found = numbers(",".join(part.rpartition(":")[2] for part in text.split(",")))
  if not all(names) or len(set(names)) < len(names):
    raise ValueError("a name is missing, or stands there twice")
  return dict(zip(names, found, strict=True))


def times(sizes: Sequence[int], weights: Sequence[float]) -> list[float]:
  """Returns how often each source is read, of its share of a pass.

  Args:
    sizes: records of each source, at least one each.
    weights: of the sources, positive.
  """
  total = sum(sizes) / sum(weights)
  return [
    weight * total / size for weight, size in zip(weights, sizes, strict=True)
  ]


def draw(
  sources: Sequence[Sequence[Any]], repeats: Sequence[float], seed: int
) -> list[tuple[int, Any]]:
  """Returns (number of its source, record) of a pass, in order.

  Args:
    sources: records of each.
    repeats: how often each is read; records are rounded.
    seed: of the choice of records that come once more than others.
  """
  found = []
  for number, (records, often) in enumerate(zip(sources, repeats, strict=True)):
    count = max(round(often * len(records)), 1)
    whole, rest = divmod(count, len(records))
    order = np.random.default_rng([seed, number]).permutation(len(records))
    chosen = [*list(range(len(records))) * whole, *sorted(order[:rest])]
    found += [
      ((place + 0.5) / count, number, records[i])
      for place, i in enumerate(chosen)
    ]
  found.sort(key=lambda item: item[:2])
  return [(number, record) for _, number, record in found]
