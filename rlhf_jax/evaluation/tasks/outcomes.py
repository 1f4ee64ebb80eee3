"""Outcomes of tasks as numbers, and the paired difference of two policies.

  accuracy            right / items, by the sum of log-probabilities
  accuracy_per_byte   the same by the sum a byte
  score               mean score of generated answers
  nats_per_token, bits_per_byte, perplexity   of texts, over all their tokens

Shares are given in points (100 = all) where two are compared: METHODS 14,
  change = number after - number before,
with a bootstrap interval over items, which are drawn with replacement and carry
the numbers of both policies. Of the rates of texts each draw sums nats and
tokens of its items anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import win_rate
from rlhf_jax.evaluation.tasks.items import (
  CHOICE,
  GENERATE,
  Outcome,
)
from rlhf_jax.schema import UserError

RESAMPLES = 2000
ACCURACY, PER_BYTE, SCORE = "accuracy", "accuracy_per_byte", "score"
NATS, BITS = "nats_per_token", "bits_per_byte"
SHARES = (ACCURACY, PER_BYTE, SCORE)  # more is better, in 0 to 1
RATES = (NATS, BITS)  # less is better


@dataclasses.dataclass(frozen=True)
class Change:
  """A number of a task before and after, and how far it moved.

  name: of SHARES or RATES.
  before, after: the number.
  change: after - before; of shares in points, of nats and bits as they are.
  low, high: 95 % bootstrap interval of it over items; NaN with one item.
  items: that it is of.
  lost, gained: items that were right and are wrong, and the reverse; None where
    items are not right or wrong.
  """

  name: str
  before: float
  after: float
  change: float
  low: float
  high: float
  items: int
  lost: int | None = None
  gained: int | None = None

  @property
  def fall(self) -> float:
    """Points lost of a share, at most 100; of rates the rise."""
    return self.change if self.name in RATES else -self.change

  @property
  def is_clear(self) -> bool:
    """Whether the interval has no 0 in it and the change is for the worse."""
    return self.low > 0.0 if self.name in RATES else self.high < 0.0

  @property
  def chance(self) -> float:
    """How often coins part the items that moved at least so unevenly.

    The exact sign test of paired answers, two-sided (McNemar 1947; Dietterich
    1998 for classifiers); NaN where items are not right or wrong. Where few
    items moved a bootstrap interval is too narrow: of four, all lost, it has no
    0 in it, and one time in eight coins do the same.
    """
    if self.lost is None or self.gained is None:
      return math.nan
    moved, most = self.lost + self.gained, max(self.lost, self.gained)
    ways = sum(math.comb(moved, i) for i in range(most, moved + 1))
    return min(1.0, 2 * ways / 2**moved)


def columns(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
  """Returns name -> [n, 2] value and weight of each item that has it.

  A number of a task is sum(value) / sum(weight).
  """
  found: dict[str, list[tuple[float, float]]] = {}
  for outcome in outcomes:
    for name, pair in _pairs(outcome).items():
      found.setdefault(name, []).append(pair)
  return {name: np.asarray(x, np.float64) for name, x in found.items()}


def _pairs(outcome: Outcome) -> dict[str, tuple[float, float]]:
  kind = outcome.item.kind
  if kind == CHOICE:
    right = outcome.item.answer
    return {
      ACCURACY: (float(outcome.chosen == right), 1.0),
      PER_BYTE: (float(outcome.chosen_by_byte == right), 1.0),
    }
  if kind == GENERATE:
    return {SCORE: (float(outcome.score), 1.0)}
  nats = -outcome.logprobs[0]
  return {
    NATS: (nats, float(outcome.tokens[0])),
    BITS: (nats / math.log(2.0), float(outcome.sizes[0])),
  }


def numbers(outcomes: Sequence[Outcome]) -> dict[str, float]:
  """Returns the numbers of a task by name.

  Metrics:
    accuracy, accuracy_per_byte: share of right choices. Falling is bad.
    score: mean score of answers. Falling is bad.
    nats_per_token, bits_per_byte, perplexity: of texts. Rising is bad.
    *_standard_error: over items, of shares.
    items: how many there are.
  """
  found: dict[str, float] = {"items": len(outcomes)}
  for name, x in columns(outcomes).items():
    found[name] = float(x[:, 0].sum() / x[:, 1].sum())
    if name in SHARES and len(x) > 1:
      error = win_rate.mean_with_error(x[:, 0]).standard_error
      found[f"{name}_standard_error"] = error
    if name == NATS:
      found["perplexity"] = math.exp(min(found[name], 700.0))
  return found


def main_number(outcomes: Sequence[Outcome]) -> str:
  """Returns the name of the number that a task is known by.

  The accuracy, failing that the score, failing that the nats a token.
  """
  names = columns(outcomes)
  return next(name for name in (*SHARES, *RATES) if name in names)


def changes(
  before: Sequence[Outcome], after: Sequence[Outcome], seed: int = 0
) -> list[Change]:
  """Returns how each number of a task moved.

  Args:
    before, after: outcomes of the same items in the same order.
    seed: of the bootstrap.

  Raises:
    UserError: they are of other items.
  """
  sides = ([(x.item.where, x.item.kind) for x in o] for o in (before, after))
  if len({tuple(side) for side in sides}) > 1:
    raise UserError(
      f"{len(before)} and {len(after)} outcomes are not of the same items in "
      "the same order. Measure both policies on one list."
    )
  old, new = columns(before), columns(after)
  return [_change(name, old[name], new[name], seed) for name in old]


def _values(old: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Returns [n, 4]: values and weights of each item, before and after."""
  return np.stack([old[:, 0], new[:, 0], old[:, 1], new[:, 1]], axis=1)


def _moved(name: str, sums: np.ndarray) -> np.ndarray:
  """Returns the change of sums [..., 4] of `_values`."""
  scale = 100.0 if name in SHARES else 1.0
  after, before = sums[..., 1] / sums[..., 3], sums[..., 0] / sums[..., 2]
  return scale * (after - before)


def _draws(name: str, values: np.ndarray, seed: int) -> np.ndarray:
  """Returns the change of RESAMPLES draws of items [n, 4], with replacement."""
  count = len(values)
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
  return _moved(name, counts @ values)


def _interval(draws: np.ndarray) -> tuple[float, float]:
  low, high = np.quantile(draws, [0.025, 0.975])
  return float(low), float(high)


def _change(name: str, old: np.ndarray, new: np.ndarray, seed: int) -> Change:
  values = _values(old, new)
  total, low, high = values.sum(axis=0), math.nan, math.nan
  if len(values) > 1:
    low, high = _interval(_draws(name, values, seed))
  is_right_or_wrong = name in SHARES and np.isin(values[:, :2], (0, 1)).all()
  moved = values[:, 1] - values[:, 0]
  return Change(
    name=name,
    before=float(total[0] / total[2]),
    after=float(total[1] / total[3]),
    change=float(_moved(name, total)),
    low=low,
    high=high,
    items=len(values),
    lost=int(np.sum(moved < 0)) if is_right_or_wrong else None,
    gained=int(np.sum(moved > 0)) if is_right_or_wrong else None,
  )


def overall(
  before: Mapping[str, Sequence[Outcome]],
  after: Mapping[str, Sequence[Outcome]],
  seed: int = 0,
) -> Change | None:
  """Returns the mean change over tasks of their main shares, METHODS 14.

  Tasks weigh alike; items are drawn within each. A task without a share, or of
  a single item, is left out; None where no task is left.

  Args:
    before, after: outcomes by task, of the same items.
    seed: of the bootstrap.
  """
  parts, sides, count = [], [], 0
  for number, name in enumerate(before):
    main = main_number(before[name])
    if main not in SHARES or len(before[name]) < 2:
      continue
    pair = columns(before[name])[main], columns(after[name])[main]
    parts.append(_draws(main, _values(*pair), seed + number))
    sides.append([x[:, 0].mean() for x in pair])
    count += len(pair[0])
  if not parts:
    return None
  old, new = (float(x) for x in np.mean(sides, axis=0))
  low, high = _interval(np.mean(parts, axis=0))
  change = 100.0 * (new - old)
  return Change("overall", old, new, change, low, high, count)


def by_group(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
  """Returns the numbers of each group of a task that has several; else {}."""
  groups: dict[str, list[Outcome]] = {}
  for outcome in outcomes:
    groups.setdefault(outcome.item.group, []).append(outcome)
  if len(groups) < 2:
    return {}
  return {name: numbers(found) for name, found in sorted(groups.items())}


def row(outcome: Outcome) -> dict[str, Any]:
  """Returns an outcome as a line of a file; `read_rows` reads it again."""
  found: dict[str, Any] = {"where": outcome.item.where}
  if outcome.item.group:
    found["group"] = outcome.item.group
  if outcome.item.kind == GENERATE:
    return found | {"text": outcome.text, "score": outcome.score}
  found |= {
    "logprobs": list(outcome.logprobs),
    "tokens": list(outcome.tokens),
  }
  if outcome.item.kind == CHOICE:
    found["is_right"] = outcome.chosen == outcome.item.answer
  return found


def outcome_of(item: Any, found: dict[str, Any]) -> Outcome:
  """Returns the outcome that `row` wrote, of the item that it is of.

  Raises:
    UserError: it is of another item.
  """
  if found.get("where") != item.where:
    raise UserError(
      f"an outcome of {found.get('where')!r} stands where one of "
      f"{item.where!r} should: the files of tasks have changed. Measure again "
      "in another folder."
    )
  if item.kind == GENERATE:
    return Outcome(item, text=found["text"], score=found["score"])
  texts = item.choices if item.kind == CHOICE else (item.answer,)
  return Outcome(
    item,
    logprobs=tuple(found["logprobs"]),
    tokens=tuple(found["tokens"]),
    sizes=sizes(texts),
  )


def sizes(texts: Sequence[str]) -> tuple[int, ...]:
  """Returns the bytes of texts in UTF-8."""
  return tuple(max(len(text.encode()), 1) for text in texts)
