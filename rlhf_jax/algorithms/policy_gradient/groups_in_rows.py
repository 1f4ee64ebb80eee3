"""Answers to one prompt, in packed rows that hold the prompt once.

  row        prompt    answer 1   answer 2   prompt   answer 5
  segment    1 1 1 1   1 1 1      1 1        2 2      2 2 2
  branch     0 0 0 0   1 1 1      2 2        0 0      1 1 1

A group, the answers to a prompt, is cut into pieces where a row has no room
for all of it; each piece has the prompt again. data/branches.py says what a
token reads. Where answers go is found on the host:

  the largest group first, into the emptiest row that has room for it; where
  none has, as many of its answers as the emptiest one takes, longest first,
  and what is left is a group again
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import NamedTuple

import numpy as np

SHORT = 256  # tokens of a row whose attention costs little


@dataclasses.dataclass(frozen=True)
class Groups:
  """What of a rollout may stand in a row once: the prompt of G answers.

  answers: G of them share their prompt; 1 for none.
  prompt: tokens of a prompt at most, as set and not as met: shapes that depend
    on it are known before any data.
  """

  answers: int = 1
  prompt: int = 0

  def together(self, samples: int, unit: int, new: int) -> int:
    """Returns how many answers at their longest a row has room for.

    So many that they are about as long as the prompt, or that the row has at
    most SHORT tokens; two at least. Fewer where an eighth of these rows is no
    multiple of unit, 0 where each answer has a row.

    Args:
      samples: N.
      unit: what R must be a multiple of.
      new: tokens of an answer at most.
    """
    most = max(2, -(-self.prompt // new), (SHORT - self.prompt) // new)
    wanted = min(self.answers, most)
    prompts = samples // self.answers
    for each in range(wanted, 1, -1):
      if prompts * -(-self.answers // each) >= 8 * unit:
        return each
    return 1 if samples >= 4 * unit else 0


ALONE = Groups()


class Sizes(NamedTuple):
  """Of groups, in tokens: prompts [P], answers [P, G]."""

  prompts: np.ndarray
  answers: np.ndarray


Piece = tuple[tuple[int, ...], int]  # samples, first tokens that they share


def measure(
  tokens: np.ndarray, valid: np.ndarray, response: np.ndarray, group: int
) -> Sizes:
  """Returns the sizes of groups.

  Args:
    tokens: [N, L]; a prompt's samples are neighbours.
    valid, response: [N, L] bool.
    group: G.

  Raises:
    ValueError: N is no multiple of G, or samples of a group differ in prompt.
  """
  if len(tokens) % group:
    raise ValueError(
      f"{len(tokens)} samples are not groups of {group}: the answers to a "
      "prompt must be neighbours, and alike many of each."
    )
  is_prompt = valid & (np.cumsum(response, axis=1) == 0)
  prompts = np.where(is_prompt, tokens, -1).reshape(-1, group, tokens.shape[1])
  differs = np.flatnonzero((prompts != prompts[:, :1]).any(axis=(1, 2)))
  if differs.size:
    first = int(differs[0]) * group
    raise ValueError(
      f"samples {first} to {first + group - 1} have several prompts, and "
      f"groups of {group} share one. Set packing.share_prompts='never'."
    )
  sizes = is_prompt.sum(1)
  answers = (valid.sum(1) - sizes).reshape(-1, group)
  return Sizes(sizes[::group], answers)


def place(
  groups: Sizes, capacity: np.ndarray, counts: range
) -> tuple[list[list[Piece]], int]:
  """Returns the pieces of each row, and how many rows there are.

  Args:
    groups: none of whose samples is larger than a row.
    capacity: [2] tokens and response tokens of a row.
    counts: numbers of rows that are allowed, the least first; the last one is
      taken where a piece would need more.
  """
  answers = int(groups.answers.sum())
  least = -(-np.asarray([groups.prompts.sum() + answers, answers]) // capacity)
  for count in counts:
    if count < least.max():
      continue
    found = spread(groups, capacity, count)
    if found is not None:
      return found, count
  return _one_by_one(groups, capacity), counts[-1]


def spread(
  groups: Sizes, capacity: np.ndarray, rows: int
) -> list[list[Piece]] | None:
  """Returns the pieces of each row, alike full; None where they do not fit.

  Args:
    groups, capacity: see `place`.
    rows: R.
  """
  size = groups.answers.shape[1]
  bins: list[list[Piece]] = [[] for _ in range(rows)]
  load = np.zeros((rows, 2), int)
  waiting = [
    (-int(prompt + answers.sum()), p, tuple(range(size)))
    for p, (prompt, answers) in enumerate(zip(*groups, strict=True))
  ]
  heapq.heapify(waiting)
  while waiting:
    _, p, members = heapq.heappop(waiting)
    prompt, answers = int(groups.prompts[p]), groups.answers[p]
    room = capacity - load - [prompt, 0]
    row, taken = _choose(room, load[:, 0], answers, members)
    if not taken:
      return None
    bins[row].append((tuple(p * size + n for n in sorted(taken)), prompt))
    used = int(sum(answers[n] for n in taken))
    load[row] += [prompt + used, used]
    rest = tuple(n for n in members if n not in taken)
    if rest:
      left = prompt + int(sum(answers[n] for n in rest))
      heapq.heappush(waiting, (-left, p, rest))
  return bins


def _choose(
  room: np.ndarray,
  load: np.ndarray,
  answers: np.ndarray,
  members: tuple[int, ...],
) -> tuple[int, tuple[int, ...]]:
  """Returns the row of a group's answers, and which of them it takes.

  Args:
    room: [R, 2] tokens and response tokens, beside the prompt.
    load: [R] tokens.
    answers: [G] tokens of all answers.
    members: of them, those that are to be placed.
  """
  whole = sum(answers[n] for n in members)
  order = np.argsort(load, kind="stable")
  free = np.minimum(room[:, 0], room[:, 1])[order]
  has_room = np.flatnonzero(free >= whole)
  if has_room.size:
    return int(order[has_room[0]]), members
  least = min(answers[n] for n in members)
  has_room = np.flatnonzero((free >= least) & (room[order, 0] >= 0))
  if not has_room.size:
    return 0, ()
  left, taken = free[has_room[0]], []
  for n in sorted(members, key=lambda n: -answers[n]):
    if answers[n] <= left:
      taken.append(n)
      left -= answers[n]
  return int(order[has_room[0]]), tuple(taken)


def _one_by_one(groups: Sizes, capacity: np.ndarray) -> list[list[Piece]]:
  """Returns pieces with a row each, filled in order."""
  bins: list[list[Piece]] = []
  size = groups.answers.shape[1]
  for p, (prompt, answers) in enumerate(zip(*groups, strict=True)):
    room, piece = min(capacity[0] - prompt, capacity[1]), []
    left = room
    for n, tokens in enumerate(answers):
      if tokens > left:
        bins.append([(tuple(piece), int(prompt))])
        left, piece = room, []
      piece.append(p * size + n)
      left -= tokens
    bins.append([(tuple(piece), int(prompt))])
  return bins
