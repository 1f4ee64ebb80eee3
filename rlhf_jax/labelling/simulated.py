"""Simulated annotators: a known preference, seen through known noise.

An annotator who looks at an answer feels

  u_i = s_i / T + G_i + b [i stands first],   G_i from a Gumbel distribution,

s_i being the preference, and ranks the answers by it. So of two answers i wins
with probability sigmoid((s_i - s_j) / T + b), b with the sign of who stands
first: Bradley and Terry (1952); of K the ranking is Plackett's and Luce's. Then

  reliability a: with probability 1 - a the annotator does not look, and all
                 s_i count as equal: p = a sigmoid(.) + (1 - a) / 2 (METHODS
                 10);
  ties t:        answers next to each other whose preferences differ by less
                 than t are a tie;
  flips e:       with probability e the whole ranking is turned round.

What an annotator says of an item depends on the seed, the item's name and the
annotator alone: the same in any order, and after a restart. Records are of the
format "ranking". Left out: annotators who learn or tire, and preferences that
differ between annotators.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.schema import FieldError, check_least

NAME = "simulated-"  # before the number of an annotator
# Touvron et al. 2023 (arXiv:2307.09288), section 3.2.1.
Scores = Sequence[Sequence[float]]
WORDS = ("significantly", "better", "slightly", "negligibly")


@dataclasses.dataclass(frozen=True)
class Config:
  """Annotators who have one preference and do not see it well."""

  count: int = 3  # annotators
  temperature: float = 1.0  # T of Bradley-Terry, in units of the preference;
  # 0: what is better wins
  reliability: str = ""  # a of each annotator, such as "1,0.9,0.6"; "": 1
  flips: float = 0.0  # share of rankings that are turned round
  ties: float = 0.0  # preferences that differ by less are a tie
  position_bias: float = 0.0  # nats that stand first adds to an answer
  strengths: str = ""  # of two answers: preferences that differ by as much are
  # "significantly" better, "better", "slightly", such as "2,1,0.5", by less
  # "negligibly"; "": nobody says
  seconds: float = 30.0  # that an item takes, on average

  def __post_init__(self) -> None:
    check_least(self, count=1, temperature=0.0, ties=0.0, seconds=0.0)
    if not 0.0 <= self.flips <= 0.5:
      raise FieldError(
        f"flips={self.flips}: must be in [0, 0.5]; beyond that the annotators "
        "prefer the opposite."
      )
    if self.position_bias and not self.temperature:
      raise FieldError(
        f"position_bias={self.position_bias} with temperature=0: nothing "
        "outweighs a preference without noise. Set temperature > 0."
      )
    given = _numbers(self.reliability) if self.reliability else None
    if given is not None and not (
      len(given) == self.count and all(0.0 <= x <= 1.0 for x in given)
    ):
      raise FieldError(
        f"reliability={self.reliability!r}: must be {self.count} numbers in "
        "[0, 1], one for each annotator, with commas between."
      )

    bounds = self.bounds
    is_falling = sorted(bounds, reverse=True) == list(bounds)
    if self.strengths and (len(bounds) != 3 or not is_falling):
      raise FieldError(
        f"strengths={self.strengths!r}: must be three falling numbers, such as "
        "'2,1,0.5'."
      )

  @property
  def bounds(self) -> tuple[float, ...]:
    """Of strengths; () where they are no list of numbers."""
    return _numbers(self.strengths)

  @property
  def reliabilities(self) -> tuple[float, ...]:
    """Of each annotator; () where it is no list of numbers."""
    if not self.reliability:
      return (1.0,) * self.count
    return _numbers(self.reliability)


def _numbers(text: str) -> tuple[float, ...]:
  """Returns the numbers of a text with commas between; () of another text."""
  try:
    return tuple(float(x) for x in text.split(","))
  except ValueError:
    return ()


def label(
  items: Sequence[Mapping[str, Any]],
  scores: Scores | Mapping[str, Scores],
  config: Config,
  *,
  seed: int,
  overlap: int = 1,
  **fields: Any,
) -> list[dict[str, Any]]:
  """Returns what annotators say of items, as records of the format "ranking".

  The annotators take turns, `overlap` of them at each item. Of several
  objectives they judge one after the other, with noise of its own in each.

  Args:
    items: {"item", "prompt", "answers", ...}; further fields are kept.
    scores: the preference, [K] of each item's answers; or objective -> that.
    config: who they are.
    seed: of all they do.
    overlap: annotators who judge each item.
    fields: that all records get, such as time="2026-01-31".

  Raises:
    FieldError: more annotators at an item than there are.
  """
  if not 1 <= overlap <= config.count:
    raise FieldError(
      f"overlap={overlap}: must be 1 to {config.count}, the simulated "
      "annotators. Raise their count."
    )
  records = []
  is_one = not isinstance(scores, Mapping)
  scores = {"": scores} if is_one else scores
  columns = [
    dict(zip(scores, those, strict=True))
    for those in zip(*scores.values(), strict=True)
  ]
  for number, (item, of_item) in enumerate(zip(items, columns, strict=True)):
    for turn in range(overlap):
      who = (number * overlap + turn) % config.count
      rng = _generator(seed, item["item"], who)
      shown = rng.permutation(len(item["answers"]))
      ranks = {
        name: judge(np.asarray(x, np.float64), shown, who, config, rng)
        for name, x in of_item.items()
      }
      seconds = round(float(rng.exponential(config.seconds)), 1)
      strengths = {k: strength(x, config) for k, x in of_item.items()}
      strengths = {k: word for k, word in strengths.items() if word}
      records.append(
        dict(item)
        | ({"ranks": ranks[""]} if is_one else {"objectives": ranks})
        | {
          "annotator": f"{NAME}{who + 1}",
          "shown": [int(i) for i in shown],
          "seconds": seconds,
        }
        | ({"strength": strengths.get("", strengths)} if strengths else {})
        | fields
      )
  return records


def strength(scores: Sequence[float], config: Config) -> str:
  """Returns the word for a preference between two answers, "" for none."""
  if not config.strengths or len(scores) != 2:
    return ""
  difference = abs(scores[0] - scores[1])
  place = sum(difference < bound for bound in config.bounds)
  return WORDS[place]


def judge(
  scores: np.ndarray,
  shown: np.ndarray,
  who: int,
  config: Config,
  rng: np.random.Generator,
) -> list[int]:
  """Returns the rank of each answer, 0 the best, equal for a tie.

  Args:
    scores: [K], the preference.
    shown: [K], the answer at each place, left to right.
    who: number of the annotator.
    config: of all of them.
    rng: of this judgement.
  """
  noise = rng.gumbel(size=len(scores))
  looks, is_flipped = rng.uniform(size=2)
  seen = scores if looks < config.reliabilities[who] else np.zeros(len(scores))
  if config.temperature:
    felt = seen / config.temperature + noise
    felt[shown[0]] += config.position_bias
    order = np.argsort(-felt, kind="stable")
  else:
    order = np.lexsort((-noise, -seen))  # noise decides between equal ones
  if is_flipped < config.flips:
    order = order[::-1]
  ranks = [0] * len(scores)
  for before, now in zip(order, order[1:], strict=False):
    is_tie = abs(scores[before] - scores[now]) < config.ties
    ranks[now] = ranks[before] + (not is_tie)
  return ranks


def _generator(seed: int, item: str, who: int) -> np.random.Generator:
  """Returns the random numbers of an annotator at an item."""
  digest = hashlib.sha256(item.encode("utf-8", "surrogatepass")).digest()
  name = int.from_bytes(digest[:8], "little")
  return np.random.default_rng([seed, name, who])
