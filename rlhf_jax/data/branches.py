"""Examples that begin alike: what they share stands once, then each goes on.

  row        prompt    answer 1   answer 2
  segment    1 1 1 1   1 1 1      1 1
  branch     0 0 0 0   1 1 1      2 2
  position   0 1 2 3   4 5 6      4 5

A token reads branch 0 of its segment and its own branch, so it sees what it
would see in a row of its own. The first token of a branch is predicted by the
last one of branch 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data import batches
from rlhf_jax.data.encode import Row


class Group(NamedTuple):
  """Examples of one segment: their numbers, and first tokens that they share.

  One example alone shares nothing.
  """

  members: tuple[int, ...]
  shared: int

  def moved(self, count: int) -> Group:
    """Returns the group with numbers that are `count` more."""
    return Group(tuple(n + count for n in self.members), self.shared)


def alone(count: int) -> list[Group]:
  """Returns a group of each of so many examples."""
  return [Group((n,), 0) for n in range(count)]


def common(one: Row, other: Row) -> int:
  """Returns how many first tokens two rows share; targets are alike there."""
  size = min(len(one["tokens"]), len(other["tokens"]))
  differs = one["tokens"][:size] != other["tokens"][:size]
  differs |= one["loss_mask"][:size] != other["loss_mask"][:size]
  return int(np.argmax(differs)) if differs.any() else size


def group(
  rows: Sequence[Row], capacity: Sequence[int]
) -> tuple[list[Group], np.ndarray]:
  """Returns neighbours that begin alike, together where it is fewer tokens.

  Args:
    rows: each is in one group, in their order.
    capacity: tokens and targets of a group at most; of a single row no bound.

  Returns:
    groups, and [groups, 2] their tokens and targets.
  """
  found: list[Group] = []
  sizes: list[np.ndarray] = []
  for n, row in enumerate(rows):
    own = _size(row)
    if found:
      joined, size = _joined(found[-1], n, rows)
      is_less = size[0] < sizes[-1][0] + own[0]
      if is_less and (size <= np.asarray(capacity)).all():
        found[-1], sizes[-1] = joined, size
        continue
    found.append(Group((n,), 0))
    sizes.append(own)
  return found, np.asarray(sizes).reshape(-1, 2)


def lengths(longest: int, most: int) -> list[int]:
  """Returns the lengths that rows of groups may have, the shortest first.

  Args:
    longest: tokens of a row for the longest example, a length by itself.
    most: tokens of the largest group.
  """
  most = max(longest, batches.bucket_length(most))
  return sorted({longest, most, 2 * longest})


def sizes(rows: Sequence[Row], pairs: np.ndarray, length: int) -> np.ndarray:
  """Returns [N, K, 2]: tokens and targets of the groups of each comparison.

  Args:
    rows: of the candidates.
    pairs: [N, K] the rows of each comparison, -1 for none.
    length: tokens of a group at most.
  """
  found = np.zeros((*pairs.shape, 2), int)
  for place, members in zip(found, pairs, strict=True):
    there = [rows[n] for n in members if n >= 0]
    _, counts = group(there, (length, length))
    place[: len(counts)] = counts
  return found


def _size(row: Row, shared: int = 0) -> np.ndarray:
  """Returns tokens and targets of a row after its first tokens."""
  mask = row["loss_mask"][shared:]
  return np.asarray([len(mask), int(np.sum(mask))])


def _joined(
  before: Group, number: int, rows: Sequence[Row]
) -> tuple[Group, np.ndarray]:
  """Returns a group with one more row, and its size."""
  members = (*before.members, number)
  shared = common(rows[members[0]], rows[number])
  if len(before.members) > 1:
    shared = min(shared, before.shared)
  first = rows[number]
  size = _size(first) - _size(first, shared)
  size = size + sum(_size(rows[n], shared) for n in members)
  return Group(members, shared), size


def join(members: Sequence[Row], shared: int) -> Row:
  """Returns one row of examples whose first `shared` tokens are the same."""
  rest = [len(row["tokens"]) - shared for row in members]
  spread: Row = {
    name: np.concatenate(
      [members[0][name][:shared], *(row[name][shared:] for row in members)]
    )
    for name in ("tokens", "loss_mask")
  }
  numbers = np.arange(1, len(members) + 1)
  branches = np.repeat([0, *numbers], [shared, *rest])
  after = [np.arange(shared, shared + count) for count in rest]
  positions = np.concatenate([np.arange(shared), *after])
  return spread | {
    "branch_ids": branches.astype(np.int32),
    "positions": positions.astype(np.int32),
  }
