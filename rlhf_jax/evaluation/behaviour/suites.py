"""A suite: what is asked of a policy, and what its answers say.

A suite is a generator. It yields requests, all of one kind at a time, is sent
the replies, and returns Found. So several turns are a few lines of plain code,
and it is tested without a model:

  def suite(facts):
    first = yield [Say(dialogue) for ...]      # [N] texts, None for no answer
    second = yield [Say(longer) for ...]
    return Found([Measure(...)], rows)

Who answers stands elsewhere (programs/asking.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import win_rate
from rlhf_jax.evaluation.win_rate import Proportion

NAN = math.nan
LOW, HIGH = "low", "high"
POLICY, GRADER, ATTACKER = "policy", "grader", "attacker"  # who is asked
Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Say:
  """A dialogue that a text is to answer.

  messages: the last of them is the user's.
  who: of POLICY, GRADER, ATTACKER.
  draw: another number is another draw, where texts are drawn at random.
  """

  messages: Messages
  who: str = POLICY
  draw: int = 0


@dataclasses.dataclass(frozen=True)
class Choose:
  """A dialogue that one of some labels is to answer.

  labels: the answers; the reply is their probabilities among each other.
  prefix: text with which the answer begins, before the label.
  space: stands between prefix and label.
  who: of POLICY, GRADER, ATTACKER.
  """

  messages: Messages
  labels: tuple[str, ...]
  prefix: str
  space: str = ""
  who: str = POLICY


@dataclasses.dataclass(frozen=True)
class Score:
  """A dialogue and its answer, of which a reward model says how good it is."""

  messages: Messages
  answer: str


Requests = Sequence[Say] | Sequence[Choose] | Sequence[Score]
# Text, [C] probabilities, or a number; None where there is none.
Replies = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Measure:
  """One number of each item.

  suite, name: what it is called.
  meaning: of a row of the table, in a few words.
  values: [N]; NaN where the item does not count.
  better: "low", "high", or "" where neither is.
  groups: [N] a group of each item, or ().
  is_share: values are in [0, 1], so a rate is told with Wilson's interval.
  """

  suite: str
  name: str
  meaning: str
  values: Sequence[float]
  better: str = ""
  groups: Sequence[str] = ()
  is_share: bool = True

  @property
  def array(self) -> np.ndarray:
    """The values as float64."""
    return np.asarray(self.values, np.float64)

  def rate(self, group: str | None = None) -> Proportion:
    """Returns the mean over the items that count, with its 95 % interval.

    Args:
      group: of one group alone.
    """
    found = self.array
    if group is not None:
      found = found[np.asarray(self.groups) == group]
    found = found[~np.isnan(found)]
    if self.is_share:
      return win_rate.proportion(found)
    if len(found) < 2:
      value = float(found[0]) if len(found) else NAN
      return Proportion(value, NAN, NAN, len(found))
    low, high = win_rate.bootstrap_interval(found, seed=0)
    return Proportion(float(np.mean(found)), low, high, len(found))


@dataclasses.dataclass(frozen=True)
class Found:
  """What a suite found.

  measures: the numbers.
  rows: transcripts, JSON objects, an item each.
  """

  measures: Sequence[Measure]
  rows: Sequence[Mapping[str, Any]]


Suite = Generator[Requests, Replies, Found]


@dataclasses.dataclass(frozen=True)
class Change:
  """By how much a measure differs between two policies, on the same items.

  value: mean of after - before over items that count for both.
  low, high: bootstrap interval over items; NaN for fewer than two.
  count: these items.
  """

  value: float
  low: float
  high: float
  count: int


def change(before: Measure, after: Measure) -> Change:
  """Returns the paired difference of a measure.

  Raises:
    ValueError: the two are not of the same items.
  """
  old, new = before.array, after.array
  if old.shape != new.shape or before.name != after.name:
    raise ValueError(
      f"{before.name} of {old.size} items, {after.name} of {new.size}: a "
      "paired difference is of the same items. Ask both the same."
    )
  found = (new - old)[~np.isnan(new) & ~np.isnan(old)]
  if not found.size:
    return Change(NAN, NAN, NAN, 0)
  low = high = NAN
  if found.size > 1:
    low, high = win_rate.bootstrap_interval(found, seed=0)
  return Change(float(np.mean(found)), low, high, int(found.size))


def user(text: str) -> dict[str, str]:
  """Returns a message of a person."""
  return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
  """Returns a message of a model."""
  return {"role": "assistant", "content": text}


def number(value: float | bool | None) -> float:
  """Returns a value as a number, NaN for None."""
  return NAN if value is None else float(value)
